"""ONNX files through ONNX Runtime: the CPU, or an NVIDIA GPU where `onnxruntime-gpu` is installed.

One session holds the weights; its `run` is safe from many threads, so a context is little more than a name for it.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from visionpool.errors import BackendUnavailable, InvalidModel, InvalidRequest

from visionpool_server.backends import (
    LoadOptions,
    Placement,
    Signature,
    Source,
    Tensors,
    TensorSpec,
    numpy_dtype,
    refuse_unknown_types,
    zeros,
)
from visionpool_server.cpu import cpu_count

_DTYPES = {"float": "float32", "double": "float64", "string": "bytes"}  # the other names are NumPy's
_BFLOAT16 = 16  # TensorProto.BFLOAT16 of onnx.proto


class OnnxRuntimeBackend:
    def read(self, source: Source) -> Signature:
        settings = ort.SessionOptions()
        settings.log_severity_level = 4  # what fails here is tried again, or reported, elsewhere
        session = _session(source.weights, settings, ["CPUExecutionProvider"])
        return Signature(_inputs(session), _outputs(session), dict(session.get_modelmeta().custom_metadata_map))

    def load(self, source: Source, options: LoadOptions) -> OnnxRuntimeEngine:
        _refuse_what_it_lacks(options)
        providers = _providers(options.device)
        contexts = options.contexts or cpu_count()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = max(1, cpu_count() // contexts)
        settings.log_severity_level = 3  # its warnings are about its own graph rewriting
        for key, value in options.options.items():
            settings.add_session_config_entry(key, str(value))
        session = _session(source.weights, settings, providers)
        if options.image is None:
            _refuse_what_it_cannot_send(session)
        engine = OnnxRuntimeEngine(session, options, contexts)
        _run_once(engine, options)
        return engine


def _run_once(engine: OnnxRuntimeEngine, options: LoadOptions) -> None:
    """Runs zeros. A plain model with dynamic dimensions may refuse those of guessed sizes for good reasons."""
    example = engine.example()
    try:
        engine.clone().infer(example)
    except Exception as error:  # its exceptions have no base class of their own
        if options.image is None and engine.dynamic:
            return
        raise InvalidModel(
            f"the model loads, but fails on {'a black picture' if options.image else 'zeros'}: {_reason(error)}",
            hint="check runtime.shapes and preprocess in model.yaml",
        ) from error


class OnnxRuntimeEngine:
    def __init__(self, session: ort.InferenceSession, options: LoadOptions, contexts: int) -> None:
        self._session = session
        self._options = options
        self._inputs = _inputs(session)
        self.contexts = contexts
        self.on_cpu = options.device == "CPU"
        self.batched, self.batch_sizes, self.max_batch_size = _batching(session, options)
        self._placement = Placement(
            "onnxruntime", session.get_providers()[0].removesuffix("ExecutionProvider"), "as in the file"
        )

    def clone(self) -> OnnxRuntimeContext:
        return OnnxRuntimeContext(self._session, self._options)

    @property
    def dynamic(self) -> bool:
        """Whether `example` has to guess at dimensions."""
        return any(None in (spec.shape or ()) for spec in self._inputs)

    def example(self) -> Tensors:
        """Zeros that the engine takes."""
        tensors = {}
        for spec in self._inputs:
            image, known = self._options.image, _known(spec, self._options)
            if image and image.name == spec.name:
                rows = 2 if image.layout == "NCHW" else 1
                height, width = image.size or (known[rows] or 32, known[rows + 1] or 32)
                channels = len(image.arithmetic.mean)
                tensors[spec.name] = np.zeros((1, height, width, channels), np.uint8)
            else:
                shape = [_or(size, 1) for size in known]
                tensors[spec.name] = zeros([1, *shape[1:]] if image else shape, spec.dtype)
        return tensors

    def describe(self) -> Placement:
        return self._placement

    def close(self) -> None:
        """Contexts in use keep the session until they end."""
        self._session = None


class OnnxRuntimeContext:
    def __init__(self, session: ort.InferenceSession, options: LoadOptions) -> None:
        self._session = session
        self._image = options.image
        self._specs = {spec.name: spec for spec in _inputs(session)}
        declared = tuple(map(_spec, session.get_outputs()))
        self._outputs = [spec.name for spec in declared]
        dtypes = {spec.dtype for spec in (*self._specs.values(), *declared)}
        self._run = self._infer_values if "bfloat16" in dtypes else self._infer
        self._texts_in = [spec.name for spec in self._specs.values() if spec.dtype == "bytes"]
        self._texts_out = [spec.name for spec in declared if spec.dtype == "bytes"]

    def infer(self, batch: Tensors) -> Tensors:
        feeds = dict(batch)
        if image := self._image:
            dtype = np.dtype(self._specs[image.name].dtype)
            feeds[image.name] = image.arithmetic.apply(batch[image.name], image.layout, dtype)
        for name in self._texts_in:
            feeds[name] = _decoded(feeds[name], name)
        outputs = self._run(feeds)
        for name in self._texts_out:
            outputs[name] = _mapped(str.encode, outputs[name])
        return outputs

    def _infer(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))

    def _infer_values(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Where there is bfloat16, which its conversion from and to NumPy does not know."""
        values = {name: _value(array, self._specs[name].dtype) for name, array in feeds.items()}
        outputs = self._session.run_with_ort_values(self._outputs, values)
        return dict(zip(self._outputs, map(_array, outputs), strict=True))


def _value(array: NDArray[Any], dtype: str) -> ort.OrtValue:
    if dtype != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)


def _array(value: ort.OrtValue) -> NDArray[Any]:
    if value.element_type() != _BFLOAT16:
        array: NDArray[Any] = value.numpy()
        return array
    count = value.tensor_size_in_bytes() // 2
    raw = (ctypes.c_uint16 * count).from_address(value.data_ptr()) if count else ()
    return np.array(raw, np.uint16).view(numpy_dtype("bfloat16")).reshape(value.shape())


def _decoded(texts: NDArray[Any], name: str) -> NDArray[Any]:
    try:
        return _mapped(bytes.decode, texts)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"input {name!r} has a string that is not UTF-8", hint="ONNX Runtime takes no other strings from Python"
        ) from error


def _mapped(convert: Any, texts: NDArray[Any]) -> NDArray[Any]:
    converted = np.empty(texts.size, object)
    converted[:] = [convert(text) for text in texts.ravel().tolist()]
    return converted.reshape(texts.shape)


def _refuse_what_it_cannot_send(session: ort.InferenceSession) -> None:
    signature = Signature(_inputs(session), tuple(map(_spec, session.get_outputs())))
    refuse_unknown_types(signature)
    if {"bytes", "bfloat16"} <= {spec.dtype for spec in (*signature.inputs, *signature.outputs)}:
        raise InvalidModel(
            "ONNX Runtime cannot take strings and bfloat16 in one model from Python",
            hint="say runtime.backend: openvino, or cast the bfloat16 tensors in the export",
        )


def _session(weights: Path | None, settings: ort.SessionOptions, providers: list[object]) -> ort.InferenceSession:
    if weights is None or weights.suffix != ".onnx":
        raise InvalidModel(
            f"ONNX Runtime reads .onnx files, not {weights.name if weights else 'nothing'}",
            hint="say runtime.backend: openvino in model.yaml",
        )
    try:
        return ort.InferenceSession(str(weights), settings, providers=providers)
    except Exception as error:  # its exceptions have no base class of their own
        raise InvalidModel(f"ONNX Runtime cannot load {weights.name}: {_reason(error)}") from error


def _spec(node: ort.NodeArg) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(
        size if isinstance(size, int) else None for size in node.shape
    )  # a shape left open looks like a scalar's
    return TensorSpec(node.name, shape, _DTYPES.get(kind, kind))


def _inputs(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    return tuple(map(_spec, session.get_inputs()))


def _known(spec: TensorSpec, options: LoadOptions) -> tuple[int | None, ...]:
    """The shape with what runtime.shapes fixes."""
    fixed = options.shapes.get(spec.name)
    if not fixed or not spec.shape:
        return spec.shape or ()
    return tuple(size if size > 0 else known for size, known in zip(fixed, spec.shape, strict=False))


def _outputs(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    """The outputs as declared. What a file leaves open is tried out: what two sizes of input do not change is fixed."""
    declared = tuple(_spec(node) for node in session.get_outputs())
    if all(None not in (spec.shape or ())[1:] for spec in declared):
        return declared
    try:
        small, large = (session.run(None, _zeros(session, batch, side)) for batch, side in ((1, 64), (2, 128)))
    except Exception:  # its exceptions have no base class; some models do not take just any size
        return declared
    return tuple(
        replace(spec, shape=(*(spec.shape or ())[:1], *_common(a.shape[1:], b.shape[1:])))
        if len(a.shape) == len(b.shape) == spec.rank
        else spec
        for spec, a, b in zip(declared, map(np.asarray, small), map(np.asarray, large), strict=True)
    )


def _common(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int | None, ...]:
    return tuple(size if size == twin else None for size, twin in zip(shape, other, strict=True))


def _zeros(session: ort.InferenceSession, batch: int, side: int) -> dict[str, NDArray[Any]]:
    return {
        spec.name: zeros([_or(size, side if i else batch) for i, size in enumerate(spec.shape or ())], spec.dtype)
        for spec in _inputs(session)
    }


def _or(size: int | None, guess: int) -> int:
    return guess if size is None else size


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _providers(device: str) -> list[object]:
    if device == "CPU":
        return ["CPUExecutionProvider"]
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise BackendUnavailable(
            f"the onnxruntime backend runs on CPU or cuda:N, not on {device}",
            hint="say runtime.backend: openvino",
        )
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise BackendUnavailable(
            "this onnxruntime has no CUDA provider",
            hint="pip uninstall onnxruntime; pip install onnxruntime-gpu; and an NVIDIA driver",
        )
    return [("CUDAExecutionProvider", {"device_id": int(index or 0)}), "CPUExecutionProvider"]


def _refuse_what_it_lacks(options: LoadOptions) -> None:
    if options.cpu_operators:
        raise InvalidModel("cpu_operators is OpenVINO's", hint="say runtime.backend: openvino, or leave it out")
    if options.precision not in (None, "f32"):
        raise InvalidModel(
            f"the onnxruntime backend runs the file's own precision, not {options.precision}",
            hint="export the model in that precision, or say runtime.backend: openvino",
        )


def _batching(session: ort.InferenceSession, options: LoadOptions) -> tuple[bool, tuple[int, ...], int]:
    """`batched`, `batch_sizes` and `max_batch_size` of the engine."""
    asked = max(options.batch_sizes, default=options.max_batch_size or 1)
    if options.image is None and asked == 1:
        batched = _joins(session, options)
        return batched, options.batch_sizes if batched else (), 1
    fixed = {spec.shape[0] if spec.shape else 1 for spec in _inputs(session) if spec.shape or not options.image} - {
        None
    }
    if not fixed and (options.image or _gives_rows(session, options, asked)):
        limit = options.max_batch_size or (1 if options.device == "CPU" else 8)
        return True, tuple(sorted(set(options.batch_sizes))), max(options.batch_sizes or (limit,))
    size = next(iter(fixed)) or 1 if fixed else 1
    if (options.max_batch_size or size) != size or set(options.batch_sizes) - {size}:
        raise InvalidModel(
            f"this export fixes its batch size to {size}",
            hint=f"export it with a dynamic batch dimension, or say batching.max_batch_size: {size}",
        )
    return True, (size,), size


def _joins(session: ort.InferenceSession, options: LoadOptions) -> bool:
    """Whether the batch is the first dimension of all inputs and outputs, and no other: the same symbol, or tried out."""
    if any((_known(spec, options) or (0,))[0] is not None for spec in _inputs(session)):
        return False
    shapes = [node.shape for node in (*session.get_inputs(), *session.get_outputs())]
    firsts = {shape[0] if shape else 0 for shape in shapes}
    if len({shape[0] for shape in shapes[: len(session.get_inputs())]} - {None}) > 1:
        return False
    if len(firsts) == 1 and isinstance(symbol := next(iter(firsts)), str):
        return not any(symbol in shape[1:] for shape in shapes)
    return _gives_rows(session, options, 2)


def _gives_rows(session: ort.InferenceSession, options: LoadOptions, rows: int) -> bool:
    """Whether so many rows in give as many out of each output, and change nothing else of its shape."""
    context = OnnxRuntimeContext(session, options)
    shapes = []
    for count in (rows, rows + 5):
        feeds = {}
        for spec in _inputs(session):
            shape = [_or(size, 1) for size in _known(spec, options)]
            feeds[spec.name] = zeros([count, *shape[1:]], spec.dtype)
        try:
            shapes.append([value.shape for value in context.infer(feeds).values()])
        except Exception:  # its exceptions have no base class
            return False
    small, large = shapes
    return all(a == (rows, *b[1:]) and b[:1] == (rows + 5,) for a, b in zip(small, large, strict=True))
