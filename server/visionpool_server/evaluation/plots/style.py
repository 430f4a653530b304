"""What all plots share: colours, a page, axes without clutter, and names in any script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from warnings import catch_warnings, filterwarnings

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FIRST, SECOND = "#2563eb", "#ea580c"  # the two models
GOOD, BAD = "#16a34a", "#dc2626"
INK, FAINT, GRID = "#0f172a", "#94a3b8", "#e2e8f0"
SERIES = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#db2777", "#0891b2", "#ca8a04", "#4d7c0f")
_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS", "Microsoft YaHei")
_LONGEST = 26  # letters of a name


class Page(Figure):
    """A figure that says nothing about letters that no font of this machine has."""

    def savefig(self, *arguments: Any, **options: Any) -> None:
        with catch_warnings(), styled():
            filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
            super().savefig(*arguments, **options)


@contextmanager
def styled() -> Iterator[None]:
    """Our settings, for as long as something is drawn: they are global in matplotlib."""
    known = set(font_manager.get_font_names())
    families = ["DejaVu Sans", *(name for name in _SCRIPTS if name in known)]
    settings: Any = {
        "font.family": families,
        "font.size": 9,
        "text.color": INK,
        "text.parse_math": False,  # a class called "$a$" is no formula
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        yield


def page(title: str, subtitle: str, columns: Sequence[float], height: float) -> tuple[Page, list[Axes]]:
    """A page of panels side by side, of these relative widths; sizes in inches."""
    figure = Page(figsize=(max(7.0, sum(columns)), height), dpi=130, layout="constrained")
    figure.get_layout_engine().set(rect=(0.01, 0.01, 0.98, 1 - 0.72 / height), w_pad=0.12)  # type: ignore[union-attr, call-arg]
    width = figure.get_figwidth()
    size = min(13.0, (width - 0.4) * 72 / (0.66 * max(len(title), 1)))  # a letter is about so wide
    figure.text(0.02, 1 - 0.18 / height, title, fontsize=size, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.44 / height, subtitle, fontsize=9, color="#475569", va="top")
    axes = figure.subplots(1, len(columns), width_ratios=list(columns), squeeze=False)
    return figure, list(axes[0])


def bars_page_height(rows: int) -> float:
    """Room for so many bars, one below the other."""
    return min(max(4.4, 1.6 + 0.2 * rows), 9.0)


def short(name: str, longest: int = _LONGEST) -> str:
    return name if len(name) <= longest else name[: longest - 1].rstrip() + "…"


def grid(axes: Axes, axis: str = "both") -> None:
    axes.grid(visible=True, axis=axis, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
