"""What the last operators of an ONNX file tell of its outputs: ONNX Runtime does not show its graph, so the file is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from visionpool.errors import InvalidModel

from visionpool_server.backends import Ending
from visionpool_server.backends.onnx_file import read_onnx


def endings(weights: Path, names: Sequence[str]) -> dict[str, Ending]:
    """By the names of the outputs; those whose last operator does not tell are left out."""
    try:
        known = read_onnx(weights).endings
    except InvalidModel:  # it runs all the same: nothing is known of its end, that is all
        return {}
    return {name: known[name] for name in names if name in known}
