"""Compute the numbers of an interpretation, of a model and a prompt, which pictures and page show."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.files import write_text
from evaluation.interpret.reading import Reading, read
from evaluation.interpret.retrieval import retrieved
from model import LanguageModel
from model.errors import ModelError
from model.memory.interface import ablated, memories

FORMAT = 1
FILE = "interpretation.json"


@dataclass(frozen=True)
class Size:
    """Numbers of tokens of a heatmap, slots of a block, retrieved tokens of a read, and slots that are ablated."""

    tokens: int = 24
    slots: int = 20
    retrieved: int = 5
    ablated: int = 4


@dataclass(frozen=True)
class Analysis:
    """The content of the file that `launchers/interpret.py` writes, as plain lists and dictionaries."""

    format: int
    run: str
    checkpoint: str
    command: str
    kind: str
    segment_length: int
    prompt_tokens: int  # of `tokens`; the others were generated
    tokens: list[str]
    loss: list[float]  # nats of each token after the first
    layers: list[dict[str, Any]]
    ablated: list[dict[str, Any]]


def analyse(
    net: LanguageModel,
    ids: Sequence[int],
    spell: Callable[[int], str],
    *,
    prompt_tokens: int,
    run: str,
    checkpoint: str,
    command: str,
    size: Size | None = None,
) -> Analysis:
    """Read `ids`, one document, and return the analysis of each block's memory.

    spell: token id -> text; prompt_tokens: of `ids`, the others were generated.
    Raises `ModelError` when the model has no memory, or the text is too short to read a memory that was written.
    """
    size, memory, length = size or Size(), net.config.memory, net.config.segment_length
    if not net.memory_on or not memory.exists:
        raise ModelError(
            f"memory.kind: {memory.kind}{'' if net.memory_on else ', not yet switched on in this checkpoint'}; there "
            "is no memory to interpret: use a checkpoint of a run whose last phase has memory: on"
        )
    if len(ids) <= length + 1:
        raise ModelError(
            f"prompt: {len(ids)} tokens, but the memory is first written after {length} (model.segment_length) and "
            f"read after that; give at least {length + 2} tokens"
        )
    readings, logits = read(net, ids)
    labels = torch.tensor(list(ids[1:]))
    nats = F.cross_entropy(logits[:-1], labels, reduction="none")
    tokens = [spell(i) for i in ids]
    return Analysis(
        format=FORMAT,
        run=run,
        checkpoint=checkpoint,
        command=command,
        kind=memory.label,
        segment_length=length,
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        loss=_numbers(nats),
        layers=[_layer(reading, tokens, length, size) for reading in readings],
        ablated=_without(net, ids, readings, length, size),
    )


def _layer(reading: Reading, tokens: list[str], length: int, size: Size) -> dict[str, Any]:
    """Return one block's part of the JSON; positions count from 0."""
    own = torch.arange(len(tokens)) // length  # segment of each token
    share = torch.cat([reading.share(reading.address[own == s], _of(reading.bank, s)) for s in own.unique().tolist()])
    slots = share[length:].mean(dim=0).topk(min(size.slots, share.size(1))).indices.sort().values
    last = list(range(max(length, len(tokens) - size.tokens), len(tokens)))
    numbers: dict[str, Any] = {
        "layer": reading.layer,
        "slots": slots.tolist(),
        "share": _numbers(share[length:].mean(dim=0)),
        "heatmaps": _heatmaps(reading, share, last, slots, length),
        "gates": {name: _numbers(gate) for name, gate in reading.gates.items()},
        "error": reading.error,
        "answers": [_answers(reading, share, int(n), tokens, size) for n in slots],
    }
    if reading.bank is not None:
        numbers["state_norm"] = _numbers(reading.bank.flatten(1).norm(dim=1))
    if reading.recalled is not None:
        numbers["read_norm"] = _numbers(reading.recalled.flatten(1).norm(dim=1))
    if reading.writes:
        assert reading.bank is not None
        question = reading.address[-1:].expand(reading.bank.size(0), -1, -1)  # the last token's query, for every bank
        numbers["over_time"] = _rows(reading.share(question, reading.bank)[:, slots])
        numbers["retrieved"] = _retrievals(reading, last, tokens, length, size)
    return numbers


def _heatmaps(reading: Reading, share: Tensor, last: list[int], slots: Tensor, length: int) -> dict[str, Any]:
    """Return heatmaps of tokens and slots before and after the memory was updated.

    For memories through time: the prompt's last tokens, as if they read the bank that the first segment left, and as
    they read. For others: the first segment's tokens, which read the initial memory, and the prompt's last tokens.
    """
    after = {"positions": last, "values": _rows(share[last][:, slots])}
    if reading.writes and reading.bank is not None:
        early = reading.share(reading.address[last], reading.bank[1])
        return {"before": {"positions": last, "values": _rows(early[:, slots])}, "after": after}
    first = list(range(max(0, length - len(last)), length))
    return {"before": {"positions": first, "values": _rows(share[first][:, slots])}, "after": after}


def _answers(reading: Reading, share: Tensor, slot: int, tokens: list[str], size: Size) -> dict[str, Any]:
    """Return the tokens that read a slot most and, for memories through time, those whose writes it has at the end."""
    answers = {"slot": slot, "readers": _top(share[:, slot], tokens, size.retrieved, distinct=True)}
    if reading.writes:
        one = torch.zeros(1, *reading.address.shape[1:])
        one[..., slot] = 1.0
        answers["writers"] = _top(_strength(one, reading.writes)[0], tokens, size.retrieved)
    return answers


def _retrievals(reading: Reading, last: list[int], tokens: list[str], length: int, size: Size) -> list[dict[str, Any]]:
    """Return, for each of the last tokens, the earlier tokens with the largest parts in its read."""
    retrievals = []
    for segment in sorted({t // length for t in last}):
        readers = [t for t in last if t // length == segment]
        before = {name: x[: segment * length] for name, x in reading.writes.items()}
        strength = _strength(reading.address[readers], before)
        for t, row in zip(readers, strength, strict=True):
            retrievals.append({"position": t, "token": tokens[t], "from": _top(row, tokens, size.retrieved)})
    return retrievals


def _strength(queries: Tensor, writes: dict[str, Tensor]) -> Tensor:
    """Return each write's part in a read, [R, U] of sum 1: |weight| times the norm of the content, over heads."""
    weight = retrieved(queries, writes).abs() * writes["content"].norm(dim=-1).T  # [R, H, U]
    total = weight.sum(dim=1)
    return total / total.sum(dim=1, keepdim=True).clamp(min=1e-12)


@torch.no_grad()
def _without(net: LanguageModel, ids: Sequence[int], readings: list[Reading], length: int, size: Size) -> list[Any]:
    """Return loss and accuracy of the tokens after the first segment, with parts of the memory ablated.

    These are nothing, the whole memory, each block's memory, and the slots that are read most.
    """
    stream = torch.tensor([list(ids)], device=next(net.parameters()).device)
    labels = stream[0, length + 1 :]

    def score(name: str, **where: int) -> dict[str, Any]:
        logits = net(stream).logits[0, length:-1]
        right = float((logits.argmax(dim=-1) == labels).float().mean())
        return {"what": name, **where, "loss": float(F.cross_entropy(logits, labels)), "accuracy": right}

    rows = [score("nothing")]
    with ablated(net):
        rows.append(score("the whole memory"))
    if net.config.memory.sequential:  # one bank for all blocks
        for slot in _most_read(readings, length, size.ablated):
            with ablated(net, [slot]):
                rows.append(score("slot", slot=slot))
        return rows
    for reading, module in zip(readings, memories(net), strict=True):
        with ablated(module):
            rows.append(score("block", layer=reading.layer))
        for slot in _most_read([reading], length, size.ablated):
            with ablated(module, [slot]):
                rows.append(score("slot", layer=reading.layer, slot=slot))
    return rows


def _most_read(readings: list[Reading], length: int, count: int) -> list[int]:
    total = sum((r.address[length:].mean(dim=(0, 1)) for r in readings), torch.zeros(()))
    return total.topk(min(count, len(total))).indices.tolist()


def _of(bank: Tensor | None, segment: int) -> Tensor | None:
    return None if bank is None else bank[segment]


def _top(weights: Tensor, tokens: list[str], count: int, distinct: bool = False) -> list[dict[str, Any]]:
    """Return the largest weights of [U] above zero, with their tokens; distinct: each token's text only once."""
    largest: dict[Any, dict[str, Any]] = {}
    values, positions = weights.sort(descending=True)
    for p, v in zip(positions.tolist(), values.tolist(), strict=True):
        if v <= 0 or len(largest) == count:
            break
        largest.setdefault(tokens[p] if distinct else p, {"position": p, "token": tokens[p], "weight": round(v, 5)})
    return list(largest.values())


def _numbers(x: Tensor) -> list[float]:
    return [round(float(v), 5) for v in x]


def _rows(x: Tensor) -> list[list[float]]:
    return [_numbers(row) for row in x]


def save_analysis(analysis: Analysis, folder: Path) -> Path:
    """Write `folder`/interpretation.json atomically, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    write_text(path, json.dumps(asdict(analysis), ensure_ascii=False, allow_nan=False))
    return path


def load_analysis(path: Path) -> Analysis:
    """Read a file of `save_analysis`. Raises `ModelError` naming the file when it is not one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "wiped" in found:  # the key that earlier versions wrote
            found["ablated"] = found.pop("wiped")
        return Analysis(**found)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: is not an interpretation ({error}); make it again with launchers/interpret.py"
        ) from None
