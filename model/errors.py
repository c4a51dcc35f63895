"""What the model refuses, in words that say what to change."""


class ModelError(ValueError):
    """A model configuration, a state or a weight that does not fit; the message names field, value, rule, way out."""
