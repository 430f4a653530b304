"""The weights of a model, compiled for a device: infer requests on them are the contexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import openvino as ov

from visionpool_server.backends import LoadOptions, Placement, ShapeUse, Tensors, ones, zeros
from visionpool_server.backends.openvino.context import BySize, Compiled, OpenVinoContext
from visionpool_server.backends.openvino.devices import precision_of
from visionpool_server.backends.openvino.files import Names, dtype_of
from visionpool_server.backends.openvino.shapes import Plan


class OpenVinoEngine:
    def __init__(
        self,
        compiled: Compiled,
        plan: Plan,
        names: Names,
        options: LoadOptions,
        placement: Placement,
    ) -> None:
        self._compiled = compiled
        self._names = names
        self._options = options
        self.on_cpu = options.device == "CPU"
        self.quick_bytes = 0
        self.batched = plan.batched
        self.batch_sizes = plan.sizes
        self.max_batch_size = plan.limit
        first = next(iter(compiled.by_size.values()))
        self.contexts = options.contexts or int(first.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._placement = placement

    def clone(self) -> OpenVinoContext:
        return OpenVinoContext(self._compiled, self._names)

    def add_inline(self, compiled: BySize, largest: int) -> None:
        """For inputs of at most `largest` bytes: see `Compiled`. Contexts cloned before do without."""
        self._compiled = replace(self._compiled, inline=compiled, inline_bytes=largest)
        self.quick_bytes = largest

    @property
    def dynamic(self) -> bool:
        """Whether `example` has to guess at dimensions."""
        return any(port.partial_shape.is_dynamic for port in next(iter(self._compiled.by_size.values())).inputs)

    def example(self, rows: int | None = None) -> Tensors:
        """Zeros that the model takes, and ones beside a picture: dynamic dimensions are 1, except a picture's, which are 32, and
        the `rows`."""
        image = self._options.image.name if self._options.image else None
        size = rows if rows in self._compiled.by_size else self.batch_sizes[0] if self.batch_sizes else None
        tensors = {}
        for name, port in zip(self._names.inputs, self._compiled.by_size[size].inputs, strict=True):
            shape = [d.get_length() if d.is_static else 32 if name == image else 1 for d in port.partial_shape]
            if self.batched and port.partial_shape[0].is_dynamic:
                shape[0] = rows or 1
            fill = zeros if image in (None, name) else ones
            tensors[name] = fill(shape, dtype_of(port.element_type))
        return tensors

    def describe(self) -> Placement:
        """`devices` names the model's operators as placed on HETERO's devices, a lone device's own layers otherwise."""
        return self._placement

    def shape_use(self) -> ShapeUse | None:
        return self._compiled.shapes.use() if self._compiled.shapes else None

    def close(self) -> None:
        """Contexts in use keep their own compiled model until they end."""
        self._compiled = Compiled({})


def placement(compiled: ov.CompiledModel, options: LoadOptions, placed: Mapping[str, tuple[str, ...]]) -> Placement:
    """Where it runs. `placed`: the operators by device, where they were placed by us."""
    told = None if options.precision == "int8" else precision_of(compiled)
    precision = told or options.precision or "device default"
    devices = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
    return Placement("openvino", devices, precision, placed or _layers(compiled, options))


def _layers(compiled: ov.CompiledModel, options: LoadOptions) -> dict[str, tuple[str, ...]]:
    devices: dict[str, set[str]] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        device = str(info["execution_device"].value) if "execution_device" in info else options.device
        kind = str(info["layerType"].value) if "layerType" in info else node.get_type_name()
        devices.setdefault(device, set()).add(kind)
    return {device: tuple(sorted(kinds)) for device, kinds in sorted(devices.items())}
