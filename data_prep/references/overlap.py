"""How much of a reference stands in a training sample: what must not be looked up to be learned."""

from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import LCSseq


def overlaps(sample: Sequence[int], reference: Sequence[int], limit: float) -> bool:
    """Whether overlap(sample, reference) > limit; tokens each.

    overlap = LCS(t, r) / |r|, the longest common subsequence with all its tokens of t within a stretch of 2 |r|
    (arXiv 2407.01178, section on data leakage).
    """
    if not reference:
        return False
    # LCS > limit · |r|, in whole numbers; the small term keeps 0.9 · 10 = 9.000000000000002 from counting as more.
    enough = int(limit * len(reference) + 1e-9) + 1
    return _common(sample, reference, enough) and _within_span(sample, reference, enough)


def _common(sample: Sequence[int], reference: Sequence[int], enough: int) -> bool:
    """Cheap and necessary: enough equal tokens at all, then enough of them in order."""
    if enough > len(reference):
        return False
    shared = Counter(sample) & Counter(reference)
    return shared.total() >= enough and LCSseq.similarity(sample, reference, score_cutoff=enough) >= enough


def _within_span(sample: Sequence[int], reference: Sequence[int], enough: int) -> bool:
    span, members = 2 * len(reference), set(reference)
    member = [token in members for token in sample]
    inside = sum(member[:span])  # how many tokens of the stretch that begins at `begin` stand in the reference
    for begin in range(len(sample)):
        if inside < enough and begin + span >= len(sample):
            return False
        # A best stretch can be moved on until it begins with a token that is matched.
        if member[begin] and inside >= enough:
            found = LCSseq.similarity(sample[begin : begin + span], reference, score_cutoff=enough)
            if found >= enough:
                return True
        inside -= member[begin]
        inside += begin + span < len(sample) and member[begin + span]
    return False
