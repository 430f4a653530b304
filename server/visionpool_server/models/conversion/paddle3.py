"""Paddle 3's programs (`inference.json`, "PIR", with `inference.pdiparams`) into ONNX, by paddle2onnx in a process of its own.

The converter is native code that prints, and aborts on some damaged files; and it brings all of Paddle into memory. None of that
belongs into the server's process.
"""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from visionpool.errors import BackendUnavailable, InvalidModel

from visionpool_server.models.conversion.cache import sha256
from visionpool_server.models.conversion.parameters import truncated

PROGRAM, PARAMETERS = ".json", ".pdiparams"
TIME_LIMIT = 600.0  # seconds: large models take some ten
_NEEDED = {"paddle2onnx": "paddle2onnx", "paddle": "paddlepaddle"}  # what is imported -> what it is installed as
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_REASONS = (r"Failed to convert PaddlePaddle model: (.+)", r"^refused: (.+)", r"\[ERROR\] (.+)", r"^\w*Error: (.+)")


def parameters_of(program: Path) -> Path:
    """The weights that belong to a program. Raises InvalidModel where they are not beside it."""
    parameters = program.with_suffix(PARAMETERS)
    if not parameters.is_file():
        raise InvalidModel(
            f"{program.name} has its weights in {parameters.name}, which is not beside it",
            hint=f"copy {parameters.name} from the export into {program.parent}",
        )
    return parameters


def key(program: Path, parameters: Path) -> str:
    """What a conversion depends on: both files, and the versions of what converts. Raises BackendUnavailable, InvalidModel."""
    if missing := [package for module, package in _NEEDED.items() if find_spec(module) is None]:
        raise BackendUnavailable(
            f"{program.name} is a Paddle 3 program, which {' and '.join(missing)} would convert",
            hint="pip install 'visionpool[paddle]'; or convert it once, elsewhere, and put the result beside it: "
            + by_hand(program),
        )
    try:
        parts = [sha256(program), sha256(parameters), *map(_version, _NEEDED.values())]
    except OSError as error:
        raise InvalidModel(f"{program.name} cannot be read: {error.strerror or error}") from error
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def by_hand(program: Path) -> str:
    """The command that does the same. Unless it is told not to optimise, it installs packages of its own accord."""
    files = f"--model_filename {program.name} --params_filename {program.with_suffix(PARAMETERS).name}"
    return f"paddle2onnx --model_dir . {files} --save_file {program.with_suffix('.onnx').name} --optimize_tool None"


def convert(program: Path, parameters: Path, target: Path) -> None:
    """Writes the ONNX file `target`. Raises InvalidModel, which gives the converter's reason."""
    if truncated(parameters):  # the converter would fill up what is missing with whatever lies in memory
        raise InvalidModel(
            f"{parameters.name} is damaged: it ends within a tensor", hint="copy it from the export again"
        )
    # -P: what lies in the working directory is no module
    child = [sys.executable, "-P", "-m", "visionpool_server.models.conversion.paddle3_process"]
    status, said = _run([*child, str(program), str(parameters), str(target)])
    if status or not target.is_file():
        raise InvalidModel(
            f"{program.name} cannot be converted to ONNX: {_reason(status, said)}",
            hint=f"is it, with {parameters.name}, as it was exported? To see all that the converter says: {by_hand(program)}",
        )


def _run(command: Sequence[str]) -> tuple[int | None, str]:
    """The exit status, None for one that took too long, and what was printed."""
    try:
        ended = subprocess.run(  # noqa: S603  a module of ours, with three paths as its arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return ended.returncode, _COLOURS.sub("", ended.stdout.decode(errors="replace"))


def _reason(status: int | None, said: str) -> str:
    if status is None:
        return f"the converter took longer than {TIME_LIMIT:g} seconds"
    for pattern in _REASONS:
        if found := re.findall(pattern, said, re.MULTILINE):
            return str(found[-1]).strip()[:300]
    if status < 0:
        return f"the converter crashed ({signal.Signals(-status).name})"
    return f"the converter ended with status {status}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # paddlepaddle-gpu brings the same module
        return "unknown"
