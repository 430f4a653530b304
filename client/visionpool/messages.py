"""Results as the messages of visionpool.v1 and back, exactly: a result equals what it becomes on the other side."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from typing import Any

from visionpool.results import (
    Box,
    ClassifyResult,
    DetectionResult,
    EmbeddingResult,
    FaceDetectionResult,
    KeyPointDetectionResult,
    Mask,
    OCRResult,
    Point,
    Result,
    SegmentationResult,
)
from visionpool.v1 import vision_pb2 as v1


def write_result(result: Result, message: v1.Result) -> None:
    """Fills an empty `message` with `result`. Raises KeyError for a type of result that has no message."""
    write = _WRITERS[type(result)]
    part = getattr(message, result.type)
    part.SetInParent()  # a result without content is still one of its kind
    write(result, part)


def read_result(message: v1.Result) -> Result:
    """The result in `message`. Raises ValueError where there is none of a known kind."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise ValueError("a result of an unknown type")
    result: Result = _READERS[kind](getattr(message, kind))
    return result


def _write_detection(result: DetectionResult, message: v1.DetectionResult) -> None:
    _write_boxes(result.boxes, message.boxes)
    message.scores.extend(result.scores)
    message.label_ids.extend(result.label_ids)
    message.labels.extend(result.labels)
    for corners in result.rotated_boxes:
        message.rotated_boxes.add(coordinates=corners)
    for mask in result.masks:
        message.masks.add(data=bytes(mask.data), height=mask.shape[0], width=mask.shape[1], rle=mask.rle)
    message.contain_masks = result.contain_masks


def _read_detection(message: v1.DetectionResult) -> DetectionResult:
    return DetectionResult(
        boxes=_read_boxes(message.boxes),
        scores=tuple(message.scores),
        label_ids=tuple(message.label_ids),
        labels=tuple(message.labels),
        rotated_boxes=tuple(tuple(box.coordinates) for box in message.rotated_boxes),
        masks=tuple(Mask(tuple(mask.data), (mask.height, mask.width), mask.rle) for mask in message.masks),
        contain_masks=message.contain_masks,
    )


def _write_classification(result: ClassifyResult, message: v1.ClassifyResult) -> None:
    message.label_ids.extend(result.label_ids)
    message.scores.extend(result.scores)
    message.labels.extend(result.labels)


def _read_classification(message: v1.ClassifyResult) -> ClassifyResult:
    return ClassifyResult(tuple(message.label_ids), tuple(message.scores), tuple(message.labels))


def _write_embedding(result: EmbeddingResult, message: v1.EmbeddingResult) -> None:
    message.embedding.extend(result.embedding)


def _read_embedding(message: v1.EmbeddingResult) -> EmbeddingResult:
    return EmbeddingResult(tuple(message.embedding))


def _write_segmentation(result: SegmentationResult, message: v1.SegmentationResult) -> None:
    message.label_map.extend(result.label_map)
    message.score_map.extend(result.score_map)
    message.height, message.width = result.shape
    message.contain_score_map = result.contain_score_map
    message.labels.extend(result.labels)
    message.label_map_png = b64decode(result.label_map_png)
    message.score_map_png = b64decode(result.score_map_png)


def _read_segmentation(message: v1.SegmentationResult) -> SegmentationResult:
    return SegmentationResult(
        label_map=tuple(message.label_map),
        score_map=tuple(message.score_map),
        shape=(message.height, message.width),
        contain_score_map=message.contain_score_map,
        labels=tuple(message.labels),
        label_map_png=b64encode(message.label_map_png).decode(),
        score_map_png=b64encode(message.score_map_png).decode(),
    )


def _write_ocr(result: OCRResult, message: v1.OCRResult) -> None:
    for corners in result.boxes:
        message.boxes.add(coordinates=corners)
    message.text.extend(result.text)
    message.rec_scores.extend(result.rec_scores)
    message.cls_scores.extend(result.cls_scores)
    message.cls_labels.extend(result.cls_labels)


def _read_ocr(message: v1.OCRResult) -> OCRResult:
    return OCRResult(
        boxes=tuple(tuple(box.coordinates) for box in message.boxes),
        text=tuple(message.text),
        rec_scores=tuple(message.rec_scores),
        cls_scores=tuple(message.cls_scores),
        cls_labels=tuple(message.cls_labels),
    )


def _write_keypoints(result: KeyPointDetectionResult, message: v1.KeyPointDetectionResult) -> None:
    _write_points(result.keypoints, message.keypoints)
    message.scores.extend(result.scores)
    message.num_joints = result.num_joints
    _write_boxes(result.boxes, message.boxes)
    message.box_scores.extend(result.box_scores)


def _read_keypoints(message: v1.KeyPointDetectionResult) -> KeyPointDetectionResult:
    return KeyPointDetectionResult(
        keypoints=_read_points(message.keypoints),
        scores=tuple(message.scores),
        num_joints=message.num_joints,
        boxes=_read_boxes(message.boxes),
        box_scores=tuple(message.box_scores),
    )


def _write_faces(result: FaceDetectionResult, message: v1.FaceDetectionResult) -> None:
    _write_boxes(result.boxes, message.boxes)
    message.scores.extend(result.scores)
    _write_points(result.landmarks, message.landmarks)
    message.landmarks_per_face = result.landmarks_per_face


def _read_faces(message: v1.FaceDetectionResult) -> FaceDetectionResult:
    return FaceDetectionResult(
        boxes=_read_boxes(message.boxes),
        scores=tuple(message.scores),
        landmarks=_read_points(message.landmarks),
        landmarks_per_face=message.landmarks_per_face,
    )


def _write_boxes(boxes: Iterable[Box], into: Any) -> None:
    for xmin, ymin, xmax, ymax in boxes:
        into.add(xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)


def _read_boxes(boxes: Iterable[v1.Box]) -> tuple[Box, ...]:
    return tuple((box.xmin, box.ymin, box.xmax, box.ymax) for box in boxes)


def _write_points(points: Iterable[Point], into: Any) -> None:
    for x, y in points:
        into.add(x=x, y=y)


def _read_points(points: Iterable[v1.Point]) -> tuple[Point, ...]:
    return tuple((point.x, point.y) for point in points)


_WRITERS: dict[type[Result], Callable[[Any, Any], None]] = {
    DetectionResult: _write_detection,
    ClassifyResult: _write_classification,
    EmbeddingResult: _write_embedding,
    SegmentationResult: _write_segmentation,
    OCRResult: _write_ocr,
    KeyPointDetectionResult: _write_keypoints,
    FaceDetectionResult: _write_faces,
}
_READERS: dict[str, Callable[[Any], Result]] = {
    DetectionResult.type: _read_detection,
    ClassifyResult.type: _read_classification,
    EmbeddingResult.type: _read_embedding,
    SegmentationResult.type: _read_segmentation,
    OCRResult.type: _read_ocr,
    KeyPointDetectionResult.type: _read_keypoints,
    FaceDetectionResult.type: _read_faces,
}
