"""What an engine tells of its layers: their names and kinds, by trt.EngineInspector, and their times, by trt.IProfiler."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from visionpool_server.backends.survey import Timing
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.loaded import Loaded
from visionpool_server.backends.tensorrt.log import errors


@dataclass(frozen=True, slots=True)
class Layer:
    """`kind` is the name where the engine was built without `profiling_verbosity: detailed`."""

    name: str
    kind: str


class Profiler(Protocol):
    """A trt.IProfiler. `ms`: by layer, of all inferences so far."""

    ms: Counter[str]


def layers_of(loaded: Loaded) -> tuple[Layer, ...]:
    """As executed: fused ones are one. Empty where the engine was built to tell nothing."""
    trt = loaded.api.trt
    with errors(loaded.api):  # it complains of engines that tell nothing
        inspector = loaded.engine.create_engine_inspector()
        said = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        found: Any = json.loads(said)
    except ValueError:
        return ()
    entries = found.get("Layers", ()) if isinstance(found, dict) else ()
    return tuple(layer for entry in entries if (layer := _layer(entry)))


def _layer(entry: Any) -> Layer | None:
    if isinstance(entry, str):
        return Layer(entry, entry)
    name = entry.get("Name") if isinstance(entry, Mapping) else None
    return Layer(str(name), str(entry.get("LayerType") or name)) if name else None


def profiler(api: Api) -> Profiler:
    made: Profiler = _class(api.trt)()
    return made


@cache
def _class(trt: Any) -> Any:
    class LayerTimes(trt.IProfiler):  # type: ignore[misc]  # its base is found at run time
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.ms: Counter[str] = Counter()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.ms[layer_name] += ms  # type: ignore[assignment]  # counts need not be whole

    return LayerTimes


def timings(times: Profiler, runs: int, layers: Sequence[Layer], device: str) -> tuple[Timing, ...]:
    """By kind of layer, the longest first: how many, and their milliseconds in each of `runs` inferences on average."""
    kinds = {layer.name: layer.kind for layer in layers}
    counts: Counter[str] = Counter(kinds.get(name, name) for name in times.ms)
    totals: dict[str, float] = {}
    for name, ms in times.ms.items():
        kind = kinds.get(name, name)
        totals[kind] = totals.get(kind, 0.0) + ms
    found = [Timing(kind, device, counts[kind], total / runs) for kind, total in totals.items()]
    return tuple(sorted(found, key=lambda timing: -timing.ms))
