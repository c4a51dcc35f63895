"""The error that this package raises for bad input, and an error's text in one line."""


class DataError(ValueError):
    """Bad input. The message names the setting or file, the value found, the rule and the way out."""


def one_line(error: object, limit: int | None = 300) -> str:
    """Return the text of `error` in one line, cut after `limit` characters (None: not cut)."""
    return " ".join(str(error).split())[:limit]
