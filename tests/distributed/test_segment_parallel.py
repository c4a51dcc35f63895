"""What ranks that share a sample's segments send each other, and what sharing saves."""

import hashlib
import resource
from typing import Any

import pytest
import torch
import torch.distributed as dist

from model.network import LanguageModel
from model.parallel import is_sharded
from tests.distributed.spawn import run_ranks
from tests.distributed.training_case import step_batch, tiny_config
from training.batches import MicroBatch, StepBatch
from training.config import RunConfig
from training.distributed.topology import RankInfo, initialize
from training.engine import build_engine

LAYERS, HEADS, SLOTS, WIDTH = 4, 2, 4, 32 // 2


def bytes_sent(config: RunConfig, batch: int, length: int) -> list[int]:
    """Bytes of every point-to-point message of this rank in one forward and its backward; no collective may occur."""
    topology = initialize(config, RankInfo.discover())
    net = LanguageModel(config.model, topology.parallel)
    net.initialize(0)
    sizes: list[int] = []
    original = dist.send

    def send(tensor: torch.Tensor, *arguments: Any, **named: Any) -> None:
        sizes.append(tensor.numel() * tensor.element_size())
        original(tensor, *arguments, **named)

    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a collective between the ranks of a segment group")

    dist.send = send  # this process ends with the test
    for name in ("all_reduce", "all_gather", "all_to_all", "reduce_scatter", "broadcast"):
        setattr(dist, name, refuse)
    rank, size = topology.segment_share
    begin = rank * length // size
    ids = torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(0))
    own = ids[:, begin : begin + length // size]
    documents = torch.zeros_like(own)
    hidden, _ = net.hidden(own, documents, net.after(documents[:, 0], begin) if begin else None)
    hidden.square().sum().backward()
    return sizes


@pytest.mark.parametrize("kind, bank", [("lm2", HEADS * SLOTS * WIDTH), ("delta", HEADS * WIDTH * WIDTH)])
def test_a_bank_travels_per_layer_whatever_the_number_of_segments(kind: str, bank: int) -> None:
    memory = {"kind": kind, "heads": HEADS} | ({"slots": SLOTS} if kind == "lm2" else {})
    batch = 3
    for length in (32, 256):  # 4 and 32 segments
        config = tiny_config(model__memory=memory, data__sequence_length=32, parallel={"segment": 2})
        forward, backward = run_ranks(bytes_sent, 2, config, batch, length)
        # the first rank sends banks ahead, the second their gradients back
        assert forward == backward == [batch * bank * 4] * LAYERS


def replicated_hashes(config: RunConfig, steps: int) -> dict[str, str]:
    """A hash of every replicated parameter of this rank after training."""
    topology = initialize(config, RankInfo.discover())
    engine = build_engine(config, config.phases[1], topology)
    for step in range(steps):
        engine.train_step(step_batch(step, topology, config.training.micro_batch_size), 3e-3)
    return {
        name: hashlib.sha256(parameter.detach().numpy().tobytes()).hexdigest()
        for name, parameter in engine.parameters.items()
        if not is_sharded(parameter)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "memory, sequence",
    [
        ({"kind": "lm2", "slots": 4, "heads": 2}, False),
        ({"kind": "lm2", "slots": 4, "heads": 2}, True),
        ({"kind": "lm2", "flow": "depth", "heads": 2}, False),
    ],
)
def test_replicated_parameters_stay_identical_for_100_steps(memory: dict[str, Any], sequence: bool) -> None:
    config = tiny_config(model__memory=memory, parallel={"tensor": 2, "sequence": sequence})
    found = run_ranks(replicated_hashes, 4, config, 100, timeout=280)
    assert found[0] and all(other == found[0] for other in found)


def peak_growth(config: RunConfig, length: int) -> float:
    """MiB by which training on samples of `length` tokens raised this process's peak memory."""
    torch.set_num_threads(1)
    topology = initialize(config, RankInfo.discover())
    engine = build_engine(config, config.phases[1], topology)
    own = length // topology.segment_share[1]
    ids = torch.randint(0, 64, (1, own + 1), generator=torch.Generator().manual_seed(topology.info.rank))
    documents = torch.zeros(1, own + 1, dtype=torch.int64)
    if topology.segment_share[0] == 0:
        documents[:, 0] = -1
    batch = StepBatch([MicroBatch(ids[:, :-1], documents, ids[:, 1:], torch.ones(1, own))])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        engine.train_step(batch, 1e-3)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.mark.slow
def test_64k_tokens_train_on_4_ranks_in_the_memory_of_16k() -> None:
    def config(length: int, segment: int) -> RunConfig:
        return tiny_config(
            data__sequence_length=length,
            model__segment_length=256,
            training__micro_batch_size=1,
            parallel={"segment": segment},
            phases=[
                {"name": name, "memory": on, "tokens": length, "tokens_per_step": length, "lr": {"peak": 1e-3}}
                for name, on in (("warmup", False), ("memory", True))
            ],
        )

    (alone,) = run_ranks(peak_growth, 1, config(16384, 1), 16384, timeout=280)
    shared = run_ranks(peak_growth, 4, config(65536, 4), 65536, timeout=280)
    print(f"16K on one rank: {alone:.0f} MiB; 64K on four: {[round(x) for x in shared]} MiB a rank")
    assert alone > 50  # the activations, not noise
    assert max(shared) < 1.1 * alone
