"""ONNX files through ONNX Runtime: the CPU, or an NVIDIA GPU where `onnxruntime-gpu` is installed.

One session holds the weights; its `run` is safe from many threads, so a context is little more than a name for it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from visionpool.errors import BackendUnavailable, InvalidModel

from visionpool_server.backends import ImageInput, LoadOptions, Placement, Signature, Tensors, TensorSpec
from visionpool_server.cpu import cpu_count

_DTYPES = {"float": "float32", "double": "float64", "float16": "float16"}  # the other names are NumPy's


class OnnxRuntimeBackend:
    def read(self, weights: Path | None) -> Signature:
        settings = ort.SessionOptions()
        settings.log_severity_level = 4  # what fails here is tried again, or reported, elsewhere
        session = _session(weights, settings, ["CPUExecutionProvider"])
        return Signature(
            tuple(_spec(node) for node in session.get_inputs()),
            _outputs(session),
            dict(session.get_modelmeta().custom_metadata_map),
        )

    def load(self, weights: Path | None, options: LoadOptions) -> OnnxRuntimeEngine:
        _refuse_what_it_lacks(options)
        providers = _providers(options.device)
        contexts = options.contexts or cpu_count()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = max(1, cpu_count() // contexts)
        settings.log_severity_level = 3  # its warnings are about its own graph rewriting
        for key, value in options.options.items():
            settings.add_session_config_entry(key, str(value))
        session = _session(weights, settings, providers)
        engine = OnnxRuntimeEngine(session, options, contexts)
        try:
            engine.clone().infer(engine.example())
        except Exception as error:  # its exceptions have no base class of their own
            raise InvalidModel(
                f"the model loads, but fails on a black picture: {_reason(error)}",
                hint="check runtime.shapes and preprocess in model.yaml",
            ) from error
        return engine


class OnnxRuntimeEngine:
    def __init__(self, session: ort.InferenceSession, options: LoadOptions, contexts: int) -> None:
        self._session = session
        self._options = options
        self.contexts = contexts
        self.on_cpu = options.device == "CPU"
        self.batch_sizes, self.max_batch_size = _batching(session, options)

    def clone(self) -> OnnxRuntimeContext:
        return OnnxRuntimeContext(self._session, self._options.image)

    def example(self) -> Tensors:
        """Zeros that the engine takes."""
        tensors = {}
        for spec in map(_spec, self._session.get_inputs()):
            image = self._options.image
            if image and image.name == spec.name:
                known = self._options.shapes.get(spec.name, spec.shape)
                rows = 2 if image.layout == "NCHW" else 1
                height, width = image.size or (known[rows] or 32, known[rows + 1] or 32)
                channels = len(image.arithmetic.mean)
                tensors[spec.name] = np.zeros((1, height, width, channels), np.uint8)
            else:
                shape = [size or 1 for size in self._options.shapes.get(spec.name, spec.shape)]
                tensors[spec.name] = np.zeros([1, *shape[1:]], spec.dtype)
        return tensors

    def describe(self) -> Placement:
        provider = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        return Placement("onnxruntime", provider, "as in the file")

    def close(self) -> None:
        """The session goes with the last context that uses it."""


class OnnxRuntimeContext:
    def __init__(self, session: ort.InferenceSession, image: ImageInput | None) -> None:
        self._session = session
        self._image = image
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in map(_spec, session.get_inputs())}
        self._outputs = [spec.name for spec in map(_spec, session.get_outputs())]

    def infer(self, batch: Tensors) -> Tensors:
        feeds = dict(batch)
        if image := self._image:
            feeds[image.name] = image.arithmetic.apply(batch[image.name], image.layout, self._dtypes[image.name])
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))


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
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, shape, _DTYPES.get(kind, kind))


def _outputs(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    """The outputs as declared. What a file leaves open is tried out: what two sizes of input do not change is fixed."""
    declared = tuple(_spec(node) for node in session.get_outputs())
    if all(None not in spec.shape[1:] for spec in declared):
        return declared
    try:
        small, large = (session.run(None, _zeros(session, batch, side)) for batch, side in ((1, 64), (2, 128)))
    except Exception:  # its exceptions have no base class; some models do not take just any size
        return declared
    return tuple(
        replace(spec, shape=(spec.shape[0], *_common(a.shape[1:], b.shape[1:])))
        if len(a.shape) == len(b.shape) == len(spec.shape)
        else spec
        for spec, a, b in zip(declared, map(np.asarray, small), map(np.asarray, large), strict=True)
    )


def _common(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int | None, ...]:
    return tuple(size if size == twin else None for size, twin in zip(shape, other, strict=True))


def _zeros(session: ort.InferenceSession, batch: int, side: int) -> dict[str, NDArray[Any]]:
    return {
        spec.name: np.zeros([size or (side if i else batch) for i, size in enumerate(spec.shape)], spec.dtype)
        for spec in map(_spec, session.get_inputs())
    }


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


def _batching(session: ort.InferenceSession, options: LoadOptions) -> tuple[tuple[int, ...], int]:
    fixed = {spec.shape[0] for spec in map(_spec, session.get_inputs()) if spec.shape} - {None}
    limit = options.max_batch_size or (1 if options.device == "CPU" else 8)
    if not fixed:
        return tuple(sorted(set(options.batch_sizes))), max(options.batch_sizes or (limit,))
    size = next(iter(fixed))
    assert size is not None
    if (options.max_batch_size or size) != size or set(options.batch_sizes) - {size}:
        raise InvalidModel(
            f"this export fixes its batch size to {size}",
            hint=f"export it with a dynamic batch dimension, or say batching.max_batch_size: {size}",
        )
    return (size,), size
