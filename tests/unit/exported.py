"""Models without a run, for the tests of what Hugging Face's tools make of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers.dynamic_module_utils as dynamic

from model import LanguageModel
from training.config import parse_config
from training.inference import Trained
from training.run_state import RunState


def trained(net: LanguageModel, sequence_length: int = 16, data: Path = Path("data")) -> Trained:
    """As `load_trained` would give it."""
    phase = {"name": "memory", "memory": bool(net.memory_parameters()), "tokens": 64, "tokens_per_step": 64}
    config = parse_config(
        {
            "run": {"name": "tiny"},
            "data": {"path": str(data), "sequence_length": sequence_length},
            "model": net.config.model_dump(mode="json"),
            "phases": [phase | {"lr": {"peak": 1e-3}}],
            "training": {"micro_batch_size": 1},
        }
    )
    state = RunState(1, 64, 4, "memory", 1, {}, "", "", {}, {})
    return Trained(net.eval(), config, state, Path("runs/tiny/checkpoints/step-00000001"))


@pytest.fixture(autouse=True, scope="module")
def own_code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In a module that imports it: Transformers copies folders' code here, not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("code")
        patch.setattr(dynamic, "HF_MODULES_CACHE", str(cache))
        patch.syspath_prepend(str(cache))
        yield cache
