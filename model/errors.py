"""The error that the model raises for what a user can correct."""


class ModelError(ValueError):
    """A configuration, state or weight does not fit the model; the message names field, value, rule and way out."""
