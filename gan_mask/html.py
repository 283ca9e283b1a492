"""Pages that need nothing outside of themselves, from the templates in assets/page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from gan_mask import files

TEMPLATES = Path(__file__).parent / "assets" / "page"


def write(path: Path, template: str, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> None:
    """A file of what `render` gives."""
    files.write_text(path, render(template, filters, **values))


def render(template: str, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Values may hold anything, they are shown as text (unless the template marks them as safe)."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    html = environment.get_template(template).render(**values)
    # File names need not be UTF-8, the page is.
    return html.encode("utf-8", "backslashreplace").decode()


def data_uri(image: Image.Image, side: int, enlarge: bool = False) -> str:
    """The picture, no larger (with `enlarge` no smaller either) than side x side px, as a JPEG inside of a URL."""
    small = image.convert("RGB")
    if enlarge and max(small.size) < side:
        factor = side / max(small.size)
        small = small.resize((round(small.width * factor), round(small.height * factor)), Image.Resampling.LANCZOS)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
