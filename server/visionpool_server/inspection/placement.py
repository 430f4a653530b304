"""A graph split between devices: what it costs in hops, and which operator types are better moved to the CPU."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from visionpool_server.backends.survey import Graph
from visionpool_server.inspection.report import Split

_MOVED_SHARE = 0.05  # of all FLOPs: more than this is not taken from the device that was chosen for them
Where = Mapping[str, str]  # operator's name -> device


def split(graph: Graph, where: Where, cpu_operators: Sequence[str] = ()) -> Split:
    """Operators that are not in `where` are left out."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    flops: Counter[str] = Counter()
    for operator in graph.operators:
        if device := where.get(operator.name):
            kinds[device][operator.kind] += 1
            flops[device] += operator.flops or 0
    handed = _handed(graph, where)
    return Split(
        cpu_operators=tuple(cpu_operators),
        devices={device: dict(counts.most_common()) for device, counts in sorted(kinds.items())},
        flops=dict(flops),
        hops=len(handed),
        hop_bytes=sum(size or 0 for size in handed.values()),
        subgraphs=_subgraphs(graph, where),
    )


def _handed(graph: Graph, where: Where) -> dict[tuple[int, int, str], int | None]:
    """What crosses: (producer, output, device that takes it) -> bytes. A tensor that a device takes twice is handed once."""
    handed = {}
    for operator in graph.operators:
        taker = where.get(operator.name)
        for edge in operator.inputs:
            giver = where.get(graph.operators[edge.source].name)
            if taker and giver and taker != giver:
                handed[edge.source, edge.port, taker] = edge.bytes
    return handed


def _subgraphs(graph: Graph, where: Where) -> int:
    """Neighbours on one device are one part, unless the way between them leads over another device, too.

    An operator joins the parts of its producers on its own device, but one that has to run before another of its producers.
    Operators without neighbours, as those on constants, are in no part.
    """
    parts: dict[int, int] = {}  # operator -> part
    before: dict[int, set[int]] = {}  # part -> all parts that have to run before it
    for place in _computing(graph):
        operator = graph.operators[place]
        givers = {parts[edge.source] for edge in operator.inputs}
        own = {
            parts[edge.source]
            for edge in operator.inputs
            if where.get(graph.operators[edge.source].name) == where.get(operator.name)
        }
        joined = {part for part in own if not any(part in before[other] for other in givers)}
        parts[place] = part = min(joined, default=place)
        ahead = (givers - joined).union(*(before[giver] for giver in givers))
        before[part] = before.get(part, set()) | ahead
        _merge(parts, before, joined, part)
    return len(set(parts.values()))


def _merge(parts: dict[int, int], before: dict[int, set[int]], joined: set[int], part: int) -> None:
    """Makes `joined` one, called `part`; what runs after it, runs after all that it now waits for."""
    gone = joined - {part}
    for place, own in parts.items() if gone else ():
        if own in gone:
            parts[place] = part
    for other in gone:
        del before[other]
    for later, ahead in before.items():
        if ahead & joined:
            before[later] = (ahead - gone) | {part} | before[part]


def _computing(graph: Graph) -> list[int]:
    """The operators with a neighbour; all where none has one."""
    ends = {edge.source for operator in graph.operators for edge in operator.inputs}
    found = [place for place, operator in enumerate(graph.operators) if operator.inputs or place in ends]
    return found or list(range(len(graph.operators)))


def move_to_cpu(graph: Graph, where: Where, first: str) -> tuple[str, ...]:
    """Operator types that are better moved from the device `first` to the CPU, where others run anyway.

    Greedily the type that spares most hops, then the next, as long as little arithmetic moves; with them those types that
    `first` lacks. Empty where it has all, or where nothing is spared.
    """
    lacking = {op.kind for op in graph.operators if where.get(op.name, first) == "CPU" != first}
    candidates = {op.kind for op in graph.operators if where.get(op.name) == first}
    if not lacking or first == "CPU":
        return ()
    allowed = _MOVED_SHARE * sum(op.flops or 0 for op in graph.operators)
    moved: set[str] = set()
    hops = len(_handed(graph, where))
    while hops:
        tried = {kind: len(_handed(graph, moved_to_cpu(graph, where, moved | {kind}))) for kind in candidates | lacking}
        good = {kind: count for kind, count in tried.items() if _flops(graph, where, first, moved | {kind}) <= allowed}
        best = min(good, key=lambda kind: (good[kind], kind), default=None)
        if best is None or good[best] >= hops:
            break
        hops = good[best]
        moved.add(best)
        candidates.discard(best)
    return tuple(sorted(moved | (lacking - candidates))) if moved else ()


def moved_to_cpu(graph: Graph, where: Where, kinds: set[str]) -> dict[str, str]:
    return {op.name: "CPU" if op.kind in kinds else where[op.name] for op in graph.operators if op.name in where}


def _flops(graph: Graph, where: Where, first: str, kinds: set[str]) -> int:
    """How much arithmetic leaves `first` with these types."""
    return sum(op.flops or 0 for op in graph.operators if op.kind in kinds and where.get(op.name) == first)
