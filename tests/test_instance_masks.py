"""YOLO segmentation: every object and every pixel of its mask, against a second implementation and Ultralytics' own rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco
from visionpool.errors import InvalidOption, SetupError
from visionpool.results import DetectionResult, Mask, result_from_dict
from visionpool_server.families import FamilySpec, Options, build_family
from visionpool_server.imaging.lettering import Style
from visionpool_server.imaging.outlines import put_mask
from visionpool_server.imaging.recipe import Geometry

from tests import instance_models
from tests.instance_reference import (
    BACKENDS,
    SIZES,
    Numbers,
    Objects,
    Pixels,
    Placed,
    assert_mask,
    assert_same,
    best_class,
    fitted,
    greedy,
    planes,
    run,
    sampled,
    served,
    xyxy,
)
from tests.tiny_models import picture

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't:DeprecationWarning"
)  # pycocotools' own

SIZE = instance_models.SIZE
NAMES = ("cat", "dog", "cow")
METADATA = {"names": str(dict(enumerate(NAMES))), "task": "segment", "imgsz": str(list(SIZE)), "stride": "32"}
LAYOUTS = {"v5": (0.45, 1), "v8": (0.7, 0)}  # IoU threshold, columns of objectness


def rows_of(model: Path, layout: str, image: Pixels, options: Options) -> tuple[Placed, Numbers, Objects, Numbers]:
    """The picture as the model sees it, the prototypes, the objects in the original picture, and their coefficients."""
    placed = fitted(image, SIZE, 114, centred=True)
    output, prototypes = run(model, images=planes(placed.image))
    iou, objectness = LAYOUTS[layout]
    rows = output[0] if objectness else output[0].T
    first = 4 + objectness
    scores = rows[:, first : first + 3] * (rows[:, 4:5] if objectness else 1)
    chosen, best, label_ids = best_class(scores, options.score_threshold or 0.25)
    kept = greedy(xyxy(rows[chosen]), best, label_ids, iou)
    found = rows[chosen][kept]
    objects = Objects(placed.boxes(xyxy(found)), best[kept], label_ids[kept])
    return placed, prototypes[0], objects, found[:, first + 3 :]


def spans(box: Any) -> tuple[int, int, int, int]:
    """The columns and rows whose centres lie in a box as a result states it."""
    x0, y0, x1, y1 = (round(value) for value in box)
    return x0, y0, x1, y1


def soft_mask(placed: Placed, prototypes: Numbers, coefficients: Numbers, box: Any) -> Numbers:
    """The sum of the prototypes where the centres of the box's pixels lie among the picture's own cells of 4 pixels."""
    grid = np.einsum("c,cyx->yx", coefficients.astype(np.float64), prototypes.astype(np.float64))
    x0, y0, x1, y1 = spans(box)
    places = []
    for start, end, axis in ((x0, x1, 0), (y0, y1, 1)):
        scale, corner, length = placed.scale[axis], placed.corner[axis], placed.original[1 - axis]
        cells = ((np.arange(start, end) + 0.5) * scale + corner) / 4 - 0.5
        low, high = corner / 4, (corner + length * scale) / 4 - 1
        places.append(np.clip(cells, low, high) if low <= high else np.full(len(cells), (low + high) / 2))
    return sampled(grid, places[0], places[1])


def covered(mask: Mask) -> NDArray[np.bool_]:
    return np.array(mask.data, bool).reshape(mask.shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_objects_and_their_pixels_are_those_of_the_reference(layout: Any, backend: str, tmp_path: Path) -> None:
    model = instance_models.yolo_segmentation(tmp_path / "m.onnx", layout=layout, metadata=METADATA)
    objects = pixels = 0
    options = Options(score_threshold=0.05)
    with served(tmp_path, backend, DetectionResult) as ask:
        assert ask.model.labels == NAMES
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            placed, prototypes, expected, coefficients = rows_of(model, layout, image, options)
            expected.more = list(coefficients)
            result = ask(image, options)
            assert result.contain_masks
            assert len(result.masks) == len(result.boxes)

            def same_pixels(
                i: int, more: Numbers, result: Any = result, placed: Placed = placed, prototypes: Numbers = prototypes
            ) -> None:
                assert_mask(covered(result.masks[i]), soft_mask(placed, prototypes, more, result.boxes[i]), 0.0)

            assert_same(result.boxes, result.scores, result.label_ids, expected, same_pixels)
            objects += len(result.boxes)
            pixels += sum(sum(mask.data) for mask in result.masks)
    assert objects > 100
    assert pixels > 20_000


@pytest.mark.parametrize("size", [(128, 192), (64, 48), (32, 96), (640, 480)], ids=str)
def test_where_the_margins_are_whole_cells_masks_are_those_of_ultralytics(
    size: tuple[int, int], tmp_path: Path
) -> None:
    """`process_mask_native`: the whole mask without its margin resized to the original, over 0, the box's pixels kept."""
    model = instance_models.yolo_segmentation(tmp_path / "m.onnx", metadata=METADATA)
    image = picture(*size, seed=3)
    placed, prototypes, expected, coefficients = rows_of(model, "v8", image, Options())
    height, width = size
    left, top = placed.corner[0] // 4, placed.corner[1] // 4
    right, bottom = prototypes.shape[2] - left, prototypes.shape[1] - top
    checked = 0
    with served(tmp_path, "onnxruntime", DetectionResult) as ask:
        result = ask(image)

    def same_pixels(i: int, more: Numbers) -> None:
        nonlocal checked
        logits = np.tensordot(more, prototypes, axes=1)[top:bottom, left:right]
        x0, y0, x1, y1 = spans(result.boxes[i])
        whole = cv2.resize(np.ascontiguousarray(logits), (width, height), interpolation=cv2.INTER_LINEAR)
        assert_mask(covered(result.masks[i]), whole[y0:y1, x0:x1], 0.0)
        checked += 1

    expected.more = list(coefficients)
    assert_same(result.boxes, result.scores, result.label_ids, expected, same_pixels)
    assert checked > 5


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_compact_masks_are_the_same_pixels_as_cocos_tools_read_them(size: tuple[int, int], tmp_path: Path) -> None:
    instance_models.yolo_segmentation(tmp_path / "m.onnx", metadata=METADATA)
    image = picture(*size, seed=1)
    with served(tmp_path, "onnxruntime", DetectionResult) as ask:
        plain, compact = ask(image), ask(image, Options(compact=True))
    assert plain.boxes == compact.boxes
    assert len(plain.masks) == len(plain.boxes) > 5
    for box, mask, runs in zip(plain.boxes, plain.masks, compact.masks, strict=True):
        x0, y0, x1, y1 = spans(box)
        assert mask.shape == (y1 - y0, x1 - x0)
        whole = np.zeros(size, np.uint8)
        whole[y0:y1, x0:x1] = covered(mask)
        assert (runs.data, runs.shape) == ((), size)
        assert (coco.decode({"size": list(runs.shape), "counts": runs.rle}) == whole).all()


def test_a_mask_is_drawn_on_exactly_its_pixels(tmp_path: Path) -> None:
    instance_models.yolo_segmentation(tmp_path / "m.onnx", metadata=METADATA)
    image = picture(90, 120, seed=1)
    with served(tmp_path, "onnxruntime", DetectionResult) as ask:
        plain, compact = ask(image), ask(image, Options(compact=True))
    for i, box in enumerate(plain.boxes):
        x0, y0, x1, y1 = spans(box)
        inside = np.zeros(image.shape[:2], np.uint8)
        inside[y0:y1, x0:x1] = covered(plain.masks[i])
        drawn = []
        for result in (plain, compact):
            canvas = np.zeros_like(image)
            put_mask(canvas, Style.of(canvas), result.masks[i], box, (255, 255, 255))
            drawn.append(canvas.max(axis=2) > 0)
        assert (drawn[0] == drawn[1]).all()
        assert drawn[0][inside > 0].all()
        assert not drawn[0][cv2.dilate(inside, np.ones((3, 3), np.uint8)) == 0].any()  # but for its contour's soft edge


def test_options_choose_among_the_objects(tmp_path: Path) -> None:
    instance_models.yolo_segmentation(tmp_path / "m.onnx", metadata=METADATA)
    image = picture(80, 100)
    with served(tmp_path, "onnxruntime", DetectionResult) as ask:
        everything = ask(image)
        dogs = ask(image, Options(classes=("dog",)))
        best = ask(image, Options(max_detections=2))
    which = [i for i, name in enumerate(everything.labels) if name == "dog"]
    assert 0 < len(which) < len(everything.labels)
    assert [everything.masks[i] for i in which] == list(dogs.masks)
    assert best.masks == everything.masks[:2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_of_one_batch_get_their_own_masks(backend: str, tmp_path: Path) -> None:
    instance_models.yolo_segmentation(tmp_path / "m.onnx", metadata=METADATA)
    images = [picture(*size, seed=seed) for seed, size in enumerate([*SIZES, *SIZES])]
    with served(tmp_path, backend, DetectionResult, batching={"max_batch_size": 4}, workers=1) as ask:
        together, alone = ask.several(images), [ask(image) for image in images]
    for one, other in zip(together, alone, strict=True):
        assert len(one.boxes) == len(other.boxes)
        assert np.allclose(one.boxes, other.boxes, atol=2e-3)
        assert [mask.shape for mask in one.masks] == [mask.shape for mask in other.masks]
        different = [np.count_nonzero(covered(a) != covered(b)) for a, b in zip(one.masks, other.masks, strict=True)]
        assert max(different, default=0) <= 2  # pixels on the threshold


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_outputs_that_are_no_numbers_never_break_an_answer(layout: Any, value: float) -> None:
    outputs = {"rows": (1, 13, 96) if layout == "v8" else (1, 96, 14), "prototypes": (1, 6, 16, 24)}
    family = build_family("yolo_segmentation", FamilySpec({"images": (1, 3, *SIZE)}, outputs))
    random = np.random.default_rng(0)
    for _ in range(20):
        filled = {name: random.random(shape[1:]).astype(np.float32) for name, shape in outputs.items()}
        for values in filled.values():
            values[random.random(values.shape) < 0.1] = value
        result = family.finish(filled, Geometry(50, 70, 1.2, 1.2, 3, 4), Options(score_threshold=0.1))
        assert result_from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result


def test_a_file_without_metadata_is_known_by_its_prototypes(tmp_path: Path) -> None:
    for layout in ("v5", "v8"):
        folder = tmp_path / layout
        instance_models.yolo_segmentation(folder / "m.onnx", layout=layout)
        with served(folder, "openvino", DetectionResult) as ask:
            assert ask.model.family_name == "yolo_segmentation"
            assert ask.family.class_count == 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("flag", [{"args": "{'nms': True}"}, {"end2end": "True"}], ids=["nms", "end2end"])
def test_an_export_with_its_suppression_inside_has_a_row_for_each_object(
    flag: dict[str, str], backend: str, tmp_path: Path
) -> None:
    model = instance_models.suppressed(tmp_path / "m.onnx", "segment", metadata={**METADATA, **flag})
    with served(tmp_path, backend, DetectionResult) as ask:
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            placed = fitted(image, SIZE, 114, centred=True)
            output, prototypes = run(model, images=planes(placed.image))
            rows = output[0][output[0][:, 4] > 0.25]
            expected = Objects(placed.boxes(rows[:, :4]), rows[:, 4], rows[:, 5], list(rows[:, 6:]))
            result = ask(image)

            def same_pixels(
                i: int, more: Numbers, result: Any = result, placed: Placed = placed, grids: Numbers = prototypes[0]
            ) -> None:
                assert_mask(covered(result.masks[i]), soft_mask(placed, grids, more, result.boxes[i]), 0.0, near=2e-3)

            assert_same(result.boxes, result.scores, result.label_ids, expected, same_pixels)
            assert result.boxes
        with pytest.raises(InvalidOption, match="iou_threshold means nothing"):
            ask(picture(40, 40), Options(iou_threshold=0.5))


def test_outputs_that_are_no_segmenters_are_refused(tmp_path: Path) -> None:
    instance_models.yolo_pose(tmp_path / "m.onnx")
    with (
        pytest.raises(SetupError, match="a YOLO segmenter has"),
        served(tmp_path, "onnxruntime", DetectionResult, family="yolo_segmentation"),
    ):
        pass
