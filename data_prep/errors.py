"""The error that this package raises for bad input."""


class DataError(ValueError):
    """Bad input. The message names the setting or file, the value found, the rule and the way out."""
