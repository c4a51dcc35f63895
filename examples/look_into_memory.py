"""Train a small memory to recall, then draw from which earlier tokens its answers came.

    python examples/look_into_memory.py --output memory.png

Pairs of a key and a value stand among noise in three segments; the fourth segment asks for their values. Attention sees
one segment, so an answer can only come through the memory. A read of the memory is a weighted sum of earlier
writes; the picture shows these weights.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.interpret.reading import read
from evaluation.interpret.retrieval import retrieved
from model import LanguageModel, MemoryConfig, ModelConfig, build_model

KEYS, VALUES, NOISE = 16, 8, 8
QUESTION = KEYS + VALUES + NOISE  # the token that says: the next one is a key whose value is asked
SEGMENT, SEGMENTS, PAIRS = 16, 4, 3


def samples(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids int64 [count, L] and labels [count, L], -100 where nothing is asked."""
    length, span = SEGMENTS * SEGMENT, (SEGMENTS - 1) * SEGMENT
    ids = KEYS + VALUES + torch.randint(0, NOISE, (count, length), generator=generator)
    labels = torch.full_like(ids, -100)
    rows = torch.arange(count).unsqueeze(1)
    keys = torch.rand(count, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = KEYS + torch.randint(0, VALUES, (count, PAIRS), generator=generator)
    places = 2 * torch.rand(count, span // 2, generator=generator).argsort(1)[:, :PAIRS]
    ids[rows, places], ids[rows, places + 1] = keys, values
    asked = torch.rand(count, PAIRS, generator=generator).argsort(1)
    spots = span + 2 * torch.arange(PAIRS).expand(count, -1)
    ids[rows, spots], ids[rows, spots + 1] = QUESTION, keys.gather(1, asked)
    labels[rows, spots + 1] = values.gather(1, asked)
    return ids, labels


def train(steps: int, seed: int) -> tuple[LanguageModel, float]:
    """A model of two blocks with a delta memory each, and its share of right answers on new samples."""
    config = ModelConfig(
        vocab_size=QUESTION + 1, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=4, ffn_size=128,
        segment_length=SEGMENT, memory=MemoryConfig(kind="delta", heads=2),
    )  # fmt: skip
    net = build_model(config, seed=seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        ids, labels = samples(32, generator)
        loss = F.cross_entropy(net(ids).logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    ids, labels = samples(256, torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        right = (net.eval()(ids).logits.argmax(-1) == labels)[labels >= 0]
    return net, right.float().mean().item()


def draw(net: LanguageModel, ids: list[int], output: Path) -> None:
    """Heatmaps, one per block: rows are the tokens of the last segment, columns the earlier tokens they read."""
    from matplotlib.figure import Figure

    start = len(ids) - SEGMENT
    readings, _ = read(net, ids)
    figure = Figure(figsize=(10, 2.6 * len(readings)), layout="constrained")
    for axes, reading in zip(figure.subplots(len(readings), 1, squeeze=False)[:, 0], readings, strict=True):
        writes = {name: tensor[:start] for name, tensor in reading.writes.items()}
        weights = retrieved(reading.address[start:], writes).abs().mean(dim=1)  # [tokens, earlier tokens]
        image = axes.imshow(weights[: 2 * PAIRS].numpy(), aspect="auto", cmap="viridis")
        axes.set_title(f"block {reading.layer}: weight of an earlier write in a read")
        axes.set_yticks(range(2 * PAIRS), [name(token) for token in ids[start : start + 2 * PAIRS]])
        axes.set_xticks(range(start), [name(token) for token in ids[:start]], rotation=90, fontsize=7)
        figure.colorbar(image, ax=axes)
    figure.savefig(output, dpi=110)


def name(token: int) -> str:
    """A token as the axis shows it."""
    if token == QUESTION:
        return "?"
    kind, number = ("k", token) if token < KEYS else ("v", token - KEYS)
    return f"{kind}{number}" if token < KEYS + VALUES else "·"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="training steps (default 400)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("memory.png"), help="picture (default memory.png)")
    options = parser.parse_args()
    net, right = train(options.steps, options.seed)
    print(f"right answers: {right:.0%}; a guess is right in one of {VALUES}")
    ids, _ = samples(1, torch.Generator().manual_seed(options.seed + 2))
    draw(net, ids[0].tolist(), options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
