"""What Ultralytics' exports say of themselves, in `metadata.yaml` beside the weights or inside an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.backends import Signature
from visionpool_server.families import TASKS
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


def bundle_from(data: Mapping[str, Any], signature: Signature, source: str) -> Bundle:
    """From the keys `names`, `task`, `imgsz` that Ultralytics' exports carry (YOLOv5's: `names`, `stride` only)."""
    labels = labels_from(data.get("names", {}))
    task = data.get("task", "detect")
    if not isinstance(task, str) or task not in _FAMILIES:
        raise InvalidModel(
            f"the export's task is {task!r}, which is not served yet",
            hint=f"served: {', '.join(_FAMILIES)}; with task: tensor in a model.yaml, any as plain tensors",
        )
    family = _FAMILIES[task] or guess_family(signature, len(labels))
    if family is None:
        raise InvalidModel(
            f"the export names {len(labels)} classes, but its outputs fit neither YOLOv5 nor YOLOv8: "
            f"{[spec.shape for spec in signature.outputs]}",
            hint="export it without NMS; or say task: tensor in a model.yaml, for its plain tensors",
        )
    size = data.get("imgsz")
    found: dict[str, Any] = {
        "task": TASKS[family],
        "family": family,
        "labels": labels,
        "input_size": [size, size] if isinstance(size, int) else size or fixed_size(signature),
    }
    return Bundle.checked(source, found)


def unquoted(metadata: Mapping[str, str]) -> dict[str, Any]:
    """ONNX metadata are strings: those that are Python literals become values. Parsed, never evaluated."""
    values: dict[str, Any] = {key: literal(metadata[key], key) for key in ("names", "imgsz") if key in metadata}
    return values | ({"task": metadata["task"]} if "task" in metadata else {})
