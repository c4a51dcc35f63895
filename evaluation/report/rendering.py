"""Render Jinja templates; HTML is escaped, Markdown is not."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(template: str, **values: Any) -> str:
    """Return the text of `templates/TEMPLATE` with these values. A missing value raises `jinja2.UndefinedError`."""
    environment = Environment(
        loader=PackageLoader("evaluation.report"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def anchor(text: str) -> str:
    """Return the id of a heading, for links within the page."""
    return "".join(c if c.isalnum() else "-" for c in text.lower())
