"""Jinja templates: what goes into HTML is escaped, what goes into Markdown is plain text."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(template: str, **values: Any) -> str:
    """The text of `templates/TEMPLATE` with these values; a value that is missing raises."""
    environment = Environment(
        loader=PackageLoader("evaluation.report"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def anchor(text: str) -> str:
    """An id for a link within the page."""
    return "".join(c if c.isalnum() else "-" for c in text.lower())
