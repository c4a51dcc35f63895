"""Filters that leave documents out because of their content."""

from data_prep.config import FilterConfig


def rejected_by(text: str, filters: FilterConfig) -> str | None:
    """Returns the name of the first setting that leaves `text` out, or None when it is kept."""
    if len(text) < filters.min_characters:
        return "min_characters"
    if filters.max_characters is not None and len(text) > filters.max_characters:
        return "max_characters"
    if filters.min_alphabetic_share > 0 and alphabetic_share(text) < filters.min_alphabetic_share:
        return "min_alphabetic_share"
    if filters.max_repeated_line_share < 1 and repeated_line_share(text) > filters.max_repeated_line_share:
        return "max_repeated_line_share"
    if filters.min_mean_word_length > 0 or filters.max_mean_word_length is not None:
        length = mean_word_length(text)
        if length < filters.min_mean_word_length:
            return "min_mean_word_length"
        if filters.max_mean_word_length is not None and length > filters.max_mean_word_length:
            return "max_mean_word_length"
    return None


def alphabetic_share(text: str) -> float:
    """Returns the share of letters (of any script) among the characters that are not white space."""
    visible = "".join(text.split())
    return sum(map(str.isalpha, visible)) / len(visible) if visible else 0.0


def repeated_line_share(text: str) -> float:
    """Returns the share of repeated lines among the lines that are not blank."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def mean_word_length(text: str) -> float:
    """Returns the mean characters of a word; words are separated by white space."""
    words = text.split()
    return sum(map(len, words)) / len(words) if words else 0.0
