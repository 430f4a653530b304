"""An evaluation for the eye, in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from visionpool_server.evaluation.report import LESS_IS_BETTER, TITLES, Comparison, Report

_CLASS_TITLES = {
    "map50_95": "AP 50-95",
    "map50": "AP 50",
    "top1": "top-1",
    "top5": "top-5",
    "iou": "IoU",
    "accuracy": "accuracy",
}
_NOTICED = 5e-4  # what shows in three digits


def report_table(report: Report, classes: int, worst: int = 10) -> RenderableType:
    """`classes`: so many of them are listed, the most frequent. `worst`: so many pictures that were misread."""
    table = _table(_pictures(report), (_name(report),))
    for key, value in report.metrics.items():
        table.add_row(TITLES[key], f"{value:.4f}")
    parts: list[RenderableType] = [table]
    if report.classes and classes:
        parts.append(_class_table(report, classes))
    if report.mistakes and worst:
        parts.append(_mistakes(report, worst))
    return Group(*parts, *_notes(report.notes), _footer(report))


def comparison_table(comparison: Comparison, classes: int, worst: int) -> RenderableType:
    """`worst`: so many pictures are listed, those on which the models differ most."""
    first, second = comparison.first, comparison.second
    table = _table(_pictures(first), (_name(first), _name(second), "difference"))
    for key, change in comparison.difference.items():
        values = (f"{first.metrics[key]:.4f}", f"{second.metrics[key]:.4f}")
        table.add_row(TITLES[key], *values, _change(change, less_is_better=key in LESS_IS_BETTER))
    table.add_row("agreement", "", "", f"{comparison.agreement:.4f}")
    parts: list[RenderableType] = [table]
    if first.classes and classes:
        parts.append(_class_changes(first, second, classes))
    if worst:
        parts.append(_worst(comparison, worst))
    notes = dict.fromkeys((*first.notes, *second.notes))
    return Group(*parts, *_notes(tuple(notes)), _footer(first))


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table()
    table.add_column(title)
    for column in columns:
        table.add_column(Text(column), justify="right")
    return table


def _pictures(report: Report) -> str:
    return f"{report.pictures} picture{'' if report.pictures == 1 else 's'}"


def _name(report: Report) -> str:
    return f"{report.model}\n{report.where}"


def _class_table(report: Report, limit: int) -> Table:
    shown = sorted(report.classes, key=lambda entry: -entry.count)[:limit]
    keys = list(dict.fromkeys(key for entry in shown for key in entry.metrics))
    table = _table(_of("class", len(shown), len(report.classes)), ("count", *(_CLASS_TITLES[key] for key in keys)))
    for entry in shown:
        values = (f"{entry.metrics[key]:.3f}" if key in entry.metrics else "" for key in keys)
        table.add_row(Text(entry.name), f"{entry.count}", *values)
    return table


def _class_changes(first: Report, second: Report, limit: int) -> Table:
    """The classes that changed most, by their first figure."""
    after = {entry.name: entry.metrics for entry in second.classes}
    changes = [
        (entry, after[entry.name][key], after[entry.name][key] - value)
        for entry in first.classes
        for key, value in list(entry.metrics.items())[:1]
        if key in after.get(entry.name, {})
    ]
    shown = sorted(changes, key=lambda item: -abs(item[2]))[:limit]
    key = next(iter(first.classes[0].metrics))
    title = _of(f"{_CLASS_TITLES[key]} by class", len(shown), len(first.classes))
    table = _table(title, ("count", "first", "second", "difference"))
    for entry, value, change in shown:
        table.add_row(Text(entry.name), f"{entry.count}", f"{value - change:.3f}", f"{value:.3f}", _change(change))
    return table


def _mistakes(report: Report, limit: int) -> Table:
    shown = report.mistakes[:limit]
    table = _table(_of("mistakes", len(shown), len(report.mistakes)), ())
    for column in ("truth", "predicted"):
        table.add_column(column)
    for mistake in shown:
        table.add_row(Text(mistake.picture), Text(mistake.truth), Text(mistake.predicted or ""))
    return table


def _worst(comparison: Comparison, limit: int) -> RenderableType:
    shown = comparison.worst(limit)
    if not shown:
        return Text("the two agree on every picture", style="green")
    table = _table("they differ most on", ("agreement",))
    table.add_column("where (first → second)")
    for entry in shown:
        table.add_row(Text(entry.picture), f"{entry.agreement:.3f}", Text(entry.what))
    return table


def _of(what: str, shown: int, count: int) -> str:
    return what if shown == count else f"{what} ({shown} of {count})"


def _change(value: float, *, less_is_better: bool = False) -> Text:
    better = value < 0 if less_is_better else value > 0
    style = "" if abs(value) < _NOTICED else "green" if better else "red"
    return Text(f"{value:+.4f}", style=style)


def _notes(notes: tuple[str, ...]) -> Iterator[Text]:
    return (Text(f"note: {note}", style="yellow") for note in notes)


def _footer(report: Report) -> Text:
    matched = f", classes matched by {report.matched_by}" if report.matched_by else ""
    rate = f", {report.pictures / report.seconds:.1f} pictures/s" if report.seconds else ""
    return Text(f"{report.dataset} read as {report.format}{matched}; {report.seconds:.1f} s{rate}", style="dim")
