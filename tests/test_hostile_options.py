"""What a caller can ask of a detector at worst: every candidate, every overlap, a mask to each. It is answered in bounds."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from visionpool.errors import InvalidOption
from visionpool.results import DetectionResult
from visionpool_server.families import FamilySpec, Options, build_family
from visionpool_server.families import boxes as shared
from visionpool_server.families.instance_masks import MAX_NUMBERS, MAX_PIXELS, Pixels, with_masks
from visionpool_server.imaging.recipe import Geometry

EVERYTHING = Options(score_threshold=0.0, iou_threshold=1.0, max_detections=100_000)


@pytest.mark.parametrize("compact", [True, False])
def test_masks_too_large_together_are_refused_before_one_is_made(compact: bool) -> None:
    def cover(_: int, __: Pixels) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        raise AssertionError("a mask was made")

    geometry = Geometry(3000, 4000)
    count = (MAX_PIXELS if compact else MAX_NUMBERS) // (3000 * 4000) + 1
    found = DetectionResult(boxes=((0.0, 0.0, 4000.0, 3000.0),) * count)
    with pytest.raises(InvalidOption, match=f"the masks of {count} objects") as refused:
        with_masks(found, cover, geometry, compact=compact)
    assert ("compact" in (refused.value.hint or "")) is not compact
    assert "max_detections" in (refused.value.hint or "")


def test_a_segmenter_asked_for_all_it_has_says_what_to_ask_for_instead() -> None:
    spec = FamilySpec({"images": (1, 3, 640, 640)}, {"o": (1, 37, 8400), "p": (1, 32, 160, 160)})
    model = build_family("yolo_segmentation", spec)
    rows = np.full((37, 8400), 0.5, np.float32)
    rows[:4] = np.array([320, 320, 640, 640], np.float32)[:, None]
    outputs = {"o": rows, "p": np.zeros((32, 160, 160), np.float32)}
    with pytest.raises(InvalidOption, match="the masks of 8400 objects have 17418 million pixels"):
        model.finish(outputs, model.prepare(np.zeros((1080, 1920, 3), np.uint8)).geometry, EVERYTHING)


@pytest.mark.parametrize(
    ("count", "limit", "iou"),
    [(4500, 300, 0.7), (4500, 300, 0.3), (3000, 1, 0.5), (1500, 1400, 0.5), (1200, 100, 0.0), (6000, 300, 0.95)],
)
def test_suppression_looks_no_further_than_it_must_and_finds_the_same(
    count: int, limit: int, iou: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(count)
    corner = random.random((count, 2)) * (30 if count == 6000 else 640)
    boxes = np.hstack([corner, corner + random.random((count, 2)) * 100]).astype(np.float32)
    scores = np.round(random.random(count), 3).astype(np.float32)  # many are equal
    label_ids = random.integers(0, 5, count)
    asked: list[int] = []
    suppress: Any = cv2.dnn.NMSBoxesBatched

    def watched(boxes: Any, *others: Any) -> Any:
        asked.append(len(boxes))
        return suppress(boxes, *others)

    monkeypatch.setattr(cv2.dnn, "NMSBoxesBatched", watched)
    some = shared.non_maximum_suppression(boxes, scores, label_ids, iou, limit)
    whole = shared.non_maximum_suppression(boxes, scores, label_ids, iou, count)
    assert np.array_equal(some, whole[:limit])
    assert asked[0] <= max(1000, 4 * limit)
