"""The library of fp32 products on a CPU: what is measured is what is taken, said and kept."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.linear import choose_library, linear
from tests.distributed.training_case import tiny_config as any_config
from training.config import RunConfig
from training.engine import cpu_products
from training.engine.cpu_products import FILE, choose_cpu_products, measure

ONEDNN, DEFAULT = "oneDNN;", "torch's default BLAS;"
ALONE: Any = SimpleNamespace(device=torch.device("cpu"), info=SimpleNamespace(rank=0))

pytestmark = pytest.mark.skipif(not choose_library(onednn=True), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MEMTRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(cpu_products, "broadcast", lambda text: text)
    yield
    choose_library(onednn=True)


def tiny_config(**changes: Any) -> RunConfig:
    """A run whose folder is beside the cache, both in the test's own folder."""
    return any_config(**{"run__output_dir": os.environ["MEMTRAIN_CACHE"]} | changes)


def takes_onednn() -> bool:
    """Whether a product is computed there, by the operations that run."""
    x, weight = torch.ones(64, 8, requires_grad=True), torch.ones(4, 8)
    return "OneDnn" in type(linear(x, weight).grad_fn.next_functions[0][0]).__name__


def ratio_is(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "measure", lambda *_: ratio)


@pytest.mark.parametrize("onednn", [True, False])
def test_both_libraries_are_right(onednn: bool) -> None:
    choose_library(onednn)
    assert takes_onednn() == onednn
    generator = torch.Generator().manual_seed(1)
    x, weight, gradient = (torch.randn(*s, generator=generator) for s in ((2, 40, 24), (12, 24), (2, 40, 12)))
    operands = x.requires_grad_(), weight.requires_grad_()
    found = linear(*operands), *torch.autograd.grad(linear(*operands), operands, gradient)
    exact = [o.detach().double().requires_grad_() for o in operands]
    y = F.linear(*exact)
    for one, other in zip(found, (y, *torch.autograd.grad(y, exact, gradient.double())), strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("ratio", "onednn"), [(2.0, True), (0.95, True), (0.8, False)])
def test_the_faster_library_is_taken_and_said(ratio: float, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ratio_is(ratio, monkeypatch)
    line = choose_cpu_products(tiny_config(), ALONE)
    assert line is not None and (ONEDNN if onednn else DEFAULT) in line and f"{ratio:.2f} of oneDNN's time" in line
    assert "measured now" in line and takes_onednn() == onednn


def test_a_later_start_takes_the_same_without_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ratio_is(0.5, monkeypatch)
    choose_cpu_products(tiny_config(), ALONE)
    choose_library(onednn=True)
    ratio_is(3.0, monkeypatch)
    line = choose_cpu_products(tiny_config(run__name="later"), ALONE)
    assert line is not None and DEFAULT in line and str(tmp_path / FILE) in line and not takes_onednn()
    wider = choose_cpu_products(tiny_config(model__ffn_size=80), ALONE)  # another size, which was not measured
    assert wider is not None and ONEDNN in wider
    assert sorted(json.loads((tmp_path / FILE).read_text()).values()) == [0.5, 3.0]


def test_a_continued_run_takes_what_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ratio_is(0.5, monkeypatch)
    choose_cpu_products(tiny_config(), ALONE)
    monkeypatch.setenv("MEMTRAIN_CACHE", str(tmp_path / "of another container"))
    ratio_is(3.0, monkeypatch)
    other, same = (
        choose_cpu_products(tiny_config(run__output_dir=str(tmp_path), run__name=name), ALONE)
        for name in ("other", "tiny")
    )
    assert other is not None and ONEDNN in other
    assert same is not None and DEFAULT in same  # although this container's cache says otherwise


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": "b"}', "null"])
def test_a_damaged_file_is_measured_anew(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE).write_text(text)
    ratio_is(0.5, monkeypatch)
    line = choose_cpu_products(tiny_config(), ALONE)
    assert line is not None and "measured now" in line
    assert list(json.loads((tmp_path / FILE).read_text()).values()) == [0.5]


def test_a_folder_that_cannot_be_written_costs_a_measurement_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMTRAIN_CACHE", str(tmp_path / "file"))
    ratio_is(0.5, monkeypatch)
    line = choose_cpu_products(tiny_config(), ALONE)
    assert line is not None and "measured now" in line


def test_other_ranks_take_what_rank_0_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "broadcast", lambda own: own or f"{DEFAULT} as rank 0 measured")
    other: Any = SimpleNamespace(device=torch.device("cpu"), info=SimpleNamespace(rank=1))
    assert choose_cpu_products(tiny_config(), other) is not None
    assert not takes_onednn()


def test_there_is_a_choice_in_fp32_on_a_cpu_alone() -> None:
    assert choose_cpu_products(tiny_config(training__precision="bf16"), ALONE) is None
    gpu: Any = SimpleNamespace(device=torch.device("cuda"), info=SimpleNamespace(rank=0))
    assert choose_cpu_products(tiny_config(), gpu) is None


def test_the_measurement_is_of_both_libraries_and_draws_no_number_of_the_run() -> None:
    state = torch.get_rng_state()
    assert 0.05 < measure(64, 128, 256) < 20
    assert torch.equal(torch.get_rng_state(), state)
