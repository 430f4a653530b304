"""Which panels a page has: by the task, and by whether it is about one model or two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visionpool_server.evaluation.plots import panels
from visionpool_server.evaluation.plots.style import FIRST, SECOND, bars_page_height, page, styled
from visionpool_server.evaluation.report import TITLES, Comparison, Confusion, Curves, LineErrors, Report

Panel = tuple[float, Callable[[Axes], None]]  # its width in inches, and what draws it

_HEADLINES = ("map50_95", "map50", "top1", "top5", "miou", "pixel_accuracy", "cer", "line_accuracy")
_BY_CLASS = {"detection": "map50_95", "classification": "top1", "segmentation": "iou"}
_NAMES = {"map50_95": "AP 50-95", "top1": "Top-1", "iou": "IoU"}


def report_page(report: Report) -> Figure:
    """Of one model."""
    figures = " · ".join(f"{TITLES[key]} {report.metrics[key]:.3f}" for key in _HEADLINES if key in report.metrics)
    subtitle = f"{Path(report.dataset).name}, {report.pictures} pictures · {figures}"
    return _drawn(f"{report.model} ({report.where})", subtitle, _report_panels(report), _rows(report))


def comparison_page(comparison: Comparison) -> Figure:
    """Of two models."""
    first, second = comparison.first, comparison.second
    figures = " · ".join(
        f"{TITLES[key]} {first.metrics[key]:.3f} → {second.metrics[key]:.3f}"
        for key in _HEADLINES
        if key in first.metrics and key in second.metrics
    )
    told = [f"{Path(first.dataset).name}, {first.pictures} pictures", figures, f"agreement {comparison.agreement:.3f}"]
    title = f"{_full_name(first)}  →  {_full_name(second)}"
    return _drawn(title, " · ".join(part for part in told if part), _comparison_panels(comparison), _rows(first))


def _full_name(report: Report) -> str:
    return f"{report.model} ({report.where})"


def _rows(report: Report) -> int:
    """How many bars a panel of its classes has."""
    return min(len(report.classes), panels.MOST_BARS)


def _drawn(title: str, subtitle: str, wanted: Sequence[Panel], rows: int) -> Figure:
    with styled():
        figure, places = page(title, subtitle, [width for width, _ in wanted], bars_page_height(rows))
        for axes, (_, draw) in zip(places, wanted, strict=True):
            draw(axes)
    return figure


def _report_panels(report: Report) -> list[Panel]:
    values = _class_values(report)
    match report.chart:
        case Curves() as curves:
            counts = {entry.name: entry.count for entry in report.classes}
            bars: Panel = (4.4, lambda axes: panels.class_bars(axes, "AP 50-95", values))
            return [(5.6, lambda axes: panels.precision_recall(axes, curves, counts)), bars]
        case Confusion() as confusion if report.task == "segmentation":
            bars = (4.0, lambda axes: panels.class_bars(axes, "IoU", values))
            return [(5.6, lambda axes: panels.confusion_matrix(axes, confusion, "pixels")), bars]
        case Confusion() as confusion:
            matrix: Panel = (6.0, lambda axes: panels.confusion_matrix(axes, confusion, "pictures"))
            return [matrix, (5.0, lambda axes: panels.mistakes(axes, confusion))]
        case LineErrors() as errors:
            rates: Panel = (5.6, lambda axes: panels.error_rates(axes, [(report.model, FIRST, errors)]))
            return [rates, (4.0, lambda axes: panels.characters(axes, errors))]
    return []


def _comparison_panels(comparison: Comparison) -> list[Panel]:
    first, second = comparison.first, comparison.second
    wanted: list[Panel] = []
    one, other = first.chart, second.chart
    names = (
        ("first: " + first.model, "second: " + second.model)
        if first.model == second.model
        else (first.model, second.model)
    )
    if isinstance(one, Curves) and isinstance(other, Curves):
        curves = [(names[0], FIRST, one), (names[1], SECOND, other)]
        wanted.append((5.2, lambda axes: panels.mean_curves(axes, curves)))
    if isinstance(one, LineErrors) and isinstance(other, LineErrors):
        errors = [(names[0], FIRST, one), (names[1], SECOND, other)]
        wanted.append((5.2, lambda axes: panels.error_rates(axes, errors)))
    changes = _changes(first, second)
    if changes:
        title = f"Change of {_NAMES[_BY_CLASS[first.task]]}"
        wanted.append((4.4, lambda axes: panels.difference_bars(axes, title, changes)))
    values = [entry.agreement for entry in comparison.pictures]
    return [*wanted, (4.4, lambda axes: panels.agreements(axes, values))]


def _class_values(report: Report) -> list[tuple[str, float]]:
    key = _BY_CLASS.get(report.task, "")
    return [(entry.name, entry.metrics[key]) for entry in report.classes if key in entry.metrics]


def _changes(first: Report, second: Report) -> list[tuple[str, float]]:
    after = dict(_class_values(second))
    return [(name, after[name] - value) for name, value in _class_values(first) if name in after]
