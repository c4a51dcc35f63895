"""Move torch's CPU generator, a Mersenne Twister MT19937, past many numbers without computing them.

Every bit of the twister's words s is a linear recurrence over GF(2) with one characteristic polynomial phi of degree
19937 (Matsumoto and Nishimura 1998). With p(x) = x^n mod phi, s[j + n] is the sum, an XOR, of those s[j + i] for which
p has the term x^i (Haramoto et al. 2008, "Efficient jump ahead for F2-linear random number generators").
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DEGREE = 19937
WORDS, MIDDLE, TWIST = 624, 397, 0x9908B0DF
_STATE_BYTES = 5056  # of a generator of torch: seed, left, seeded, next, 624 words of 64 bits, a normal number
_LEFT, _WORDS = slice(8, 12), slice(24, 24 + 8 * WORDS)
_ROWS = 512  # words that are added at once: they stay in the processor's cache


def jump(generator: torch.Generator, count: int) -> bool:
    """Move a generator that was seeded and has drawn nothing past `count` 32-bit numbers.

    Returns False, and leaves the generator alone, where its state is not laid out as is known here.
    """
    state = generator.get_state()
    known = state.numel() == _STATE_BYTES and int(state[_LEFT].view(torch.int32)) == 1
    if not known or _words(state)[0] != generator.initial_seed() & 0xFFFFFFFF:
        return False
    stream = [_words(state)]
    block = torch.empty(WORDS // 2, dtype=torch.int64)
    while len(stream) * WORDS < DEGREE + WORDS:
        block.random_(-(2**63), None, generator=generator)  # takes as many numbers as the state has
        stream.append(_words(generator.get_state()))
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate(stream), WORDS)
    words, terms = np.zeros(WORDS, np.uint32), _terms(count)
    for begin in range(0, len(terms), _ROWS):
        words ^= np.bitwise_xor.reduce(windows[terms[begin : begin + _ROWS]], axis=0)
    state[_WORDS] = torch.from_numpy(words.astype(np.int64)).view(torch.uint8)
    generator.set_state(state)
    return True


def _words(state: Tensor) -> npt.NDArray[np.uint32]:
    """The twister's words, uint32 [624], of a generator's state."""
    return state[_WORDS].view(torch.int64).numpy().astype(np.uint32)


@cache
def _terms(count: int) -> npt.NDArray[np.int64]:
    """Exponents of x^count mod phi, int64 [terms]."""
    power = 1
    for bit in f"{count:b}":
        power = int(f"{power:b}", 4) << int(bit)  # its square, which has no mixed terms here, and times x for a 1
        while high := power >> DEGREE:
            power &= (1 << DEGREE) - 1
            for exponent in _tail():
                power ^= high << exponent
    return np.flatnonzero([digit == "1" for digit in reversed(f"{power:b}")])


@cache
def _tail() -> tuple[int, ...]:
    """Exponents of phi but the highest (appendix A of the paper by Matsumoto and Nishimura, with r = 31 and w = 32)."""
    whole, short = {WORDS, MIDDLE}, {WORDS - 1, MIDDLE - 1}
    powers: list[set[int]] = [{0}]  # of t^623 + t^396
    while len(powers) < 32:
        powers.append(_times(powers[-1], short))
    phi = _times(whole, powers[31])
    for place in range(31):
        if TWIST >> place & 1:
            phi ^= _times(whole, powers[30 - place])
    phi ^= {0} if TWIST >> 31 else set()
    return tuple(sorted(phi - {DEGREE}))


def _times(first: set[int], second: set[int]) -> set[int]:
    """The product of two polynomials over GF(2), given by their exponents."""
    product: set[int] = set()
    for exponent in first:
        product ^= {exponent + other for other in second}
    return product
