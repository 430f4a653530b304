"""Which part of a model is missing, once a backend could not read it: runtimes say this in words that lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path

from visionpool.errors import InvalidModel

# An entry of `TensorProto.external_data`: the key "location", then the length of the file's name and the name (onnx.proto).
_EXTERNAL = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])([^\x00]{1,127})")
_LFS = b"version https://git-lfs"


def missing_part(weights: Path) -> InvalidModel | None:
    """The file that a model which cannot be read lacks, if it lacks one."""
    program = weights / "saved_model.pb" if weights.is_dir() else weights
    if _content(program).startswith(_LFS):
        return InvalidModel(f"{program.name} is a pointer of Git LFS, not the file itself", hint="git lfs pull")
    match program.suffix:
        case ".onnx":
            return _missing_data(weights)
        case ".xml":
            part, mark, copy = program.with_suffix(".bin"), b'"Const"', "the .bin that was written with the .xml"
        case ".pdmodel":
            part, mark, copy = program.with_suffix(".pdiparams"), b"", "both files of the export"
        case ".pb" if program != weights:
            part, mark = weights / "variables" / "variables.index", b"Var"  # VarHandleOp, VariableV2
            copy = "the whole folder that tf.saved_model.save wrote"
        case _:
            return None
    if part.exists() or not _holds(program, mark):
        return None  # a model without constants has no such file
    name = part.relative_to(weights if weights.is_dir() else weights.parent)
    return InvalidModel(f"{weights.name} has its weights in {name}, which is not there", hint=f"copy {copy}")


def _missing_data(weights: Path) -> InvalidModel | None:
    """A file of tensors that an ONNX file names and that is not beside it."""
    for found in _EXTERNAL.finditer(_content(weights)):
        name = found[2][: found[1][0]].decode(errors="replace")
        if not (weights.parent / name).exists():
            return InvalidModel(
                f"{weights.name} has its weights in {name}, which is not there", hint="copy both files of the export"
            )
    return None


def _holds(path: Path, mark: bytes) -> bool:
    return mark in _content(path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
