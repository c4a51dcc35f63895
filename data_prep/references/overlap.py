"""The overlap of a reference with a training sample, so that a sample's own text is not retrieved for it."""

from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import LCSseq


def overlaps(sample: Sequence[int], reference: Sequence[int], limit: float) -> bool:
    """Whether overlap(sample, reference) > limit; both are token ids.

    overlap = LCS(t, r) / |r|, the longest common subsequence whose tokens in t lie within 2 |r| consecutive tokens
    (arXiv 2407.01178, section on data leakage).
    """
    if not reference:
        return False
    # LCS > limit · |r| in whole numbers; the small term corrects products like 0.9 · 10 = 9.000000000000002.
    enough = int(limit * len(reference) + 1e-9) + 1
    return _common(sample, reference, enough) and _within_span(sample, reference, enough)


def _common(sample: Sequence[int], reference: Sequence[int], enough: int) -> bool:
    """A cheap necessary condition: enough equal tokens, and enough of them in the same order."""
    if enough > len(reference):
        return False
    shared = Counter(sample) & Counter(reference)
    return shared.total() >= enough and LCSseq.similarity(sample, reference, score_cutoff=enough) >= enough


def _within_span(sample: Sequence[int], reference: Sequence[int], enough: int) -> bool:
    span, members = 2 * len(reference), set(reference)
    member = [token in members for token in sample]
    inside = sum(member[:span])  # tokens of sample[begin : begin + span] that are in the reference
    for begin in range(len(sample)):
        if inside < enough and begin + span >= len(sample):
            return False
        # Some best window begins with a token of the reference.
        if member[begin] and inside >= enough:
            common = LCSseq.similarity(sample[begin : begin + span], reference, score_cutoff=enough)
            if common >= enough:
                return True
        inside -= member[begin]
        inside += begin + span < len(sample) and member[begin + span]
    return False
