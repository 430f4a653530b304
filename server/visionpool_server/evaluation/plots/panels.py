"""The panels that pages are made of: each draws one thing into one pair of axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from visionpool_server.evaluation.plots.style import BAD, FAINT, FIRST, GOOD, INK, SERIES, grid, short
from visionpool_server.evaluation.report import Confusion, Curves, LineErrors

MOST_BARS = 30
_MOST_CELLS = 24
_MOST_NAMED = 8
_FEWEST_ROWS = 8
_NOTHING = "(none)"


def precision_recall(axes: Axes, curves: Curves, counts: Mapping[str, int]) -> None:
    """The most frequent classes in colours, the others in grey, and the mean of all."""
    if not curves.precision:
        _say(axes, "nothing to find in these pictures")
        return
    axes.set_title("Precision over recall, overlap 0.5")
    order = sorted(curves.precision, key=lambda name: -counts.get(name, 0))
    for name in order[_MOST_NAMED:]:
        axes.plot(curves.recall, curves.precision[name], color=FAINT, linewidth=0.6, alpha=0.5)
    for name, color in zip(order, SERIES, strict=False):
        axes.plot(curves.recall, curves.precision[name], color=color, linewidth=1.1, label=short(name))
    if len(order) > 1:
        axes.plot(curves.recall, mean_curve(curves), color=INK, linewidth=2.6, label=f"mean of {len(order)} classes")
    _unit_square(axes, "recall", "precision")
    axes.legend(fontsize=8, loc="lower left", handlelength=1.4, frameon=True, framealpha=0.9, edgecolor="none")


def mean_curves(axes: Axes, curves: Sequence[tuple[str, str, Curves]]) -> None:
    """Of several models: (name, colour, curves)."""
    axes.set_title("Precision over recall, overlap 0.5, all classes")
    for name, color, entry in curves:
        axes.plot(entry.recall, mean_curve(entry), color=color, linewidth=2.2, label=name)
    _unit_square(axes, "recall", "precision")
    axes.legend(loc="lower left")


def mean_curve(curves: Curves) -> list[float]:
    values: list[float] = np.mean(list(curves.precision.values()), axis=0).tolist() if curves.precision else [0.0] * 101
    return values


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel=x, ylabel=y)
    grid(axes)


def class_bars(axes: Axes, title: str, values: Sequence[tuple[str, float]]) -> None:
    """Best first; of many the worst and the best ones, with a gap between."""
    ordered = sorted(values, key=lambda item: item[1])
    shown = _ends(ordered)
    names = [short(name) for name, _ in shown]
    axes.set_title(title if len(shown) == len(ordered) else f"{title}, worst and best of {len(ordered)} classes")
    axes.barh(range(len(shown)), [value for _, value in shown], color=FIRST, height=0.72)
    for row, (name, value) in enumerate(shown):
        if name:
            axes.text(value + 0.01, row, f"{value:.2f}", va="center", fontsize=7.5)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set(xlim=(0, 1.08), ylim=_rows(len(shown)))
    grid(axes, "x")


def _ends(ordered: list[tuple[str, float]]) -> list[tuple[str, float]]:
    if len(ordered) <= MOST_BARS:
        return ordered
    half = MOST_BARS // 2
    return [*ordered[:half], ("", 0.0), *ordered[-half:]]


def difference_bars(axes: Axes, title: str, values: Sequence[tuple[str, float]]) -> None:
    """What each class won or lost; of many the largest changes."""
    largest = sorted(values, key=lambda item: -abs(item[1]))[:MOST_BARS]
    shown = sorted(largest, key=lambda item: item[1])
    axes.set_title(title if len(shown) == len(values) else f"{title} ({len(shown)} of {len(values)} classes)")
    axes.barh(
        range(len(shown)), [value for _, value in shown], color=[GOOD if v > 0 else BAD for _, v in shown], height=0.72
    )
    axes.axvline(0, color=INK, linewidth=0.8)
    reach = max(0.02, *(abs(value) for _, value in shown)) if shown else 1.0
    for row, (_, value) in enumerate(shown):
        side = "left" if value >= 0 else "right"
        axes.text(
            value + reach * (0.02 if value >= 0 else -0.02), row, f"{value:+.3f}", va="center", ha=side, fontsize=7
        )
    axes.set_yticks(range(len(shown)), [short(name) for name, _ in shown], fontsize=8)
    axes.set(xlim=(-1.3 * reach, 1.3 * reach), ylim=_rows(len(shown)))
    grid(axes, "x")


def confusion_matrix(axes: Axes, chart: Confusion, unit: str) -> None:
    """Each row is a class of the truth and sums to 1. Of many classes those with most mistakes."""
    if not chart.names:
        _say(axes, "nothing to compare")
        return
    shown = _most_confused(chart)
    names = [chart.names[i] for i in shown]
    counts = chart.counts[np.ix_(shown, shown)]
    totals = chart.counts[shown].sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    few = f", {len(shown)} of {len(chart.names)} classes" if len(shown) < len(chart.names) else ""
    axes.set_title(f"Confusion: shares of {unit}{few}")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if len(shown) <= 14:
        for row, column in np.ndindex(*shares.shape):
            value = float(shares[row, column])
            if counts[row, column]:
                text = f"{value:.2f}".removeprefix("0") if value >= 0.005 else "·"
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=7, color="white" if value > 0.5 else INK
                )
    size = 8 if len(shown) <= 16 else 6.5
    turned = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names), default=0) > 2 else {}
    axes.set_xticks(range(len(shown)), [short(name) for name in names], fontsize=size, **turned)  # type: ignore[arg-type]
    axes.set_yticks(range(len(shown)), [short(name) for name in names], fontsize=size)
    axes.set(xlabel="predicted", ylabel="truth")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _most_confused(chart: Confusion) -> list[int]:
    """Indices of the classes to show, in their own order: those of the most frequent mistakes."""
    if len(chart.names) <= _MOST_CELLS:
        return list(range(len(chart.names)))
    chosen: dict[int, None] = {}
    for _, row, column in _wrong_pairs(chart):
        if len({*chosen, row, column}) <= _MOST_CELLS and column < len(chart.names):
            chosen |= {row: None, column: None}
    return sorted(chosen) or list(range(_MOST_CELLS))


def _wrong_pairs(chart: Confusion) -> list[tuple[int, int, int]]:
    """Mistakes as (how often, row, column), most frequent first."""
    wrong = chart.counts.copy()
    np.fill_diagonal(wrong, 0)
    pairs = [(int(wrong[row, column]), row, column) for row, column in np.argwhere(wrong).tolist()]
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))


def mistakes(axes: Axes, chart: Confusion) -> None:
    """What is most often taken for what."""
    pairs = _wrong_pairs(chart)
    names = [*chart.names, "another class"]
    shown = [(f"{short(names[row], 20)} → {short(names[column], 20)}", count) for count, row, column in pairs[:20]]
    _count_bars(axes, f"Mistakes: {sum(count for count, *_ in pairs)}", shown)


def error_rates(axes: Axes, lines: Sequence[tuple[str, str, LineErrors]]) -> None:
    """How many lines have which error rate, of one model or several: (name, colour, errors)."""
    axes.set_title("Lines by their character error rate")
    edges = [-0.05, 1e-9, *(np.arange(0.1, 1.01, 0.1) + 1e-9).tolist(), 1.1]  # exact lines have a bar of their own
    places = np.arange(len(edges) - 1)
    width = 0.8 / max(len(lines), 1)
    for index, (name, color, errors) in enumerate(lines):
        counts, _ = np.histogram(np.clip(errors.rates, 0, 1.05), bins=edges)
        axes.bar(places + (index - (len(lines) - 1) / 2) * width, counts, width, color=color, label=name)
    texts = ["exact", *(f"≤{edge * 100:.0f}" for edge in edges[2:-1]), "more"]
    axes.set_xticks(places, texts, fontsize=7.5)
    axes.set(xlabel="character error rate, %", ylabel="lines")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    grid(axes, "y")
    if len(lines) > 1:
        axes.legend()


def characters(axes: Axes, errors: LineErrors) -> None:
    """Which characters are most often read as which."""
    ordered = sorted(errors.characters.items(), key=lambda item: (-item[1], item[0]))[:20]
    shown = [(f"{_shown(wanted)} → {_shown(said)}", count) for (wanted, said), count in ordered]
    _count_bars(axes, f"Wrong characters: {sum(errors.characters.values())}", shown)


def _shown(character: str) -> str:
    return _NOTHING if not character else "space" if character.isspace() else character


def _count_bars(axes: Axes, title: str, shown: Sequence[tuple[str, int]]) -> None:
    axes.set_title(title)
    if not shown:
        _say(axes, "none")
        return
    rows = range(len(shown) - 1, -1, -1)
    axes.barh(rows, [count for _, count in shown], color=BAD, height=0.72)
    axes.set_yticks(rows, [name for name, _ in shown], fontsize=8)
    axes.set_ylim(*_rows(len(shown)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid(axes, "x")


def agreements(axes: Axes, values: Sequence[float]) -> None:
    """How many pictures the models agree on how far."""
    mean = f", mean {np.mean(values):.3f}" if values else ""
    axes.set_title(f"How far the two agree{mean}")
    axes.hist(values, bins=np.linspace(0, 1, 21).tolist(), color=FIRST, rwidth=0.9)
    axes.set(xlim=(-0.01, 1.01), xlabel="agreement", ylabel="pictures")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    grid(axes, "y")


def _rows(count: int) -> tuple[float, float]:
    """The limits of an axis with so many bars, from below; a few bars stay slim, at the top."""
    return count - 0.4 - max(count + 0.2, _FEWEST_ROWS), count - 0.4


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color=FAINT, transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])
