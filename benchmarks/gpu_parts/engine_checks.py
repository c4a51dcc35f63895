"""Is the engine right on the device: it starts there, trains as a plain loop on a CPU does, and goes on bit for bit."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.gpu_parts.checks import LOSS_TOLERANCE, apart, exact_products
from benchmarks.gpu_parts.common import Notes, Setting, need_deepspeed, seconds
from model import LanguageModel
from tests.distributed.training_case import step_batch, tiny_config
from training.batches import StepBatch
from training.config import RunConfig
from training.distributed.topology import RankInfo, Topology, initialize

ALONE = RankInfo(0, 1, 0)
STEPS, LEARNING_RATE = 6, 3e-3
MEMORIES = {
    "lm2 time": {"kind": "lm2", "slots": 4, "heads": 2},
    "delta": {"kind": "delta", "heads": 2},
    "none": {"kind": "none"},
}


def start(setting: Setting, notes: Notes) -> None:
    """How long one rank takes until its first collective is done, and what the device can do at best."""
    cuda = setting.device.type == "cuda"
    notes.add(backend="nccl" if cuda else "gloo")
    began = time.perf_counter()
    torch.zeros(1, device=setting.device)
    notes.add(device_context_seconds=time.perf_counter() - began)
    began = time.perf_counter()
    initialize(tiny_config(), ALONE)
    notes.add(init_seconds=time.perf_counter() - began)
    x = torch.ones(1 << 20, device=setting.device)
    for name in ("first", "second"):
        notes.add(**{f"{name}_all_reduce_seconds": seconds(lambda: dist.all_reduce(x), setting.device)})
    notes.add(ok=bool((x == 1).all()), **best_rates(setting))
    dist.destroy_process_group()


def best_rates(setting: Setting) -> dict[str, float]:
    """One large bf16 product and one large copy: what no training step on this device can beat."""
    size, count = (64, 1 << 16) if setting.small or setting.device.type == "cpu" else (8192, 1 << 31)
    a, b = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(count, device=setting.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    product, copy = (
        sorted(seconds(f, setting.device) for _ in range(10))[5] for f in (lambda: a @ b, lambda: target.copy_(source))
    )
    return {"bf16_product_tflops": 2 * size**3 / product / 1e12, "copy_gb_per_second": 4 * count / copy / 1e9}


def resume(setting: Setting, notes: Notes) -> None:
    """Six steps at once against three, a checkpoint, a new engine and three more: every loss, weight and moment."""
    need_deepspeed()
    exact_products()
    # without it cuBLAS may choose other kernels from run to run; read when the first product is computed
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    notes.add(runs={})
    topology = initialize(tiny_config(), ALONE)
    kinds = list(MEMORIES)[:1] if setting.small else list(MEMORIES)
    for precision in ("fp32",) if setting.small else ("fp32", "bf16"):
        for kind in kinds:
            memory = MEMORIES[kind]
            config = tiny_config(
                model__memory=memory if kind != "none" else MEMORIES["delta"], training__precision=precision
            )
            found = interrupted(config, int(kind != "none"), topology)
            notes.values["runs"][f"{kind}, {precision}"] = found
            notes.add(ok=all(run["ok"] for run in notes.values["runs"].values()))
    notes.add(against_cpu=against_cpu(tiny_config(), topology, setting))
    notes.add(ok=notes.values["ok"] and notes.values["against_cpu"]["ok"])
    dist.destroy_process_group()


def interrupted(config: RunConfig, phase: int, topology: Topology) -> dict[str, Any]:
    """`repeats`: two runs from the start agree; `continues`: a run through a checkpoint agrees with them."""
    from training.checkpoint.folder import CheckpointFolder, RunState, restore
    from training.engine import Engine, build_engine

    def engine_of() -> Engine:
        return build_engine(config, config.phases[phase], topology)

    def steps(engine: Engine, first: int, last: int) -> list[tuple[float, float]]:
        results = [engine.train_step(batch_of(config, topology, s), LEARNING_RATE) for s in range(first, last)]
        return [(result.loss, result.grad_norm) for result in results]

    def state_of(engine: Engine) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in engine.read_state()}

    half = STEPS // 2
    engine = engine_of()
    whole, expected = steps(engine, 0, STEPS), state_of(engine)
    engine.close()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointFolder(Path(folder), topology)
        engine = engine_of()
        before = steps(engine, 0, half)
        checkpoints.save(engine, RunState(half, 0, 0, "", half, engine.optimizer_steps(), "", "", {}, {}))
        engine.close()
        engine = engine_of()
        latest = checkpoints.latest()
        assert latest is not None
        restore(engine, latest, topology, moments=True, rng=True)
        after, found = steps(engine, half, STEPS), state_of(engine)
        engine.close()
    repeats = before == whole[:half]
    differing = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    continues = after == whole[half:] and not differing
    return {
        "ok": continues,
        "repeats": repeats,
        "continues": continues,
        "differing_tensors": len(differing),
        "tensors": len(expected),
        "losses": [[loss for loss, _ in whole], [loss for loss, _ in before + after]],
    }


def batch_of(config: RunConfig, topology: Topology, step: int) -> StepBatch:
    return step_batch(step, topology, config.training.micro_batch_size)


def against_cpu(config: RunConfig, topology: Topology, setting: Setting) -> dict[str, Any]:
    """The engine's first losses on the device against a plain loop's on the CPU, fp32."""
    from training.engine import build_engine, decays

    engine = build_engine(config, config.phases[1], topology)
    found = [engine.train_step(batch_of(config, topology, s), LEARNING_RATE).loss for s in range(STEPS)]
    engine.close()
    net = LanguageModel(config.model)
    net.initialize(config.run.seed)
    groups = [
        {"params": [p for n, p in net.named_parameters() if decays(n, p) == decay], "weight_decay": 0.1 * decay}
        for decay in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=config.training.betas, eps=config.training.eps)
    expected = []
    for step in range(STEPS):
        batch, total = batch_of(config, topology, step), 0.0
        for micro in batch.micro_batches:
            logits = net(micro.ids, micro.documents[:, 1:]).logits
            losses = F.cross_entropy(logits.flatten(0, 1), micro.labels.flatten(), reduction="none")
            loss = (losses * micro.weights.flatten()).sum() / batch.valid
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(net.parameters(), config.training.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(total)
    difference = apart(expected, found)
    ok = difference <= LOSS_TOLERANCE
    return {"ok": ok, "loss_apart": difference, "tolerance": LOSS_TOLERANCE, "cpu": expected, "device": found}
