"""How fast it trains: the published sizes in bf16, step by step as a run makes them."""

import gc
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts.common import Notes, Setting, Skipped, has_deepspeed, random_step, seconds
from benchmarks.gpu_parts.loops import engine_step, plain_step
from benchmarks.gpu_parts.paths import without
from benchmarks.gpu_parts.profile import profile
from model.cost import flops_per_token
from training.batches import StepBatch
from training.config import RunConfig, TrainingSection, load_config
from training.distributed.devices import peak_flops

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# micro-batches of a step: the published runs make 128, among which the optimizer's share all but vanishes
ACCUMULATED = 2
WARMUP, ROUNDS = 2, 3
SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_size": 128,
    "rope_scaling": "null",
}


@dataclass(frozen=True)
class Case:
    """A configuration with samples of `length` tokens, attention and memory over `segment` of them.

    samples: of a micro-batch, the first of these that fits the device.  off: fast paths that are taken away.
    """

    file: str
    length: int
    samples: tuple[int, ...]
    memory: str = "none"
    loop: str = "engine"  # or a plain PyTorch loop in its place
    off: frozenset[str] = frozenset()
    segment: int = 2048
    profiled: bool = False
    recompute: str = "none"

    @property
    def phase(self) -> int:
        return int(self.memory != "none")

    def label(self, samples: int) -> str:
        missing = f", without {', '.join(sorted(self.off))}" if self.off else ""
        return f"{self.loop}, {self.memory}, {samples} x {self.length}{missing}"

    def config(self, small: bool, samples: int) -> RunConfig:
        length, segment = (self.length // 64, self.segment // 64) if small else (self.length, self.segment)
        values: dict[str, Any] = {
            "data.sequence_length": length,
            "model.segment_length": segment,
            "training.micro_batch_size": samples,
            "training.activation_checkpointing": self.recompute,
        }
        if "compile" in TrainingSection.model_fields:
            values["training.compile"] = "off" if "compile" in self.off else "on"
        with_memory = self.file.startswith("lm2")
        values |= {f"phases.{i}.tokens_per_step": samples * length * ACCUMULATED for i in range(1 + with_memory)}
        if self.memory == "delta":
            values["model.memory"] = "{kind: delta, heads: 8}"
        if small:
            values |= {f"model.{name}": value for name, value in SMALL.items()}
            values |= {"model.memory.heads": 4} if with_memory else {}
            values |= {"model.memory.slots": 8} if self.memory == "lm2" else {}
        return load_config(CONFIGS / self.file, [f"{key}={value}" for key, value in values.items()])


def ladder(case: Case, *paths: str) -> list[Case]:
    """The plain loop with every path, without one of them at a time, and without any."""
    sets = [(), *((path,) for path in paths), paths]
    return [replace(case, loop="plain", off=frozenset(off)) for off in sets]


LLAMA = Case("llama3.2_1.2b.yaml", 2048, (16, 8, 4, 2, 1))
LM2 = Case("lm2_1.7b.yaml", 4096, (6, 4, 2, 1), "lm2")
DELTA = Case("lm2_1.7b.yaml", 4096, (2, 1), "delta")
PATHS = ("compile", "varlen", "chunked loss")
PARTS = {
    "llama": [replace(LLAMA, profiled=True), replace(LLAMA, length=8192, segment=8192, samples=(1,))],
    "lm2": [replace(LM2, profiled=True), replace(LM2, memory="none")],
    "delta": [replace(DELTA, profiled=True), replace(DELTA, memory="none")],
    "engine": [
        replace(LLAMA, loop="plain"),
        *(replace(LLAMA, samples=(4, 2, 1), off=frozenset(off)) for off in ((), ("fused AdamW",), PATHS)),
    ],
    "llama-paths": ladder(replace(LLAMA, samples=(4, 2, 1)), *PATHS),
    "lm2-paths": ladder(replace(LM2, samples=(2, 1)), *PATHS),
    "delta-paths": ladder(DELTA, "compile", "varlen"),
}


def train(setting: Setting, notes: Notes, name: str, samples: int | None, recompute: str) -> None:
    """All cases of a part, one after the other; one that fails costs no other."""
    notes.add(micro_batches=ACCUMULATED, recompute=recompute, variants={})
    for case in PARTS[name]:
        tried = (samples,) if samples else case.samples
        case = replace(case, samples=(2,) if setting.small and not samples else tried, recompute=recompute)
        if case.loop == "engine" and not has_deepspeed():
            case = replace(case, loop="plain")
        fitting(case, setting, notes)
    measured = [found for found in notes.values["variants"].values() if "losses" in found]
    if not measured:
        raise Skipped("no case could be measured; gpu.log says why")
    notes.add(ok=all(loss == loss for found in measured for loss in found["losses"]), compiler=what_dynamo_did())


def fitting(case: Case, setting: Setting, notes: Notes) -> None:
    """Measure a case with the most samples that fit; what fails is noted with its reason."""
    for samples in case.samples:
        label = case.label(samples)
        free()  # here: while an exception is handled, its frames hold the tensors
        try:
            with without(case.off):
                measure(case, samples, setting, notes, label)
            return
        except torch.cuda.OutOfMemoryError as error:
            note(notes, label, error=f"out of memory: {str(error)[:200]}")
        except LookupError as error:
            note(notes, label, error=f"this code has no such path: {error}")
            return
        except Exception as error:
            traceback.print_exc()
            note(notes, label, error=f"{type(error).__name__}: {str(error)[:500]}")
            return


def free() -> None:
    """Return what the case before left in the device's memory, and forget compiled code."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def note(notes: Notes, label: str, **found: Any) -> None:
    notes.values["variants"].setdefault(label, {}).update(found)
    notes.add()
    notes.line(case=label, **found)


def measure(case: Case, samples: int, setting: Setting, notes: Notes, label: str) -> None:
    config = case.config(setting.small, samples)
    batch = random_step(ACCUMULATED, samples, config.data.sequence_length, config.model.vocab_size)
    began = time.perf_counter()
    make = plain_step if case.loop == "plain" else engine_step
    with make(config, case.phase, setting, "compile" not in case.off) as (step, parameters):
        built = time.perf_counter() - began
        flops = flops_per_token(config.model, config.phases[case.phase].memory)
        tokens = samples * config.data.sequence_length * ACCUMULATED
        note(
            notes,
            label,
            loop=case.loop,
            memory=case.memory,
            off=sorted(case.off),
            parameters=parameters,
            samples=samples,
            length=config.data.sequence_length,
            segment_length=config.model.segment_length,
            flops_per_token=flops,
            built_seconds=built,
        )
        note(notes, label, **rates(step, batch, tokens, flops, setting))
        if case.profiled:
            notes.add(profile=profile(lambda: step(batch), setting.device))
            notes.line(case=label, profile=notes.values["profile"])


def rates(
    step: Callable[[StepBatch], float], batch: StepBatch, tokens: int, flops: float, setting: Setting
) -> dict[str, Any]:
    """Median time of a step and what follows from it."""
    cuda = setting.device.type == "cuda"
    losses: list[float] = []

    def once() -> None:
        losses.append(step(batch))

    first, *_ = [seconds(once, setting.device) for _ in range(1 if setting.small else WARMUP)]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = [seconds(once, setting.device) for _ in range(2 if setting.small else ROUNDS)]
    speed = tokens / statistics.median(times)
    peak = peak_flops(setting.device, "bf16")
    return {
        "tokens_per_second": speed,
        "mfu": flops * speed / peak if peak else None,
        "tflops": flops * speed / 1e12,
        "step_seconds": times,
        "first_step_seconds": first,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "reserved_memory_gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else None,
        "losses": losses,
    }


def what_dynamo_did() -> dict[str, Any]:
    """Graphs and where they broke: each break is a return to Python."""
    from torch._dynamo.utils import counters

    breaks = sorted(counters["graph_break"].items(), key=lambda item: -item[1])
    return {"stats": dict(counters["stats"]), "breaks": [[str(why)[:300], count] for why, count in breaks[:5]]}
