"""Results survive JSON, stay as they are, and read the answers of older and newer servers."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionpool.results import (
    RESULT_TYPES,
    ClassifyResult,
    DetectionResult,
    FaceDetectionResult,
    KeyPointDetectionResult,
    Mask,
    OCRResult,
    Result,
    SegmentationResult,
    result_from_dict,
)

number = st.floats(allow_nan=False, allow_infinity=False)
score = st.floats(0, 1)
label_id = st.integers(0, 2**31 - 1)
box = st.tuples(number, number, number, number)
point = st.tuples(number, number)


def many(item: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(item, max_size=3).map(tuple)


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    rows, columns = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    values = draw(st.lists(st.integers(0, 1), min_size=rows * columns, max_size=rows * columns))
    return Mask(tuple(values), (rows, columns))


results: st.SearchStrategy[Result] = st.one_of(
    st.builds(
        DetectionResult,
        boxes=many(box),
        scores=many(score),
        label_ids=many(label_id),
        labels=many(st.text()),
        rotated_boxes=many(st.tuples(*[number] * 8)),
        masks=many(masks()),
        contain_masks=st.booleans(),
    ),
    st.builds(ClassifyResult, label_ids=many(label_id), scores=many(score), labels=many(st.text())),
    st.builds(
        SegmentationResult,
        label_map=many(label_id),
        score_map=many(score),
        shape=st.tuples(label_id, label_id),
        contain_score_map=st.booleans(),
        labels=many(st.text()),
    ),
    st.builds(
        OCRResult,
        boxes=many(st.tuples(*[st.integers(-9, 9999)] * 8)),
        text=many(st.text()),
        rec_scores=many(score),
        cls_scores=many(score),
        cls_labels=many(st.integers(0, 1)),
    ),
    st.builds(
        KeyPointDetectionResult,
        keypoints=many(point),
        scores=many(score),
        num_joints=st.integers(-1, 200),
    ),
    st.builds(
        FaceDetectionResult,
        boxes=many(box),
        scores=many(score),
        landmarks=many(point),
        landmarks_per_face=st.integers(0, 200),
    ),
)
each_type = pytest.mark.parametrize("kind", RESULT_TYPES.values(), ids=lambda kind: kind.type)


@given(results)
def test_a_result_survives_json(result: Result) -> None:
    assert type(result).from_json(result.to_json()) == result
    assert type(result).from_json(result.to_json().encode()) == result
    assert result_from_dict(json.loads(result.to_json())) == result
    assert hash(result_from_dict(result.to_dict())) == hash(result)


@given(results)
def test_a_dictionary_holds_plain_json_values_only(result: Result) -> None:
    assert json.loads(result.to_json()) == result.to_dict()
    assert next(iter(result.to_dict())) == "type"


@each_type
def test_missing_fields_get_defaults_and_unknown_ones_are_ignored(kind: type[Result]) -> None:
    assert kind.from_dict({}) == kind()
    assert kind.from_dict({"type": kind.type, "from_the_future": [1]}) == kind()


@each_type
def test_another_type_is_refused(kind: type[Result]) -> None:
    other = "ocr" if kind.type != "ocr" else "faces"
    with pytest.raises(ValueError, match=f"this is a '{other}' result, not a '{kind.type}' one"):
        kind.from_dict({"type": other})


@pytest.mark.parametrize("data", [{"type": "hologram"}, {}, {"type": None}])
def test_an_unknown_type_is_refused_with_the_known_ones(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown type of result .*; known: detection, classification"):
        result_from_dict(data)


@each_type
def test_a_result_cannot_be_changed(kind: type[Result]) -> None:
    result = kind()
    name = fields(result)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(result, name, ())
    with pytest.raises((AttributeError, TypeError)):
        result.extra = 1  # type: ignore[attr-defined]


def test_lists_become_tuples_all_the_way_down() -> None:
    result = DetectionResult.from_dict(
        {
            "boxes": [[1, 2, 3, 4]],
            "masks": [{"data": [0, 1], "shape": [1, 2], "new": 0}],
            "contain_masks": True,
        }
    )
    assert result.boxes == ((1, 2, 3, 4),)
    assert result.masks == (Mask((0, 1), (1, 2)),)


def test_text_stays_readable_in_json() -> None:
    assert OCRResult(text=("Straße 猫",)).to_json().startswith('{"type":"ocr","boxes":[],"text":["Straße 猫"]')


def test_every_class_of_result_is_found_by_its_type() -> None:
    # By type: a slotted dataclass leaves its unslotted twin among the subclasses.
    assert {kind.type for kind in Result.__subclasses__()} == RESULT_TYPES.keys()
