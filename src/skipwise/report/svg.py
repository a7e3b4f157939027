"""Figure -> PNG, SVG file, or SVG element inside an HTML page. Contract: same figure, same bytes.

The inline SVG refers to nothing outside itself, its ids carry the figure's name (two figures on one page
must not share them), and its named colours become CSS variables, so that one drawing serves a light and a
dark page.
"""

import io
import itertools
import re
import warnings
from html import escape
from typing import Any

from matplotlib.figure import Figure

from skipwise.report import style

PNG_DPI = 150

SCHEME = {
    style.INK: "currentColor",
    style.MUTED: "var(--muted)",
    style.GRID: "var(--grid)",
    style.PAPER: "var(--paper)",
    style.BLUE: "var(--blue)",
    style.VERMILION: "var(--vermilion)",
    style.GREEN: "var(--green)",
    style.PURPLE: "var(--purple)",
    style.GREY: "var(--grey)",
    style.SKY: "var(--sky)",
    style.BROWN: "var(--brown)",
}

_PREAMBLE = re.compile(r"\A.*?(?=<svg)|<metadata>.*?</metadata>", re.DOTALL)
_ROOT = re.compile(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>")
_COLOR = re.compile(r"#[0-9a-f]{6}\b")
_ID = re.compile(r'(?<= id=")[^"]+')


def png(figure: Figure) -> bytes:
    """The figure on white, 150 dots an inch."""
    return _saved(figure, format="png", dpi=PNG_DPI)


def svg_file(figure: Figure) -> bytes:
    """The figure on white as an SVG file."""
    text = _saved(figure, format="svg", metadata={"Date": None}).decode("utf-8")
    return _with_own_ids(text, "figure").encode("utf-8")


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as one `<svg>` element, transparent, with `alt` as its accessible name."""
    text = _saved(figure, format="svg", transparent=True, metadata={"Date": None}).decode("utf-8")
    text = _PREAMBLE.sub("", text)
    text = _with_own_ids(text, name).replace("xlink:href=", "href=")
    text = _COLOR.sub(lambda match: SCHEME.get(match[0], match[0]), text)
    width = 1.2 * figure.get_figwidth() * 96  # CSS pixels: a little over the size it was drawn for
    name_and_size = f'role="img" aria-label="{escape(alt)}" style="max-width:{width:.0f}px"'
    return _ROOT.sub(lambda match: f'<svg viewBox="{match[1]}" {name_and_size}>', text, count=1).strip()


def _saved(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A title in a script the font lacks is drawn as boxes; the page's own text still shows it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def _with_own_ids(text: str, name: str) -> str:
    """Numbers the ids in order of appearance: matplotlib's are random, and the same in every figure.

    Marks of one kind share an id, which nothing refers to: each gets its own.
    """
    numbered: dict[str, str] = {}
    count = itertools.count()

    def own(match: re.Match[str]) -> str:
        new = f"{name}-{next(count)}"
        numbered.setdefault(match[0], new)
        return new

    text = _ID.sub(own, text)
    return re.sub(r'(?<=#)[^")#]+(?=[")])', lambda match: numbered.get(match[0], match[0]), text)
