"""What a model's own files say: labels, task, family, preprocessing. Nothing is guessed that a file does not show.

Sources, the first that speaks: Paddle's `infer_cfg.yml` or `inference_cls.yaml`, Ultralytics' `metadata.yaml` beside the
weights, the metadata inside an ONNX file, and last the shapes of the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.backends import Signature
from visionpool_server.families import picture_shape
from visionpool_server.models import paddle
from visionpool_server.models.bundle import Bundle, read_yaml
from visionpool_server.models.labels import labels_from, literal

_ULTRALYTICS_TASKS = {"detect": "detection", "classify": "classification"}


@dataclass(frozen=True, slots=True)
class Discovery:
    """A bundle made from what was found, and where: `source` is for the operator's eyes."""

    bundle: Bundle
    source: str


def discover(folder: Path, signature: Signature) -> Discovery:
    """Raises InvalidModel for a file that is there but makes no sense."""
    for name, read in (("infer_cfg.yml", paddle.detection), ("inference_cls.yaml", paddle.classification)):
        if (folder / name).exists():
            return Discovery(read(_map_from(folder / name)), name)
    if (folder / "metadata.yaml").exists():
        data = _map_from(folder / "metadata.yaml")
        return Discovery(_ultralytics(data, signature, "metadata.yaml"), "metadata.yaml")
    if "names" in signature.metadata:
        source = "the file's metadata"
        return Discovery(_ultralytics(_unquoted(signature.metadata), signature, source), source)
    family = guess_family(signature, None)
    bundle = Bundle(family=family, task="detection") if family else Bundle()
    return Discovery(bundle, "the shape of its outputs" if family else "nothing")


def _map_from(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise InvalidModel(f"{path}: a map of keys is expected")
    return data


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


def _ultralytics(data: Mapping[str, Any], signature: Signature, source: str) -> Bundle:
    """From the keys `names`, `task`, `imgsz` that Ultralytics' exports carry (YOLOv5's: `names`, `stride` only)."""
    labels = labels_from(data.get("names", {}))
    task = data.get("task", "detect")
    if not isinstance(task, str) or task not in _ULTRALYTICS_TASKS:
        raise InvalidModel(
            f"the export's task is {task!r}, which is not served yet",
            hint=f"served: {', '.join(_ULTRALYTICS_TASKS)}; with task: tensor in a model.yaml, any as plain tensors",
        )
    family = "classification" if task == "classify" else guess_family(signature, len(labels))
    if family is None:
        raise InvalidModel(
            f"the export names {len(labels)} classes, but its outputs fit neither YOLOv5 nor YOLOv8: "
            f"{[spec.shape for spec in signature.outputs]}",
            hint="export it without NMS; or say task: tensor in a model.yaml, for its plain tensors",
        )
    size = data.get("imgsz")
    found: dict[str, Any] = {
        "task": _ULTRALYTICS_TASKS[task],
        "family": family,
        "labels": labels,
        "input_size": [size, size] if isinstance(size, int) else size or _fixed_size(signature),
    }
    return Bundle.checked(source, found)


def _fixed_size(signature: Signature) -> tuple[int, int] | None:
    sizes = [picture_shape(spec.shape).size for spec in signature.inputs if spec.shape and spec.rank == 4]
    return sizes[0] if len(sizes) == 1 else None


def _unquoted(metadata: Mapping[str, str]) -> dict[str, Any]:
    """ONNX metadata are strings: those that are Python literals become values. Parsed, never evaluated."""
    values: dict[str, Any] = {key: literal(metadata[key], key) for key in ("names", "imgsz") if key in metadata}
    return values | ({"task": metadata["task"]} if "task" in metadata else {})
