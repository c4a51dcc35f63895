"""Compares two models by the largest difference of their logits on random tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.network import LanguageModel
from training.errors import TrainingError

TOLERANCE = 1e-4  # of fp32 logits; differences from other orders of summation are below


def largest_difference(ours: LanguageModel, theirs: Any, lengths: Sequence[int], seed: int = 0) -> float:
    """Return the largest absolute difference of the logits over one stream of random tokens; NaN when a logit is NaN.

    Args:
        ours: a model in evaluation mode.
        theirs: a Transformers causal language model with the same vocabulary, in fp32, on the same device.
        lengths: number of tokens of each call; both models carry their state from one call to the next.
        seed: seed of the random tokens.
    """
    device = next(ours.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    state, past, worst = None, None, 0.0
    for length in lengths:
        ids = torch.randint(ours.config.vocab_size, (1, length), generator=generator).to(device)
        with torch.inference_mode():
            own = ours(ids, state=state)
            other = theirs(input_ids=ids, past_key_values=past, use_cache=True)
            difference = float((own.logits - other.logits.float()).abs().max())
        state, past = own.state, other.past_key_values
        worst = difference if difference != difference else max(worst, difference)
        if worst != worst:  # NaN
            return worst
    return worst


def load_in_transformers(folder: Path, runs_its_code: bool = False) -> Any:
    """Load a folder with Transformers, in fp32 and evaluation mode, on the CPU.

    runs_its_code: execute the folder's code; True only for a folder that this program has just written.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        net = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=runs_its_code, dtype=torch.float32)
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    return net.eval()


def check_difference(difference: float, tolerance: float, what: str) -> None:
    """Raise `TrainingError` when the difference is above the tolerance or NaN; what: beginning of the message."""
    if not difference <= tolerance:
        raise TrainingError(f"{what}: the largest logit difference is {difference:.3g}, above {tolerance:.3g}")
