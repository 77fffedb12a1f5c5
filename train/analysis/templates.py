"""The Jinja2 templates beside this file: the report's page and the model's card."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(name: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """The text of the template `name` with these values. An HTML template's are escaped; a missing one is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=not name.endswith(".html.j2"),
    )
    environment.filters |= filters
    return environment.get_template(name).render(values)
