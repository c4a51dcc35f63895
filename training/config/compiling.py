"""Whether the decoder layers of a phase can be compiled, each as one graph."""

from training.config.run import Phase, RunConfig


def compile_obstacle(config: RunConfig, phase: Phase) -> str | None:
    """Return what prevents a decoder layer from being compiled as one graph; None when nothing does."""
    model, parallel, training = config.model, config.parallel, config.training
    if phase.memory and model.memory.sequential:
        return f"memory {model.memory_name}, whose segments are computed one after the other"
    if phase.memory and model.explicit is not None:
        return "explicit memory, whose attention needs a mask for each call"
    for name, size in (("tensor", parallel.tensor), ("segment", parallel.segment)):
        if size > 1:
            return f"parallel.{name} {size}: layers exchange tensors with other ranks"
    if training.zero_stage == 3:
        return "training.zero_stage 3, which fetches each weight when it is used"
    if training.activation_checkpointing == "selective":
        return "training.activation_checkpointing selective, which recomputes parts of a layer"
    return None
