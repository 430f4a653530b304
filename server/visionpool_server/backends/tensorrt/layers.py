"""What an engine tells of its layers: their names, kinds and types, by trt.EngineInspector, and their times, by trt.IProfiler."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from visionpool_server.backends.survey import Timing
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.loaded import Loaded
from visionpool_server.backends.tensorrt.log import errors

_TYPES = {  # as inspectors of different versions write them
    **{"float": "f32", "fp32": "f32", "half": "f16", "fp16": "f16", "bfloat16": "bf16", "bf16": "bf16"},
    **{name: name for name in ("int8", "int4", "fp8", "fp4", "int32", "int64", "bool", "uint8")},
}
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Layer:
    """`kind` is the name where the engine was built without `profiling_verbosity: detailed`; `precision`: the type of its
    weights, or else of what it gives, where the engine tells."""

    name: str
    kind: str
    precision: str | None = None


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
    return Layer(str(name), str(entry.get("LayerType") or name), _precision(entry)) if name else None


def _precision(entry: Mapping[str, Any]) -> str | None:
    """Weights of `Int8` give outputs of `Float` where a layer dequantises as well: they say more of what it computes in."""
    weights = entry.get("Weights")
    said = [weights.get("Type")] if isinstance(weights, Mapping) else []
    for key in ("Outputs", "Inputs"):
        tensors = entry.get(key)
        if isinstance(tensors, list) and tensors and isinstance(tensors[0], Mapping):
            said += [tensors[0].get("Format/Datatype"), tensors[0].get("Datatype")]
    return next((found for text in said if (found := _type_in(text))), None)


def _type_in(text: Any) -> str | None:
    """Of "Half", or of "Channel major FP16 format where channel % 4 == 0"."""
    found = _TYPE.search(text) if isinstance(text, str) else None
    return _TYPES[found[1].lower()] if found else None


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
    """By kind and type, the longest first: how many layers, and their milliseconds in each of `runs` inferences on average."""
    known = {layer.name: layer for layer in layers}
    counts: Counter[tuple[str, str | None]] = Counter()
    totals: dict[tuple[str, str | None], float] = {}
    for name, ms in times.ms.items():
        layer = known.get(name) or Layer(name, name)
        key = layer.kind, layer.precision
        counts[key] += 1
        totals[key] = totals.get(key, 0.0) + ms
    found = [Timing(key[0], device, counts[key], total / runs, key[1]) for key, total in totals.items()]
    return tuple(sorted(found, key=lambda timing: -timing.ms))
