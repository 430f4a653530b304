"""Files as ONNX Runtime opens them: their tensors' names, shapes and types."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from visionpool.errors import InvalidModel

from visionpool_server.backends import LoadOptions, Signature, TensorSpec, refuse_unknown_types, zeros
from visionpool_server.backends.onnx_file import read_onnx
from visionpool_server.backends.onnxruntime import libraries
from visionpool_server.backends.onnxruntime.provider import CUDA, Provider

_DTYPES = {"float": "float32", "double": "float64", "string": "bytes"}  # the other names are NumPy's


def open_session(weights: Path | None, settings: ort.SessionOptions, provider: Provider) -> ort.InferenceSession:
    """Raises InvalidModel, and BackendUnavailable where the provider does not load."""
    if weights is None or weights.suffix != ".onnx":
        raise InvalidModel(
            f"ONNX Runtime reads .onnx files, not {weights.name if weights else 'nothing'}",
            hint="say runtime.backend: openvino in model.yaml",
        )
    cuda = provider.name == CUDA
    if cuda:
        libraries.preload()
    try:
        # enable_fallback: it would go on with the CPU where the GPU fails, and say so on the standard output
        session = ort.InferenceSession(str(weights), settings, providers=provider.listed, enable_fallback=0)
        for node in (*session.get_inputs(), *session.get_outputs()):
            spec_of(node)  # raises UnicodeDecodeError for names that are no UTF-8
    except Exception as error:  # its exceptions have no base class of their own
        if cuda and libraries.missing():
            raise libraries.unusable() from error
        raise InvalidModel(f"ONNX Runtime cannot load {weights.name}: {reason(error)}") from error
    if cuda and CUDA not in session.get_providers():
        raise libraries.unusable()
    return session


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


def refuse_what_it_cannot_send(session: ort.InferenceSession) -> None:
    signature = Signature(inputs_of(session), tuple(map(spec_of, session.get_outputs())))
    refuse_unknown_types(signature)
    if {"bytes", "bfloat16"} <= {spec.dtype for spec in (*signature.inputs, *signature.outputs)}:
        raise InvalidModel(
            "ONNX Runtime cannot take strings and bfloat16 in one model from Python",
            hint="say runtime.backend: openvino, or cast the bfloat16 tensors in the export",
        )


def weight_bytes(weights: Path | None) -> int | None:
    """Of the file, and of those that it keeps its larger tensors in; None where that cannot be told."""
    if weights is None:
        return None
    try:
        files = (weights, *(weights.parent / name for name in read_onnx(weights).external))
        return sum(path.stat().st_size for path in files)
    except (OSError, InvalidModel):
        return None
