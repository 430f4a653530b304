"""What Ultralytics' exports say of themselves, in `metadata.yaml` beside the weights or inside an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.backends import Signature
from visionpool_server.families import TASKS, canonical
from visionpool_server.models.advice import raw_heads
from visionpool_server.models.bundle import Bundle
from visionpool_server.models.guess import fixed_size, guess_family
from visionpool_server.models.labels import labels_from, literal

# Their tasks, each with the family that does it; None: the shape of the outputs tells which.
_FAMILIES = {
    "detect": None,
    "classify": "classification",
    "segment": "yolo_segmentation",
    "pose": "yolo_pose",
    "obb": "yolo_obb",
}
_MORE_THAN_BOXES = ("yolo_segmentation", "yolo_pose", "yolo_obb")
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def bundle_from(data: Mapping[str, Any], signature: Signature, source: str, said: str | None = None) -> Bundle:
    """From the keys `names`, `task`, `imgsz` that Ultralytics' exports carry (YOLOv5's: `names`, `stride` only).

    `said`: the family that model.yaml says; a YOLOv5 classifier, for one, does not say what it is.
    """
    labels = labels_from(data.get("names", {}))
    task = data.get("task", "classify" if _is_old_classifier(data, signature) else "detect")
    if not isinstance(task, str) or task not in _FAMILIES:
        raise InvalidModel(
            f"the export's task is {task!r}, which is not served yet",
            hint=f"served: {', '.join(_FAMILIES)}; with task: tensor in a model.yaml, any as plain tensors",
        )
    family = canonical(said) if said else _FAMILIES[task] or _detector(data, signature, len(labels))
    size = data.get("imgsz")
    size = [size, size] if isinstance(size, int) else size or fixed_size(signature)
    found: dict[str, Any] = {"task": TASKS[family], "family": family, "labels": labels, "input_size": size}
    if family == "classification" and isinstance(size, (list, tuple)) and len(size) == 2:
        found["preprocess"] = _classifier_steps(*size) if "task" in data else _old_classifier_steps(*size)
    if family in _MORE_THAN_BOXES:
        joints = {"kpt_shape": data["kpt_shape"]} if family == "yolo_pose" and "kpt_shape" in data else {}
        found["postprocess"] = {**joints, **({"suppressed": True} if _suppresses(data) else {})}
    return Bundle.checked(source, found)


def _is_old_classifier(data: Mapping[str, Any], signature: Signature) -> bool:
    """YOLOv5's exporter names no task: its classifiers end in a score for each class."""
    return "task" not in data and [spec.rank for spec in signature.outputs] == [2]


def _classifier_steps(height: Any, width: Any) -> list[dict[str, Any]]:
    """`classify_transforms` of `ultralytics/data/augment.py`: torchvision's, on Pillow's pictures."""
    if height != width:
        return [{"resize": {"size": (height, width), "antialias": True}}]
    crop = {"size": (height, width), "rounding": "nearest"}
    return [{"resize_short": {"size": height, "antialias": True, "rounding": "down"}}, {"center_crop": crop}]


def _old_classifier_steps(height: Any, width: Any) -> list[dict[str, Any] | str]:
    """`classify_transforms` of YOLOv5's `utils/augmentations.py`."""
    return ["crop_square", {"resize": (height, width)}, {"normalize": _IMAGENET}]


def _suppresses(data: Mapping[str, Any]) -> bool:
    arguments = data.get("args")
    return data.get("end2end") is True or (isinstance(arguments, Mapping) and arguments.get("nms") is True)


def _detector(data: Mapping[str, Any], signature: Signature, classes: int) -> str:
    """The family of an export for the task `detect`. Raises InvalidModel where the outputs fit none."""
    if "rtdetr" in str(data.get("description", "")).lower().replace("-", ""):
        return "rtdetr"
    if _suppresses(data):
        return "yolo_end2end"
    if family := guess_family(signature, classes):
        return family
    raise InvalidModel(
        f"the export names {classes} classes, but its outputs fit neither YOLOv5 nor YOLOv8: "
        f"{[spec.shape for spec in signature.outputs]}",
        hint=raw_heads(signature) or "say family: in a model.yaml; or task: tensor, for its plain tensors",
    )


def unquoted(metadata: Mapping[str, str]) -> dict[str, Any]:
    """ONNX metadata are strings: those that are Python literals become values. Parsed, never evaluated."""
    values: dict[str, Any] = {
        key: literal(metadata[key], key) for key in ("names", "imgsz", "kpt_shape") if key in metadata
    }
    for key in ("args", "end2end"):  # what cannot be read of them does no harm
        with suppress(InvalidModel):
            values |= {key: literal(metadata[key], key)} if key in metadata else {}
    return values | {key: metadata[key] for key in ("task", "description") if key in metadata}
