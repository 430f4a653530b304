"""Model files as OpenVINO reads them: their tensors' names, shapes and types, and the metadata."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import openvino as ov
from visionpool.errors import InvalidModel

from visionpool_server.backends import Signature, TensorSpec
from visionpool_server.backends.openvino.endings import endings

_DTYPES = {
    "boolean": "bool",
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "bf16": "bfloat16",
    "string": "bytes",
}
_LEADING = ("Exception from", "Check '", "FrontEnd API failed with", "Loading input model", "Converting input model")


@cache
def core() -> ov.Core:
    """The process's one Core: plugins and read models are shared through it."""
    return ov.Core()


@dataclass(frozen=True, slots=True)
class Names:
    """A model's tensors by position, named as in its file: compiling adds and drops names."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, model: ov.Model) -> Names:
        return cls(
            tuple(_name(port, f"input_{i}") for i, port in enumerate(model.inputs)),
            tuple(_name(port, f"output_{i}") for i, port in enumerate(model.outputs)),
        )


def read_model(weights: Path | None) -> ov.Model:
    if weights is None:
        raise InvalidModel("no weights given", hint="say weights: FILE in model.yaml")
    try:
        model = core().read_model(weights)
        Names.of(model)
    except (RuntimeError, ValueError) as error:  # the binding raises UnicodeDecodeError for names that are no UTF-8
        raise InvalidModel(
            f"OpenVINO cannot read {weights.name}: {reason(error)}",
            hint="is it whole, with all files of the export? OpenVINO reads .onnx, .xml with .bin, .pdmodel with .pdiparams, "
            ".pb, SavedModel folders and .tflite",
        ) from error
    if not model.inputs or not model.outputs:
        raise InvalidModel(f"{weights.name} has no {'outputs' if model.inputs else 'inputs'}", hint="export it again")
    return model


def signature_of(model: ov.Model) -> Signature:
    names = Names.of(model)
    inputs = tuple(map(_spec, names.inputs, model.inputs))
    outputs = tuple(map(_spec, names.outputs, model.outputs))
    return Signature(inputs, outputs, _metadata(model), endings(model, names.outputs))


def dtype_of(element_type: ov.Type) -> str:
    """As `TensorSpec.dtype` names it; OpenVINO's own name for what NumPy does not have, such as i4."""
    name = str(element_type.get_type_name())
    return _DTYPES.get(name, name)


def reason(error: Exception) -> str:
    """The telling line of OpenVINO's message: it leads with source positions, and the kind of failure."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_LEADING)]
    return (telling or lines[-1:] or ["no reason given"])[0][:300]


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
    dtype = dtype_of(port.element_type)
    if port.partial_shape.rank.is_dynamic:
        return TensorSpec(name, None, dtype)
    return TensorSpec(name, tuple(d.get_length() if d.is_static else None for d in port.partial_shape), dtype)
