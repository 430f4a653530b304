"""What OpenVINO tells of a model: its graph, what each device supports by `query_model`, and where the time of a run goes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import openvino as ov
from visionpool.errors import InvalidModel

from visionpool_server.backends import LoadOptions, Source, Tensors
from visionpool_server.backends.openvino.devices import compile_model, is_here, place
from visionpool_server.backends.openvino.files import Names, core, read_model, reason
from visionpool_server.backends.openvino.graph import STRUCTURE, graph_of
from visionpool_server.backends.openvino.shapes import shaped
from visionpool_server.backends.survey import Graph, Support, Timing


class OpenVinoSurvey:
    """The model with the options' shapes and the picture's arithmetic in its graph; as in its file where it takes neither."""

    def __init__(self, source: Source, options: LoadOptions) -> None:
        model = read_model(source.weights)
        self._names = Names.of(model)
        self._options = options
        self._fixed = True
        try:
            self._model = shaped(model.clone(), self._names, None, options)
        except InvalidModel:
            self._model, self._fixed = model, False

    def graph(self) -> Graph:
        ports = zip(self._names.inputs, self._model.inputs, strict=True)
        shapes = {name: self._shape(name, port) for name, port in ports if port.partial_shape.is_static}
        return graph_of(self._model, shapes, fixed=self._fixed)

    def _shape(self, name: str, port: Any) -> tuple[int, ...]:
        """As the file has it: with the arithmetic compiled in, pictures come as NHWC."""
        shape, image = tuple(int(size) for size in port.get_shape()), self._options.image
        if self._fixed and image and image.name == name and image.layout == "NCHW":
            return (shape[0], shape[3], shape[1], shape[2])
        return shape

    def devices(self) -> tuple[str, ...]:
        return tuple(core().available_devices)

    def support(self, device: str) -> Support:
        if not is_here(device):
            found = ", ".join(core().available_devices)
            return Support(device, available=False, note=f"not on this machine: OpenVINO finds {found}")
        full_name = str(core().get_property(device, "FULL_DEVICE_NAME")).strip()
        try:
            placed = core().query_model(self._model, device)
        except RuntimeError as error:
            return Support(device, available=True, full_name=full_name, note=reason(error))
        operators = _operators(self._model)
        supported = Counter(kind for name, kind in operators if name in placed)
        unsupported = Counter(kind for name, kind in operators if name not in placed)
        return Support(device, True, full_name, dict(supported), dict(unsupported))

    def placement(self, device: str) -> Mapping[str, str]:
        return _placement(self._model, device, self._options.cpu_operators)

    def compiled_parts(self, device: str, cpu_operators: tuple[str, ...]) -> int | None:
        if not device.startswith("HETERO:"):
            return None
        options = replace(self._options, device=device, cpu_operators=cpu_operators)
        model = self._model.clone()
        place(model, options)
        compiled = compile_model(model, options)
        return int(compiled.get_property("HETERO_NUMBER_OF_SUBMODELS"))

    def profile(self, batch: Tensors, seconds: float) -> tuple[Timing, ...]:
        """One request at a time, on the model compiled as for serving; `batch`: in the shapes that the survey was made for."""
        model, device = self._model.clone(), self._options.device
        for node in model.get_ops():
            node.set_friendly_name(node.get_friendly_name())  # made-up names would be made up anew when it is compiled
        place(model, self._options)
        compiled = compile_model(model, self._options, {"PERF_COUNT": "YES"})
        where = _placement(model, device, self._options.cpu_operators) if device.startswith("HETERO:") else {}
        request = compiled.create_infer_request()
        for index, (name, port) in enumerate(zip(self._names.inputs, compiled.inputs, strict=True)):
            request.set_input_tensor(index, _tensor(batch[name], port.element_type))
        request.infer()
        sums, runs, end = _Sums(where, device), 0, time.monotonic() + seconds
        while not runs or time.monotonic() < end:
            request.infer()
            sums.add(request.get_profiling_info())
            runs += 1
        return sums.timings(runs)


def _operators(model: ov.Model) -> list[tuple[str, str]]:
    """The name and the type of each."""
    nodes = [(node.get_friendly_name(), node.get_type_name()) for node in model.get_ordered_ops()]
    return [(name, kind) for name, kind in nodes if kind not in STRUCTURE]


def _placement(model: ov.Model, device: str, cpu_operators: Sequence[str]) -> Mapping[str, str]:
    """Operator's name -> device. Raises InvalidModel."""
    try:
        found: dict[str, str] = core().query_model(model, device)
    except RuntimeError as error:
        raise InvalidModel(f"OpenVINO cannot say where {device} would run the model: {reason(error)}") from error
    placed = [(name, kind) for name, kind in _operators(model) if name in found]
    return {name: "CPU" if kind in cpu_operators else found[name] for name, kind in placed}


def _tensor(array: Any, element_type: ov.Type) -> ov.Tensor:
    raw = np.array(array.view(np.uint16) if element_type == ov.Type.bf16 else array)
    return ov.Tensor(raw, raw.shape, element_type)


class _Sums:
    """Adds profiles up. HETERO names what it ran `subgraph3: NAME`; a part's device is that of any operator in it."""

    def __init__(self, where: Mapping[str, str], device: str) -> None:
        self._where = where
        self._device = device
        self._ms: dict[tuple[str, str], float] = defaultdict(float)
        self._count: Counter[tuple[str, str]] = Counter()

    def add(self, profile: Iterable[Any]) -> None:
        named = [(*entry.node_name.partition(": ")[::2], entry) for entry in profile]
        devices = {part: device for part, name, _ in named if (device := self._device_of(name))}
        for part, _, entry in named:
            if not str(entry.status).endswith(".EXECUTED"):
                continue
            key = (entry.node_type, devices.get(part, self._device))
            self._ms[key] += entry.real_time.total_seconds() * 1e3
            self._count[key] += 1

    def _device_of(self, name: str) -> str | None:
        """Of an operator, or of one that was made from it, as `Divide_248_original`."""
        return self._where.get(name) or self._where.get(name.rpartition("_")[0])

    def timings(self, runs: int) -> tuple[Timing, ...]:
        found = [
            Timing(kind, device, self._count[kind, device] / runs, ms / runs) for (kind, device), ms in self._ms.items()
        ]
        return tuple(sorted(found, key=lambda timing: -timing.ms))
