"""A report for the eye: tables of at most a hundred columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from visionpool_server.backends.survey import Support
from visionpool_server.inspection.report import Cost, ModelFacts, Placement, Preprocessing, Report, Run, Split
from visionpool_server.inspection.report import Tensor as TensorFacts

_WIDTH = 100
_MOST_TIMINGS = 15
_NO_FAMILY = {"tensor": "  (no family: tensors in, tensors out)"}


def show(report: Report) -> None:
    console = Console(highlight=False)
    console = Console(highlight=False, width=min(console.width, _WIDTH))
    for part in (report, *report.steps):
        _show(console, part)


def _show(console: Console, report: Report) -> None:
    for title, content in _sections(report):
        if title:
            console.print(Text(title, style="bold cyan"))
        console.print(Padding(content, (0, 0, 1, 2)))


def _sections(report: Report) -> Iterable[tuple[str, RenderableType]]:
    yield "", _head(report)
    yield "Tensors", _tensors(report)
    if report.preprocessing:
        yield (
            f"Preprocessing of {report.preprocessing.input}, {report.preprocessing.layout}",
            _steps(report.preprocessing),
        )
    if report.devices:
        yield "Devices", _devices(report.devices)
    if report.cost or any(entry.supported or entry.unsupported for entry in report.devices):
        yield "Operators", _operators(report)
    if report.placement and (report.placement.note or report.placement.device not in ("CPU",)):
        yield f"Placement on {report.placement.device}", _placement(report.placement)
    if report.cost:
        yield "Cost of one inference", _cost(report.cost)
    if report.run:
        yield f"Measured on {report.run.device}, {report.run.precision}", _run(report.run)
    if report.model.format != "pipeline":
        yield "What to set", _to_set(report)
    elif report.notes:
        yield "Steps", Group(*_notes(report))


def _head(report: Report) -> RenderableType:
    facts, identity = report.model, report.identity
    title = Text(facts.name, style="bold green")
    title.append(f"  {identity.task}", style="bold")
    title.append(f"  ({identity.family})" if identity.family else _NO_FAMILY.get(identity.task, ""), style="bold")
    size = f", {_bytes(facts.bytes)}" if facts.bytes else ""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    lines.add_row("why", Text(identity.reason))
    place = f"{facts.weights}\n" if facts.weights else ""
    lines.add_row("weights", Text(f"{place}{_its(facts)}{size}"))
    lines.add_row("runs by", Text(facts.backend))
    if facts.config:
        lines.add_row("settings", Text(facts.config))
    return Group(title, lines)


def _its(facts: ModelFacts) -> str:
    return "those of its steps" if facts.format == "pipeline" else facts.format


def _tensors(report: Report) -> Table:
    table = _table("", "name", "shape", "type", "fixed to", "because of")
    fixed = {proposal.input: proposal for proposal in report.shapes}
    for spec in report.inputs:
        proposal = fixed.get(spec.name)
        to = _shape(proposal.shape) if proposal else ""
        source = Text(proposal.source if proposal else "", style="yellow" if proposal and proposal.guessed else "")
        table.add_row("in", Text(spec.name), _dynamic(spec), spec.dtype, Text(to), source)
    for spec in report.outputs:
        table.add_row("out", Text(spec.name), _dynamic(spec), spec.dtype, "", "")
    return table


def _dynamic(spec: TensorFacts) -> Text:
    """The shape, with what is dynamic in colour."""
    if spec.shape is None:
        return Text("any rank", style="yellow")
    text = Text("[")
    for axis, size in enumerate(spec.shape):
        text.append(", " if axis else "")
        text.append("?" if size is None else str(size), style="bold yellow" if size is None else "")
    return text.append("]")


def _devices(devices: Iterable[Support]) -> Table:
    table = _table("device", "", "operators it runs", "and lacks")
    for entry in devices:
        lacking = _counts(entry.unsupported)
        total = sum(entry.supported.values()) + sum(entry.unsupported.values())
        state = Text(entry.note or entry.full_name)
        if entry.note:
            state.stylize("yellow" if entry.available else "red")
        if entry.note and not total:
            table.add_row(Text(entry.device), state, "", "")
            continue
        count = f"{sum(entry.supported.values())} of {total}"
        table.add_row(Text(entry.device), state, count, Text(lacking or "none", style="red" if lacking else "green"))
    return table


def _operators(report: Report) -> Table:
    """One row a type: how many, how much of the arithmetic, and what each device makes of them."""
    told = _in_these_names(report)
    now = report.placement.now if report.placement else None
    split = now if now and len(now.devices) > 1 else None
    table = _table(
        "operator", "count", "MFLOPs", "share", *(entry.device for entry in told), *(["runs on"] if split else [])
    )
    for column in table.columns[1:4]:
        column.justify = "right"
    for kind, count, flops in _rows(report, told):
        share = flops / report.cost.flops if report.cost and report.cost.flops else 0.0
        amount = f"{flops / 1e6:,.2f}" if flops else ("not counted" if _uncounted(report, kind) else "")
        cells: list[str | Text] = [Text(kind), str(count), amount, f"{share:.1%}" if flops else ""]
        cells += [_supported(entry, kind) for entry in told]
        table.add_row(*cells, *([_runs_on(split, kind)] if split else []))
    return table


def _in_these_names(report: Report) -> list[Support]:
    """The devices that were asked about the operators whose cost is counted: runtimes name operators differently."""
    told = [entry for entry in report.devices if entry.supported or entry.unsupported]
    known = {entry.kind for entry in report.cost.operators} if report.cost else set()
    return [entry for entry in told if not known or known >= entry.supported.keys() | entry.unsupported.keys()]


def _rows(report: Report, told: list[Support]) -> list[tuple[str, int, int]]:
    if report.cost:
        return [(entry.kind, entry.count, entry.flops) for entry in report.cost.operators]
    counts = Counter(told[0].supported) + Counter(told[0].unsupported) if told else Counter()
    return [(kind, count, 0) for kind, count in counts.most_common()]


def _uncounted(report: Report, kind: str) -> bool:
    return report.cost is not None and kind in report.cost.uncounted


def _supported(entry: Support, kind: str) -> Text:
    yes, no = entry.supported.get(kind, 0), entry.unsupported.get(kind, 0)
    if yes and no:
        return Text(f"{yes} of {yes + no}", style="yellow")
    return Text("yes", style="green") if yes else Text("no", style="bold red") if no else Text("")


def _runs_on(split: Split, kind: str) -> Text:
    places = {device: counts[kind] for device, counts in split.devices.items() if kind in counts}
    return Text(", ".join(f"{device} {count}" if len(places) > 1 else device for device, count in places.items()))


def _placement(placement: Placement) -> RenderableType:
    if placement.now is None:
        return Text(placement.note or "", style="yellow")
    table = _table("cpu_operators", "hops", "handed over", "parts", "operators and share of FLOPs")
    _add_split(table, "as set" if placement.now.cpu_operators else "none set", placement.now)
    if placement.proposal:
        _add_split(table, "proposed", placement.proposal)
    parts: list[RenderableType] = [table]
    if placement.unplaced:
        parts.append(Text(f"no device named runs {_counts(placement.unplaced)}", style="bold red"))
    if placement.note:
        parts.append(Text(placement.note, style="bold red"))
    return Group(*parts)


def _add_split(table: Table, title: str, split: Split) -> None:
    total = sum(split.flops.values()) or 1
    places = ", ".join(
        f"{device} {sum(counts.values())} ({split.flops.get(device, 0) / total:.1%})"
        for device, counts in split.devices.items()
    )
    parts = str(split.compiled_subgraphs or f"{split.subgraphs} or more")
    named = f"{title}: {', '.join(split.cpu_operators)}" if split.cpu_operators else title
    table.add_row(Text(named), str(split.hops), _bytes(split.hop_bytes), parts, Text(places))


def _cost(cost: Cost) -> RenderableType:
    shapes = ", ".join(f"{name} {_shape(shape)}" for name, shape in cost.shapes.items()) or "the file's own shapes"
    types = ", ".join(f"{weights.dtype} {_bytes(weights.bytes)}" for weights in cost.weights[:4])
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column()
    lines.add_row("at", Text(shapes))
    lines.add_row("FLOPs", Text(f"{_flops(cost.flops)} (an addition and a multiplication are two)"))
    lines.add_row("parameters", Text(f"{cost.parameters:,}"))
    lines.add_row("memory", Text(f"about {_bytes(cost.memory_bytes)}: weights {_bytes(cost.weight_bytes)} ({types}),"))
    lines.add_row("", Text(f"and {_bytes(cost.activation_bytes)} of activations for each inference under way"))
    if cost.by_value:
        lines.add_row(
            "by value", Text(f"the sizes that {_counts(cost.by_value)} gives follow from what is in the picture")
        )
    return lines


def _run(run: Run) -> RenderableType:
    latency = run.latency_ms
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column()
    shown = ", ".join(f"{latency[name]:.2f} {name}" for name in ("p50", "p90", "p99"))
    lines.add_row("latency", Text(f"ms: {shown} ({run.runs} runs, one at a time)"))
    speed = f", {run.gflops_per_second:.1f} GFLOP/s" if run.gflops_per_second else ""
    lines.add_row(
        "throughput", Text(f"{run.throughput:.1f} in a second, {run.contexts} at once, batch {run.batch}{speed}")
    )
    if not run.timings:
        return lines
    typed = any(timing.precision for timing in run.timings)
    table = _table("executed as", "on", *(["in"] if typed else []), "count", "ms", "share")
    for column in table.columns[-3:]:
        column.justify = "right"
    for timing in run.timings[:_MOST_TIMINGS]:
        share = timing.ms / run.operators_ms if run.operators_ms else 0.0
        where = [timing.device, timing.precision or ""] if typed else [timing.device]
        table.add_row(Text(timing.kind), *map(Text, where), f"{timing.count:g}", f"{timing.ms:.3f}", f"{share:.1%}")
    rest, gap = run.timings[_MOST_TIMINGS:], [""] * (3 if typed else 2)
    if rest:
        table.add_row(f"{len(rest)} more", *gap, f"{sum(timing.ms for timing in rest):.3f}", "")
    table.add_row(Text("all", style="bold"), *gap, f"{run.operators_ms:.3f}", "")
    return Group(lines, table)


def _to_set(report: Report) -> RenderableType:
    parts: list[RenderableType] = []
    if report.model_yaml:
        parts.append(Text("in model.yaml:", style="dim"))
        parts.append(Text(report.model_yaml.rstrip()))
    elif report.identity.advice is None:
        parts.append(Text("nothing: it can be served as it is", style="green"))
    if report.identity.advice:
        parts.append(Text(report.identity.advice, style="yellow"))
    return Group(*parts, *_notes(report))


def _notes(report: Report) -> Iterable[Text]:
    return (Text(f"note: {note}", style="dim") for note in report.notes)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _steps(preprocessing: Preprocessing) -> Table:
    lines = Table.grid(padding=(0, 2))
    for index, step in enumerate(preprocessing.steps, 1):
        lines.add_row(f"{index}.", Text(_step(step)))
    return lines


def _step(step: Mapping[str, Any]) -> str:
    """As model.yaml writes it."""
    ((name, values),) = step.items()
    shown = ", ".join(f"{key}: {_value(value)}" for key, value in values.items() if value not in (None, False))
    return f"{name}: {{{shown}}}" if shown else name


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} ({count})" if count > 1 else kind for kind, count in counts.items())


def _shape(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB" if count >= 1e3 else f"{count} B"


def _flops(count: int) -> str:
    return f"{count / 1e9:,.2f} GFLOPs" if count >= 1e8 else f"{count / 1e6:,.2f} MFLOPs"
