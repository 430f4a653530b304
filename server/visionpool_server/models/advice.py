"""What to write in a model.yaml, by what a model's outputs look like."""

from __future__ import annotations

from visionpool_server.backends import Signature
from visionpool_server.families import TASKS, picture_shape

_CLASSIFIER = (
    "if it is a classifier, write a model.yaml beside it: {task: classification, labels: FILE, preprocess: "
    "[{resize_short: 256}, {center_crop: 224}, {normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}]}"
)
_PICODET = "if it is a PicoDet, write a model.yaml beside it: {task: detection, family: picodet, labels: FILE}"
_YOLO = "if it is a YOLO detector, write a model.yaml beside it: {family: yolov8, labels: FILE} (or yolov5)"


def advice(signature: Signature) -> str | None:
    """None for a model that takes no picture, or whose outputs look like nothing that is served."""
    pictures = [spec.shape for spec in signature.inputs if spec.shape and spec.rank == 4]
    if len(pictures) != 1 or picture_shape(pictures[0]).channels not in (1, 3, None):
        return None
    ranks = [spec.rank for spec in signature.outputs]
    if ranks == [2]:
        return _CLASSIFIER
    if len(ranks) > 1 and set(ranks) == {3}:
        return _PICODET
    return _YOLO if ranks == [3] else None


def hint(signature: Signature) -> str:
    """The advice, or what is served at all."""
    shapes = ", ".join("any" if spec.shape is None else str(list(spec.shape)) for spec in signature.outputs)
    served = ", ".join(sorted({*TASKS.values(), "tensor"}))
    return (
        advice(signature) or f"its outputs are {shapes}; say family:, or task: tensor for its plain tensors ({served})"
    )
