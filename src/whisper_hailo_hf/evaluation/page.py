"""A report as one HTML file that needs no other: tables, and plots as inline SVG."""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; margin: .5rem 0 1.5rem }}
th, td {{ text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums }}
.ok {{ color: #176f2c }} .broken {{ color: #b00020; font-weight: 600 }}
svg {{ max-width: 100%; height: auto }} figure {{ margin: 0 0 1.5rem }} figcaption {{ color: #555 }}
</style></head><body>
<h1>{title}</h1><p class="{state}">{lead}</p>
{body}
</body></html>
"""


def page(title: str, lead: str, parts: Iterable[str], state: str = "") -> str:
    """The file.

    Args:
        title: of the page.
        lead: its first line.
        parts: HTML of the rest; empty ones are left out.
        state: `ok`, `broken` or nothing, for the colour of the first line.
    """
    body = "\n".join(part for part in parts if part)
    return _PAGE.format(title=escape(title), state=state, lead=escape(lead), body=body)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table; `numbers` are the columns that are aligned to the right."""
    right = set(numbers)

    def cell(tag: str, index: int, text: str) -> str:
        kinds = [name for name, holds in (("number", index in right), ("broken", text == "broken")) if holds]
        named = f' class="{" ".join(kinds)}"' if kinds else ""
        return f"<{tag}{named}>{escape(text)}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", i, text) for i, text in enumerate(head)) + "</tr>"]
    lines += ["<tr>" + "".join(cell("td", i, text) for i, text in enumerate(row)) + "</tr>" for row in rows]
    return "<table>" + "".join(lines) + "</table>"


def figure(draw: "Callable[[Axes], None]", caption: str, height: float = 3.2) -> str:
    """A plot, drawn into axes of that height, inches.

    Raises:
        RequestError: matplotlib is not installed.
    """
    with new_figure(height) as drawn:
        draw(drawn.add_subplot())
    return embed(drawn, caption)


@contextmanager
def new_figure(height: float) -> "Iterator[Figure]":
    """An empty figure as wide as the page, and of that height, inches; it is drawn into within the context.

    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError("plots need matplotlib: pip install 'whisper-hailo-hf[eval]'") from error
    with rc_context({"font.size": 9}):
        yield Figure(figsize=(9, height), layout="constrained")


def embed(drawn: "Figure", caption: str) -> str:
    """A figure in HTML."""
    from matplotlib import rc_context

    text = io.StringIO()
    # the same report gives the same file; text stays text
    with rc_context({"svg.hashsalt": "whisper-hailo", "svg.fonttype": "none"}):
        drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
