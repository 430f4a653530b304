"""Formats that no runtime here reads are converted before one sees them. So far that is one: Paddle 3's programs, into ONNX.

Between `files`, which finds a model, and the backends, which get `Source.weights`: the model keeps its name, folder and
neighbours, and only its weights are read elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from visionpool_server.models.conversion import paddle3
from visionpool_server.models.conversion.cache import converted


def readable(weights: Path, cache_dir: Path | None) -> Path:
    """`weights`, or the ONNX file that they are converted into: once, and kept in `cache_dir` (None: the user's own cache).

    Raises InvalidModel for files that cannot be converted, BackendUnavailable where the converter is not installed.
    """
    if weights.suffix != paddle3.PROGRAM:
        return weights
    parameters = paddle3.parameters_of(weights)
    key = paddle3.key(weights, parameters)
    return converted(weights.stem, key, cache_dir, lambda target: paddle3.convert(weights, parameters, target))
