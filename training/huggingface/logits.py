"""Proof that two models compute the same: the largest difference of their logits on random tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.network import LanguageModel
from training.errors import TrainingError

TOLERANCE = 1e-4  # fp32, of logits; what different orders of summation leave


def largest_difference(ours: LanguageModel, theirs: Any, lengths: Sequence[int], seed: int = 0) -> float:
    """Largest absolute difference of the logits over one stream of random tokens.

    Args:
        ours: in evaluation mode.
        theirs: a Transformers causal language model of the same vocabulary, fp32, on the same device.
        lengths: tokens of each call; what the models carry goes from one call to the next, and only one call's logits
            are held at a time.
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
        if worst != worst:  # not a number: a weight or a logit is
            return worst
    return worst


def load_in_transformers(folder: Path, runs_its_code: bool = False) -> Any:
    """A folder's model in fp32, in evaluation mode, on the CPU.

    runs_its_code: True only for a folder that this program has written itself.
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
    """Raise `TrainingError` when the difference is above the tolerance or no number."""
    if not difference <= tolerance:
        raise TrainingError(f"{what}: the largest logit difference is {difference:.3g}, above {tolerance:.3g}")
