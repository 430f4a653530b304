"""A family by a model's tensors alone. Nothing is guessed that they do not show."""

from __future__ import annotations

from visionpool_server.backends import Signature
from visionpool_server.families import picture_shape


def guess_family(signature: Signature, classes: int | None) -> str | None:
    """A detector's family by its tensors alone, or None. `classes`: their number, where it is known."""
    outputs = [spec.shape or () for spec in signature.outputs]
    inputs = {spec.name for spec in signature.inputs}
    if "scale_factor" in inputs and sorted(map(len, outputs)) == [1, 2]:
        return "paddle_detection"
    if len(outputs) != 1 or len(outputs[0]) != 3:
        return None
    _, middle, last = outputs[0]
    if classes is not None:
        return "yolov5" if last == classes + 5 else "yolov8" if middle == classes + 4 else None
    if middle is None or last is None or min(middle, last) < 5 or not signature.outputs[0].dtype.startswith("float"):
        return None
    if max(middle, last) < _cells(signature):
        return None  # a map of a picture, perhaps, but not a grid of anchors
    return "yolov5" if middle > last else "yolov8"


def _cells(signature: Signature) -> int:
    """How many cells the finest grid, of stride 8, has on the model's picture; 0 where its size is open."""
    sizes = [picture_shape(spec.shape).size for spec in signature.inputs if spec.shape and spec.rank == 4]
    if len(sizes) != 1 or sizes[0] is None:
        return 0
    height, width = sizes[0]
    return (height // 8) * (width // 8)


def fixed_size(signature: Signature) -> tuple[int, int] | None:
    """(height, width) of the one picture input, where the file fixes them."""
    sizes = [picture_shape(spec.shape).size for spec in signature.inputs if spec.shape and spec.rank == 4]
    return sizes[0] if len(sizes) == 1 else None
