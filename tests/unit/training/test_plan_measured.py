"""The plan's seconds and bytes of a step against what was measured on one H200 (torch 2.11.0+cu130, 2026-11-27).

Measured in a plain PyTorch loop and in one case in DeepSpeed: two micro-batches and an update, bf16, no recomputation,
two documents a sample, the first a third of it; varlen attention, compiled layers, the loss in compiled blocks of 4,096
rows, the memory's products in TF32.  The layers were prototypes of the paths that the product has now; "half" computed
the memory's two large products in bf16, which the product does not.  `delta` is left out: the prototype's chunks and
inverse were others.  Three efficiencies of `training.planning.devices` were chosen by these very times.
"""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.counting import Compiled
from benchmarks.gpu_parts.training import DELTA, LLAMA, LM2, Case
from benchmarks.traced import Micro
from model.cost import Role
from training.planning.devices import DEVICES, GIB, STREAM_EFFICIENCY
from training.planning.memory import memory_of, ranks_of, shape_of
from training.planning.timing import step_time
from training.planning.work import decoder_work

LOOP, ENGINE = 20, 18  # bytes a parameter: the loop's bf16 gradients live beside its fp32 ones
LONG = replace(LLAMA, length=8192, segment=8192)
OFF = replace(LM2, memory="none")
# case, samples, mean length of the document a token is in, and what was measured: milliseconds, GiB, bytes a parameter
MEASURED = {
    "Llama 4 x 2,048": (LLAMA, 4, 1138, 261.1, 33.6, LOOP),
    "Llama 16 x 2,048": (LLAMA, 16, 1138, 942.5, 61.7, LOOP),
    "Llama 1 x 8,192": (LONG, 1, 4551, 305.1, 33.6, LOOP),
    "LM2 2 x 4,096": (LM2, 2, 1593, 384.1, 48.6, LOOP),
    "LM2 6 x 4,096, half": (LM2, 6, 1593, 994.1, 77.9, LOOP),
    "LM2 switched off 2 x 4,096": (OFF, 2, 1593, 265.5, 33.6, LOOP),
    "Llama 4 x 2,048 in DeepSpeed": (LLAMA, 4, 1138, 276.2, 33.6, ENGINE),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_step_takes_what_was_measured(name: str) -> None:
    case, samples, document, milliseconds, *_ = MEASURED[name]
    config = case.config(False, samples)
    device = replace(DEVICES["h200"], document_tokens=document)
    found = step_time(config, config.phases[case.phase], ranks_of(config, 1), device)
    assert found.micro_batches == 2
    assert 1000 * found.seconds == pytest.approx(milliseconds, rel=0.1)


@pytest.mark.parametrize("name", [name for name in MEASURED if "half" not in name])
def test_a_step_holds_what_was_measured(name: str) -> None:
    case, samples, _, _, gib, state = MEASURED[name]
    config = case.config(False, samples)
    phase, device = config.phases[case.phase], replace(DEVICES["h200"], overhead=0.0)
    found = memory_of(config, phase, ranks_of(config, 1), device)
    parameters = found.weights / 2
    assert (found.total + (state - ENGINE) * parameters) / GIB == pytest.approx(gib, rel=0.1)


@pytest.mark.parametrize(
    "case", [LLAMA, pytest.param(LM2, marks=pytest.mark.slow), pytest.param(DELTA, marks=pytest.mark.slow)]
)
def test_a_compiled_layer_passes_over_its_arrays_as_often_as_inductor_says(case: Case) -> None:
    torch._dynamo.reset()
    micro, layer, config = Micro(case, 2), Compiled(), case.config(False, 2)
    with layer.as_compiler():
        micro.net.decoder_layers[0].compile_block()
        micro.net.decoder_layers[0](micro.hidden(), micro.spans(varlen=True))[0].sum().backward()
    # products take no time, and a second is a byte
    fast = dict.fromkeys(("fp32", "bf16"), math.inf)
    counting = replace(DEVICES["h200"], peak=fast, bandwidth=1 / STREAM_EFFICIENCY, compiled=True)
    shape = shape_of(config, config.phases[case.phase], counting)
    assert shape.compiled
    planned = decoder_work(shape, Role(hosts=bool(case.phase)), counting, "bf16").total
    assert planned == pytest.approx(layer.counts.bytes, rel=0.1)
