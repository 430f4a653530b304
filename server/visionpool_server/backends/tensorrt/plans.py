"""Plan files: engines that were built before, by `visionpool build`, by Ultralytics' exporter, by trtexec.

A plan says nothing of labels or of the task, and only a GPU can tell its tensors. Ultralytics therefore writes JSON ahead of it,
after its length in 4 bytes, little-endian; files written here do so too, and say the tensors and a digest of the plan as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.backends import Signature, TensorSpec
from visionpool_server.backends.tensorrt.plan_header import Header, header_of
from visionpool_server.backends.tensorrt.writing import write_whole

SUFFIXES = (".plan", ".engine", ".trt")
_OURS = "visionpool"  # the key of what is said here beside Ultralytics' own
_MOST = 16 << 20  # bytes of JSON: of a thousand classes it is 30 kB
_ONNX_STARTS = b"\x08"  # ModelProto.ir_version, its first field


@dataclass(frozen=True, slots=True)
class PlanFile:
    """`metadata`: as the ONNX file had it; `signature`: None where only the engine itself knows its tensors."""

    plan: bytes = field(repr=False)
    header: Header
    metadata: Mapping[str, str]
    signature: Signature | None = None


def read_plan(path: Path) -> PlanFile:
    """Raises InvalidModel for what is no plan, or a damaged one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidModel(f"{path.name} cannot be read: {(error.strerror or str(error)).lower()}") from error
    said, plan = _apart(data)
    header = header_of(plan)
    if header is None:
        raise InvalidModel(
            f"{path.name} is no TensorRT engine: {_instead(data)}", hint="build it again, or copy it again"
        )
    ours = said.pop(_OURS, {})
    if not isinstance(ours, dict):
        ours = {}
    if ours.get("sha256", digest := hashlib.sha256(plan).hexdigest()) != digest:
        raise InvalidModel(
            f"{path.name} is damaged: it is not what was written", hint="build it again, or copy it again"
        )
    metadata = {key: _as_in_onnx(key, value) for key, value in said.items()}
    return PlanFile(plan, header, metadata, _signature(ours, metadata))


def write_plan(path: Path, plan: bytes, signature: Signature) -> None:
    """With what the ONNX file said of itself. It appears whole or not at all. Raises OSError."""
    ours = {
        "sha256": hashlib.sha256(plan).hexdigest(),
        "inputs": [[spec.name, spec.shape, spec.dtype] for spec in signature.inputs],
        "outputs": [[spec.name, spec.shape, spec.dtype] for spec in signature.outputs],
        "endings": dict(signature.endings),
    }
    said = json.dumps({**signature.metadata, _OURS: ours}).encode()
    write_whole(path, len(said).to_bytes(4, "little"), said, plan)


def _apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """What is said ahead of the plan, and the plan."""
    size = int.from_bytes(data[:4], "little")
    if header_of(data) or not 2 <= size <= min(_MOST, len(data) - 4):
        return {}, data
    try:
        said = json.loads(data[4 : 4 + size])
    except (ValueError, RecursionError):
        return {}, data
    return (said, data[4 + size :]) if isinstance(said, dict) else ({}, data)


def _as_in_onnx(key: str, value: Any) -> str:
    """A value as Ultralytics writes it into an ONNX file: the text of Python's own, where keys of `names` are numbers."""
    if isinstance(value, str):
        return value
    if key == "names" and isinstance(value, dict):
        value = {int(name) if name.isdecimal() else name: text for name, text in value.items()}
    return repr(value)


def _signature(ours: Mapping[str, Any], metadata: Mapping[str, str]) -> Signature | None:
    try:
        inputs, outputs = (tuple(map(_spec, ours[key])) for key in ("inputs", "outputs"))
        endings = {str(name): ending for name, ending in ours["endings"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):  # not ours, or of a later form: the engine tells
        return None
    return Signature(inputs, outputs, metadata, endings)


def _spec(said: Any) -> TensorSpec:
    name, shape, dtype = said
    return TensorSpec(str(name), None if shape is None else tuple(shape), str(dtype))


def _instead(data: bytes) -> str:
    """What it looks like, of what is found under such names."""
    start = data[:64].lstrip()
    if not data:
        return "it is empty"
    if start[:1] == b"<":
        return "it looks like a web page, perhaps of a download that failed"
    if start.startswith(b"version https://git-lfs"):
        return "it is Git LFS's note of where the file is; git lfs pull fetches it"
    if data[:2] == b"PK":
        return "it is a ZIP archive, or a PyTorch checkpoint"
    if data[:1] == _ONNX_STARTS:
        return "it looks like an ONNX file; call it .onnx to have it built"
    return "its first bytes are none of a plan's"


def library_of(file: PlanFile) -> str:
    """The name of the Python package that runs it."""
    return "tensorrt_rtx" if file.header.rtx else "tensorrt"
