"""Files as ONNX Runtime opens them: their tensors' names, shapes and types, and the devices it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from visionpool.errors import BackendUnavailable, InvalidModel

from visionpool_server.backends import LoadOptions, TensorSpec, zeros

_DTYPES = {"float": "float32", "double": "float64", "string": "bytes"}  # the other names are NumPy's


def open_session(weights: Path | None, settings: ort.SessionOptions, providers: list[object]) -> ort.InferenceSession:
    if weights is None or weights.suffix != ".onnx":
        raise InvalidModel(
            f"ONNX Runtime reads .onnx files, not {weights.name if weights else 'nothing'}",
            hint="say runtime.backend: openvino in model.yaml",
        )
    try:
        session = ort.InferenceSession(str(weights), settings, providers=providers)
        for node in (*session.get_inputs(), *session.get_outputs()):
            spec_of(node)  # raises UnicodeDecodeError for names that are no UTF-8
        return session
    except Exception as error:  # its exceptions have no base class of their own
        raise InvalidModel(f"ONNX Runtime cannot load {weights.name}: {reason(error)}") from error


def spec_of(node: ort.NodeArg) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)  # () for a rank left open, too
    return TensorSpec(node.name, shape, _DTYPES.get(kind, kind))


def inputs_of(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    return tuple(map(spec_of, session.get_inputs()))


def known_shape(spec: TensorSpec, options: LoadOptions) -> tuple[int | None, ...]:
    """The shape with what runtime.shapes fixes."""
    fixed = options.shapes.get(spec.name)
    if not fixed or not spec.shape:
        return spec.shape or ()
    return tuple(size if size > 0 else known for size, known in zip(fixed, spec.shape, strict=False))


def outputs_of(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    """The outputs as declared. What a file leaves open is tried out: what two sizes of input do not change is fixed."""
    declared = tuple(spec_of(node) for node in session.get_outputs())
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
        spec.name: zeros([size_or(size, side if i else batch) for i, size in enumerate(spec.shape or ())], spec.dtype)
        for spec in inputs_of(session)
    }


def size_or(size: int | None, guess: int) -> int:
    return guess if size is None else size


def reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def providers_for(device: str) -> list[object]:
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
