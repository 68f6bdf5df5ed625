"""A matplotlib figure as SVG that stands inside of a web page and takes the page's colours.

Text stays text, in the page's font; colours that `plots` draws with become CSS variables with themselves as default, so
that a page may set others for dark screens. Nothing outside of the page is named.
"""

from __future__ import annotations

import html
import io
import re

import matplotlib
from matplotlib.figure import Figure

from ecgfm.eval.plots import COLORS, GREY

VARIABLES = {color: f"--series-{number}" for number, color in enumerate(COLORS)}
VARIABLES |= {GREY: "--faint", "#e6e6e6": "--line", "#000000": "--ink"}
_STYLE = re.compile(r'(?<= style=")[^"]*')
_COLOR = re.compile("|".join(VARIABLES))
_FAMILY = re.compile(r"font-family: [^;]*")
_FONT = re.compile(r"\bfont: ((?:[a-z0-9]+ )*?[\d.]+px) [^;]*")
# Groups are numbered alike in all figures, and nothing refers to them.
_NUMBERED = re.compile(r' id="(?:[A-Za-z0-9]+|matplotlib\.axis)_\d+"')


def inline_svg(figure: Figure, title: str) -> str:
    """Return the figure as an `<svg>` element.

    Args:
        figure: Drawn with the colours of `plots`.
        title: For those who cannot see it; must differ from the other titles on the page, whose ids it keeps apart.
    """
    buffer = io.StringIO()
    # Ids are hashes of content and salt: without one of its own, two figures on a page would share clips and markers.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.DOTALL)  # it would hold for the whole page
    text = _NUMBERED.sub("", text)
    text = _STYLE.sub(lambda found: _style(found[0]), text)
    head, rest = text.split(">", 1)
    width = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    assert width, head
    name = html.escape(title, quote=True)
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width[1]} '
        f'{width[2]}" role="img" aria-label="{name}">'
    )
    return start + rest


def _style(text: str) -> str:
    text = _COLOR.sub(lambda found: f"var({VARIABLES[found[0]]}, {found[0]})", text)
    text = _FAMILY.sub("font-family: var(--font, sans-serif)", text)
    return _FONT.sub(r"font: \1 var(--font, sans-serif)", text)
