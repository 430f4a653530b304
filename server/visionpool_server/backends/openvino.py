"""Intel CPU, GPU and NPU through OpenVINO, by any device string: CPU, GPU.1, NPU, AUTO, HETERO:GPU,CPU ...

A compiled model holds the weights, its infer requests are the contexts. The picture's arithmetic is compiled into the
graph (PrePostProcessor), so that what a worker hands over is uint8.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

# Its usage statistics write under HOME and ask the network at import: with this it falls back to its own stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov
from openvino.preprocess import PrePostProcessor
from visionpool.errors import BackendUnavailable, InvalidModel

from visionpool_server.backends import ImageInput, LoadOptions, Placement, Signature, Tensors, TensorSpec

_PRECISION = "INFERENCE_PRECISION_HINT"
_GPU_BATCH_SIZES = (1, 2, 4, 8)
_STRUCTURE = {"Parameter", "Constant", "Result"}  # graph nodes that no device "runs"
_OV_LIMIT = 2**31 - 1  # a dimension whose upper bound is not known


@cache
def core() -> ov.Core:
    """The process's one Core: plugins and read models are shared through it."""
    return ov.Core()


class OpenVinoBackend:
    def read(self, weights: Path | None) -> Signature:
        """The signature of an ONNX, IR, Paddle, TensorFlow or TFLite file. Raises InvalidModel."""
        model = _read(weights)
        names = _Names.of(model)
        inputs = tuple(map(_spec, names.inputs, model.inputs))
        outputs = tuple(map(_spec, names.outputs, model.outputs))
        return Signature(inputs, outputs, _metadata(model))

    def load(self, weights: Path | None, options: LoadOptions) -> OpenVinoEngine:
        _check_device(options.device)
        model = _read(weights)
        names = _Names.of(model)
        sizes = _batch_sizes(model, names, options)
        shaped = {size: _shaped(model.clone(), names, size, options) for size in sizes or (None,)}
        placed = [_place(model, options) for model in shaped.values()]
        compiled = {size: _compile(model, options) for size, model in shaped.items()}
        engine = OpenVinoEngine(compiled, sizes, names, options, placed[0])
        try:
            engine.clone().infer(engine.example())  # also keeps workers from the binding's first-use deadlock
        except RuntimeError as error:
            raise InvalidModel(
                f"the model loads, but fails on a black picture: {_reason(error)}",
                hint="check runtime.shapes and preprocess in model.yaml",
            ) from error
        return engine


class OpenVinoEngine:
    """Compiled models by batch size; the key None is one that takes any size up to `max_batch_size`."""

    def __init__(
        self,
        compiled: Mapping[int | None, ov.CompiledModel],
        sizes: tuple[int, ...],
        names: _Names,
        options: LoadOptions,
        placed: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._compiled = compiled
        self._names = names
        self._options = options
        self._placed = placed
        self.on_cpu = options.device == "CPU"
        self.batch_sizes = sizes
        self.max_batch_size = max(sizes) if sizes else options.max_batch_size or 1
        first = next(iter(compiled.values()))
        self.contexts = options.contexts or int(first.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._first = first

    def clone(self) -> OpenVinoContext:
        return OpenVinoContext(self._compiled, self._names)

    def example(self) -> Tensors:
        """Zeros that the model takes: dynamic dimensions are 1, except a picture's, which are 32."""
        image = self._options.image.name if self._options.image else None
        batch = self.batch_sizes[0] if self.batch_sizes else 1
        tensors = {}
        for name, port in zip(self._names.inputs, self._first.inputs, strict=True):
            shape = [d.get_length() if d.is_static else 32 if name == image else 1 for d in port.partial_shape]
            tensors[name] = np.zeros([batch, *shape[1:]], port.element_type.to_dtype())
        return tensors

    def describe(self) -> Placement:
        """`devices` names the model's operators as placed on HETERO's devices, a lone device's own layers otherwise."""
        return Placement(
            "openvino",
            ", ".join(self._first.get_property("EXECUTION_DEVICES")),
            self._precision(),
            self._placed or self._layers(),
        )

    def _precision(self) -> str:
        if _PRECISION in self._first.get_property("SUPPORTED_PROPERTIES"):
            return str(self._first.get_property(_PRECISION).get_type_name())
        return self._options.precision or "device default"

    def _layers(self) -> dict[str, tuple[str, ...]]:
        devices: dict[str, set[str]] = {}
        for node in self._first.get_runtime_model().get_ops():
            info = node.get_rt_info()
            device = str(info["execution_device"].value) if "execution_device" in info else self._options.device
            kind = str(info["layerType"].value) if "layerType" in info else node.get_type_name()
            devices.setdefault(device, set()).add(kind)
        return {device: tuple(sorted(kinds)) for device, kinds in sorted(devices.items())}

    def close(self) -> None:
        self._compiled = {}


class OpenVinoContext:
    """One infer request for each batch size in use."""

    def __init__(self, compiled: Mapping[int | None, ov.CompiledModel], names: _Names) -> None:
        self._compiled = compiled
        self._names = names
        self._requests: dict[int | None, ov.InferRequest] = {}

    def infer(self, batch: Tensors) -> Tensors:
        size = len(next(iter(batch.values())))
        request = self._request(size if size in self._compiled else None)
        for i, name in enumerate(self._names.inputs):  # set one by one: handing them to infer() costs twice the time
            request.set_input_tensor(i, ov.Tensor(batch[name], shared_memory=True))
        request.infer(share_outputs=True)
        return {name: request.get_output_tensor(i).data for i, name in enumerate(self._names.outputs)}

    def _request(self, size: int | None) -> ov.InferRequest:
        if size not in self._requests:
            self._requests[size] = self._compiled[size].create_infer_request()
        return self._requests[size]


@dataclass(frozen=True, slots=True)
class _Names:
    """A model's tensors by position, named as in its file: compiling adds and drops names."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, model: ov.Model) -> _Names:
        return cls(
            tuple(_name(port, f"input_{i}") for i, port in enumerate(model.inputs)),
            tuple(_name(port, f"output_{i}") for i, port in enumerate(model.outputs)),
        )


def _read(weights: Path | None) -> ov.Model:
    if weights is None:
        raise InvalidModel("no weights given", hint="say weights: FILE in model.yaml")
    try:
        model = core().read_model(weights)
        _Names.of(model)
    except (RuntimeError, ValueError) as error:  # the binding raises UnicodeDecodeError for names that are no UTF-8
        raise InvalidModel(
            f"OpenVINO cannot read {weights.name}: {_reason(error)}",
            hint="it reads .onnx, .xml with .bin, .pdmodel with .pdiparams, .pb, SavedModel folders and .tflite",
        ) from error
    if not model.inputs or not model.outputs:
        raise InvalidModel(f"{weights.name} has no {'outputs' if model.inputs else 'inputs'}", hint="export it again")
    return model


def _metadata(model: ov.Model) -> dict[str, str]:
    """ONNX `metadata_props` stand in the section `framework` of rt_info, an IR's own in `model_info`."""
    found: dict[str, str] = {}
    for section in ("model_info", "framework"):
        if model.has_rt_info([section]):
            entries = model.get_rt_info([section]).value
            if isinstance(entries, dict):
                found.update({str(key): str(model.get_rt_info([section, key]).value) for key in entries})
    return found


def _name(port: Any, fallback: str) -> str:
    """A tensor's name, or a stable one made from its position: exports with unnamed tensors exist."""
    return min(port.get_names(), key=lambda name: (len(name), name)) if port.get_names() else fallback


def _spec(name: str, port: Any) -> TensorSpec:
    shape = () if port.partial_shape.rank.is_dynamic else tuple(port.partial_shape)
    dimensions = tuple(d.get_length() if d.is_static else None for d in shape)
    return TensorSpec(name, dimensions, _dtype(port.element_type))


def _dtype(element_type: ov.Type) -> str:
    return "bfloat16" if element_type == ov.Type.bf16 else np.dtype(element_type.to_dtype()).name


def _batch_sizes(model: ov.Model, names: _Names, options: LoadOptions) -> tuple[int, ...]:
    """The fixed sizes to compile for; empty for one dynamic size. Devices other than the CPU want fixed ones."""
    limit = options.max_batch_size
    if options.batch_sizes:
        wanted: tuple[int, ...] = tuple(sorted(set(options.batch_sizes)))
    elif options.device == "CPU":
        wanted = (1,) if limit in (None, 1) else ()
    else:
        wanted = tuple(sorted({size for size in _GPU_BATCH_SIZES if size <= (limit or 8)} | {limit or 1}))
    if wanted == (1,) or _takes_batches(model, names, options, max(wanted or (limit or 1,))):
        return wanted
    if limit is None and not options.batch_sizes:
        return (1,)  # the export fixed its batch: nobody asked for more
    _shaped(model.clone(), names, 1, options)  # where that fails too, it is not for the batch
    raise InvalidModel(
        "this export works for one picture at a time: its graph fixes the batch size",
        hint="export it with a dynamic batch dimension, or say batching.max_batch_size: 1",
    )


def _takes_batches(model: ov.Model, names: _Names, options: LoadOptions, size: int) -> bool:
    try:
        shaped = _shaped(model.clone(), names, size, options)
    except InvalidModel:
        return False
    first = shaped.outputs[0].partial_shape
    return bool(first.rank.is_dynamic or first[0].is_dynamic or first[0].get_length() % size == 0)


def _shaped(model: ov.Model, names: _Names, batch: int | None, options: LoadOptions) -> ov.Model:
    """`model` with its batch, its picture's size and the `shapes` fixed, and the arithmetic compiled in."""
    shapes = {
        i: _input_shape(name, model.input(i).partial_shape, batch, options) for i, name in enumerate(names.inputs)
    }
    try:
        model.reshape(shapes)
    except RuntimeError as error:
        raise InvalidModel(
            f"the model does not take the shapes {[str(shape) for shape in shapes.values()]}: {_reason(error)}",
            hint="check runtime.shapes in model.yaml",
        ) from error
    image = options.image
    return _with_arithmetic(model, names.inputs.index(image.name), image) if image else model


def _input_shape(name: str, shape: ov.PartialShape, batch: int | None, options: LoadOptions) -> ov.PartialShape:
    dimensions = list(shape)
    if fixed := options.shapes.get(name):
        if len(fixed) != len(dimensions):
            raise InvalidModel(
                f"runtime.shapes gives {name!r} {len(fixed)} dimensions, the model has {len(dimensions)}: {shape}"
            )
        dimensions = [ov.Dimension(value) if value > 0 else d for value, d in zip(fixed, dimensions, strict=True)]
    image = options.image
    if image and image.name == name and image.size:
        rows = 2 if image.layout == "NCHW" else 1
        dimensions[rows], dimensions[rows + 1] = map(ov.Dimension, image.size)
    if dimensions:
        dimensions[0] = ov.Dimension(batch) if batch else ov.Dimension(1, options.max_batch_size or _OV_LIMIT)
    return ov.PartialShape(dimensions)


def _with_arithmetic(model: ov.Model, index: int, image: ImageInput) -> ov.Model:
    """Takes uint8 NHWC RGB: `(x * scale - mean) / std` is `(x - mean / scale) / (std / scale)` here."""
    arithmetic = image.arithmetic
    processor = PrePostProcessor(model)
    picture = processor.input(index)
    picture.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    picture.model().set_layout(ov.Layout(image.layout))
    steps = picture.preprocess().convert_element_type(ov.Type.f32)
    if arithmetic.channels == "bgr":
        steps.reverse_channels()
    if any(arithmetic.mean):
        steps.mean([value / arithmetic.scale for value in arithmetic.mean])
    steps.scale([value / arithmetic.scale for value in arithmetic.std])
    try:
        return processor.build()
    except RuntimeError as error:
        raise InvalidModel(
            f"the input {image.name!r} does not take a picture as prepared: {_reason(error)}",
            hint="check preprocess and runtime.shapes in model.yaml against the model's input",
        ) from error


def _compile(model: ov.Model, options: LoadOptions) -> ov.CompiledModel:
    try:
        return core().compile_model(model, options.device, _properties(options))
    except RuntimeError as error:
        with suppress(RuntimeError):  # not every device answers the query
            _check_operators(model, core().query_model(model, options.device), options.device)
        raise InvalidModel(
            f"OpenVINO cannot compile the model for {options.device}: {_reason(error)}",
            hint=None
            if options.device == "CPU"
            else "runtime.device: HETERO:GPU,CPU runs on the CPU what the first device lacks",
        ) from error


def _properties(options: LoadOptions) -> dict[str, Any]:
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT"}
    devices = _devices(options.device)
    if options.contexts and devices == [options.device]:
        key = "NUM_STREAMS" if options.device == "CPU" else "PERFORMANCE_HINT_NUM_REQUESTS"
        properties[key] = str(options.contexts)
    if options.precision:
        properties[_PRECISION] = options.precision
    elif options.device == "CPU":
        properties[_PRECISION] = "f32"  # its own default is bf16
    elif "CPU" in devices or devices == ["AUTO"]:
        properties["DEVICE_PROPERTIES"] = {"CPU": {_PRECISION: "f32"}}
    if options.cache_dir:
        properties["CACHE_DIR"] = str(options.cache_dir)
    return properties | dict(options.options)


def _place(model: ov.Model, options: LoadOptions) -> dict[str, tuple[str, ...]]:
    """Pins `cpu_operators` to the CPU. Device -> operators as HETERO places them; empty for other devices."""
    device, wanted = options.device, options.cpu_operators
    if not device.startswith("HETERO:"):
        if wanted:
            raise InvalidModel(
                f"cpu_operators needs HETERO with a second device, and the device is {device}",
                hint="say runtime.device: HETERO:GPU,CPU, or leave cpu_operators out"
                if device == "CPU"
                else f"say runtime.device: HETERO:{device},CPU",
            )
        return {}
    operators = [node for node in model.get_ops() if node.get_type_name() not in _STRUCTURE]
    present = {node.get_type_name() for node in operators}
    if unknown := set(wanted) - present:
        raise InvalidModel(
            f"cpu_operators names {', '.join(sorted(unknown))}, which the model does not have",
            hint=f"it has {', '.join(sorted(present))}",
        )
    found = core().query_model(model, device)
    _check_operators(model, found, device)
    placed: dict[str, set[str]] = {}
    for node in model.get_ops():
        kind = node.get_type_name()
        target = "CPU" if kind in wanted else found.get(node.get_friendly_name(), "CPU")
        if wanted:  # otherwise HETERO places them itself
            node.get_rt_info()["affinity"] = target
        if kind not in _STRUCTURE:
            placed.setdefault(target, set()).add(kind)
    return {target: tuple(sorted(kinds)) for target, kinds in sorted(placed.items())}


def _check_operators(model: ov.Model, placed: Mapping[str, str], device: str) -> None:
    """Raises InvalidModel that names the operators that `device` lacks, and the setting that helps."""
    lacking = {node.get_type_name() for node in model.get_ops() if node.get_friendly_name() not in placed}
    missing = sorted(lacking - _STRUCTURE)
    if not missing:
        return
    devices = _devices(device)
    raise InvalidModel(
        f"{device} cannot run {', '.join(missing)}",
        hint="no device named has them: export the model without, or say runtime.backend: onnxruntime"
        if "CPU" in devices
        else f"say runtime.device: HETERO:{','.join(devices)},CPU in model.yaml, "
        f"with runtime.cpu_operators: [{', '.join(missing)}]",
    )


def _devices(device: str) -> list[str]:
    """The single devices that a device string names."""
    virtual, _, names = device.partition(":")
    return [name.strip() for name in names.split(",")] if virtual in ("HETERO", "AUTO", "MULTI") and names else [device]


def _check_device(device: str) -> None:
    """Raises BackendUnavailable for a device that this machine does not have."""
    known = core().available_devices
    for name in (part.lstrip("-") for part in _devices(device)):
        if name in ("AUTO", "HETERO", "MULTI") or any(d == name or d.split(".")[0] == name for d in known):
            continue
        raise BackendUnavailable(
            f"OpenVINO finds no device {name!r} on this machine; it finds {', '.join(known)}",
            hint="an Intel GPU needs the OpenCL loader (libOpenCL.so.1) and Intel's compute runtime; /dev/dri in a container",
        )


def _reason(error: Exception) -> str:
    """The telling line of OpenVINO's message: it leads with source positions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or ["no reason given"])[0][:300]
