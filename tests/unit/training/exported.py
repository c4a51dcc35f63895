"""Models without a run, for the tests of what Hugging Face's tools make of them."""

from pathlib import Path

from model import LanguageModel
from training.checkpoint.run_state import RunState
from training.checkpoint.trained_model import LoadedModel
from training.config import parse_config


def trained(net: LanguageModel, sequence_length: int = 16, data: Path = Path("data")) -> LoadedModel:
    """As `load_model` would give it."""
    phase = {"name": "memory", "memory": bool(net.memory_parameters()), "tokens": 64, "tokens_per_step": 64}
    paths = {"path": str(data)} | ({"references": {"path": str(data / "references")}} if net.explicit else {})
    config = parse_config(
        {
            "run": {"name": "tiny"},
            "data": paths | {"sequence_length": sequence_length},
            "model": net.config.model_dump(mode="json"),
            "phases": [phase | {"lr": {"peak": 1e-3}}],
            "training": {"micro_batch_size": 1},
        }
    )
    state = RunState(1, 64, 4, "memory", 1, {}, "", "", {}, {})
    return LoadedModel(net.eval(), config, state, Path("runs/tiny/checkpoints/step-00000001"))
