"""A Hugging Face folder that cannot start a phase is refused from its headers alone."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from model import ModelError, build_model
from tests.reference.small import NONE, tiny
from training.errors import ConfigError
from training.hf_weights import check_folder


def test_a_fitting_folder_passes(tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in build_model(tiny(NONE)).to_hf().items()}, tmp_path / "model.safetensors")
    check_folder(tmp_path, tiny(NONE), "phases.0.init_from")


def test_another_shape_is_named(tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in build_model(tiny(NONE)).to_hf().items()}, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"mlp.gate_proj.weight has shape \[24, 16\], the configuration gives \[32, 16\]"
    ):
        check_folder(tmp_path, tiny(NONE, ffn_size=32), "phases.0.init_from")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    with pytest.raises(ConfigError, match=r"phases.0.init_from: .*model.safetensors is no readable"):
        check_folder(tmp_path, tiny(NONE), "phases.0.init_from")
