"""What the memories computed while one stream of tokens was read, in a form all kinds share.

Everything here comes from the tensors that `model.memory.recording` kept of the model's own forward pass, or is
computed from them; `Reading.error` says how far a computed read is from the one the model made.

L tokens read, S banks they read (one a segment), H heads, N slots, d width of a slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model import LanguageModel
from model.memory import recording

Tape = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Reading:
    """One block's memory over one prompt.

    Attributes:
        layer: number of the decoder block.
        address: fp32 [L, H, N], the weight with which a token's query asks each slot; see the kind for its scale.
        bank: fp32 [S, H, N, d], what each segment's tokens found in the slots; of lm2 depth, whose slots are whole
            ([S, 1, N, D]), what this block left in them; None for rmt, whose vectors are tokens.
        recalled: fp32 [L, H, d], what each token's read returned, as the model computed it; None for rmt.
        gates: name -> mean opening, fp32 [L] for gates of tokens, [S] for gates of slots.
        error: largest difference between `recalled` and the same computed from `address` and `bank`.
        writes: how every token changed the bank (`retrieval.Writes`' tensors); empty for kinds whose reads cannot be
            taken apart into writes.
    """

    layer: int
    address: Tensor
    bank: Tensor | None
    recalled: Tensor | None
    gates: dict[str, Tensor]
    error: float
    writes: dict[str, Tensor] = field(default_factory=dict)

    def share(self, address: Tensor, bank: Tensor | None) -> Tensor:
        """How much of a read comes from each slot, [R, N] in 0..1, mean over heads.

        Softmax memories (lm2 depth, rmt): the address itself. Those through time have no softmax: address times the
        norm of what the slot holds, over the sum; an empty bank gives zeros.
        """
        if not self.writes or bank is None:
            return address.mean(dim=1)
        weight = address * bank.norm(dim=-1)  # [R, H, N]
        return (weight / weight.sum(dim=-1, keepdim=True).clamp(min=1e-12)).mean(dim=1)


@torch.no_grad()
def read(net: LanguageModel, ids: Sequence[int]) -> tuple[list[Reading], Tensor]:
    """Run `ids`, one document, through `net`; every hosting block's reading and the logits fp32 [L, V]."""
    device = next(net.parameters()).device
    with recording(net) as tapes:
        logits = net(torch.tensor([list(ids)], device=device)).logits[0].cpu()
    hosts = sorted(net.config.memory.hosts(net.config.num_layers)) if net.memory_on else []
    match net.config.memory.kind, net.config.memory.flow:
        case "rmt", _:
            readings = _vectors(net, tapes, hosts)
        case "lm2", "depth":
            readings = [_places(net, tape, layer) for layer, tape in zip(hosts, tapes, strict=True)]
        case _:
            readings = [_segmental(tape, layer) for layer, tape in zip(hosts, tapes, strict=True)]
    return readings, logits


def _segmental(tape: Tape, layer: int) -> Reading:
    """lm2 through time and delta: one call a piece of whole segments, one for the open segment."""
    address, recalled = (_tokens(tape[name]) for name in ("query", "recalled"))
    bank = torch.cat([x[0].float().cpu() for x in tape["bank"]])
    own = torch.arange(address.size(0)) // tape["query"][0].size(3)  # the bank each token read
    rebuilt = torch.einsum("lhn,lhnd->lhd", address, bank[own])
    gates = {name.removeprefix("gate_"): _gate(x) for name, x in tape.items() if name.startswith("gate_")}
    kept = ("key", "content", "strength", "log_decay")
    writes = {name: _tokens(tape[name]) for name in kept if name in tape}
    return Reading(layer, address, bank, recalled, gates, float((rebuilt - recalled).abs().max()), writes)


def _places(net: LanguageModel, tape: Tape, layer: int) -> Reading:
    """The published LM2: a softmax over the slots of earlier places; a slot is a place of the segment."""
    places = net.config.segment_length
    queries, keys, values, recalled, slots = (tape[name] for name in ("query", "key", "value", "recalled", "slots"))
    address, banks, error = [], [], 0.0
    for q, k, v, r, left in zip(queries, keys, values, recalled, slots, strict=True):
        scores = q @ k.transpose(2, 3) * q.size(-1) ** -0.5  # [1, H, n, o+n]
        ahead = k.size(2) - q.size(2)
        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(ahead), float("-inf"))
        top_k = net.config.memory.top_k
        if top_k is not None:
            least = scores.topk(min(top_k, scores.size(-1)), dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        weights = scores.softmax(dim=-1)
        error = max(error, float(((weights @ v).transpose(1, 2) - r).abs().max()))
        missing = places - k.size(2)
        address.append(torch.nn.functional.pad(weights, (0, missing))[0].transpose(0, 1).float().cpu())
        banks.append(torch.nn.functional.pad(left, (0, 0, 0, missing)).float().cpu())  # [1, N, D]
    gates = {name.removeprefix("gate_"): _gate(x) for name, x in tape.items() if name.startswith("gate_")}
    found = torch.cat([r[0] for r in recalled]).float().cpu()
    return Reading(layer, torch.cat(address), torch.stack(banks), found, gates, error)


def _vectors(net: LanguageModel, tapes: list[Tape], hosts: list[int]) -> list[Reading]:
    """RMT: what is left for the memory of each token's softmax over [carried; initial; tokens; write]."""
    m, length = net.config.slots, net.config.segment_length
    readings = []
    for layer, tape in zip(hosts, tapes, strict=True):
        address = []
        for weights in tape["weights"]:  # [1, Hq, Q, K]
            tokens = min(length, weights.size(3) - 2 * m)
            seen = weights[0, :, 2 * m : 2 * m + tokens, : 2 * m].float().cpu()
            # a token sees the carried vectors or, in the first segment, the initial ones; the others weigh nothing
            address.append((seen[..., :m] + seen[..., m:]).transpose(0, 1))
        readings.append(Reading(layer, torch.cat(address), None, None, {}, 0.0))
    return readings


def _tokens(calls: list[Tensor]) -> Tensor:
    """Calls' [1, S, H, n, …] -> fp32 [L, H, …] on the CPU."""
    return torch.cat([x[0].transpose(1, 2).flatten(0, 1) for x in calls]).float().cpu()


def _gate(calls: list[Tensor]) -> Tensor:
    """Mean opening by token, or by segment for gates that stand once a segment."""
    parts = []
    for x in calls:
        one = x[0].float().cpu()
        if one.dim() == 4:  # [S, H, n or 1, …]
            one = one.transpose(1, 2)
        if one.dim() > 2:
            one = one.flatten(0, 1)  # [S*n or S, …]
        parts.append(one.flatten(1).mean(dim=1))
    return torch.cat(parts)
