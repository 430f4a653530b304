"""Faster and Mask R-CNN, with real RoiAlign and NonMaxSuppression in the graph, against ONNX Runtime and NumPy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from pycocotools import mask as coco
from visionpool.errors import InferenceFailed, InvalidOption, SetupError
from visionpool.results import DetectionResult, Mask
from visionpool_server.app import offline
from visionpool_server.families import FamilySpec, Options, build_family
from visionpool_server.imaging.recipe import Geometry, Recipe
from visionpool_server.models.loader import Defaults

from tests import instance_models, tiny_models
from tests.instance_reference import (
    BACKENDS,
    Numbers,
    Objects,
    Pixels,
    Placed,
    assert_mask,
    assert_same,
    fitted,
    planes,
    run,
    sampled,
    served,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't:DeprecationWarning"
)  # pycocotools' own

SIZES = ((64, 96), (97, 31), (200, 150), (8, 8), (61, 203))
NAMES = ["cat", "dog", "cow"]
ZOO = [  # what the README of the ONNX model zoo's MaskRCNN-10 says, with a shorter side
    {"resize_short": 96},
    {"pad_to_stride": 32},
    {"normalize": {"scale": 1.0, "mean": [102.9801, 115.9465, 122.7717], "std": [1, 1, 1], "channels": "bgr"}},
]
LIKELY = Options(score_threshold=0.3)


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """With noise: where cells are alike, so are scores, and which of two equals suppresses the other is anyone's choice."""
    smooth = tiny_models.picture(height, width, seed).astype(np.int16)
    noise = np.random.default_rng(seed).integers(-20, 21, smooth.shape)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def as_it_is(image: Pixels) -> Placed:
    return Placed(image, (image.shape[0], image.shape[1]), (1.0, 1.0), (0, 0))


def as_in_the_zoo(image: Pixels) -> Placed:
    """The shorter side at 96, and zeros at the bottom and right up to multiples of 32."""
    height, width = image.shape[:2]
    ratio = 96 / min(height, width)
    small = cv2.resize(image, (round(width * ratio), round(height * ratio)))
    padded = np.zeros((-(-small.shape[0] // 32) * 32, -(-small.shape[1] // 32) * 32, 3), np.uint8)
    padded[: small.shape[0], : small.shape[1]] = small
    return Placed(padded, (height, width), (small.shape[1] / width, small.shape[0] / height), (0, 0))


def found(model: Path, placed: Placed, tensor: Numbers, threshold: float = 0.3) -> tuple[Objects, Numbers]:
    """What is over the threshold, and the boxes not clipped to the original. `more`: the index of each object."""
    outputs = dict(zip(("boxes", "labels", "scores", "masks"), run(model, image=tensor), strict=False))
    which = np.flatnonzero(outputs["scores"] > threshold)
    which = which[np.argsort(-outputs["scores"][which], kind="stable")][:100]
    boxes = outputs["boxes"][which]
    masks: list[Any] = list(outputs["masks"][which, 0]) if "masks" in outputs else [None] * len(which)
    unclipped = placed.points(boxes.reshape(-1, 2, 2)).reshape(-1, 4)
    return Objects(placed.boxes(boxes), outputs["scores"][which], outputs["labels"][which], masks), unclipped


def covered(mask: Mask) -> NDArray[np.bool_]:
    return np.array(mask.data, bool).reshape(mask.shape)


def centres(box: Any) -> tuple[Numbers, Numbers]:
    """x and y of the centres of the pixels of a box as a result states it."""
    x0, y0, x1, y1 = (round(value) for value in box)
    return np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_dimension", [False, True], ids=["CHW", "NCHW"])
def test_faster_rcnn_finds_the_objects_of_the_reference(batch_dimension: bool, backend: str, tmp_path: Path) -> None:
    """Pictures of any size, as they are: torchvision's own resizing is part of its graph."""
    model = instance_models.rcnn(tmp_path / "m.onnx", batch_dimension=batch_dimension, seed=1)
    total = 0
    with served(tmp_path, backend, DetectionResult, family="rcnn", labels=NAMES) as ask:
        assert ask.model.labels == ("background", *NAMES)
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            tensor = planes(image)
            expected, _ = found(model, as_it_is(image), tensor if batch_dimension else tensor[0])
            result = ask(image, LIKELY)
            assert_same(result.boxes, result.scores, result.label_ids, expected)
            assert list(result.labels) == [NAMES[i - 1] for i in result.label_ids]
            assert not result.contain_masks
            total += len(result.boxes)
    assert total > 30


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [1, 5])
def test_grids_are_pasted_as_detectron2_does(seed: int, backend: str, tmp_path: Path) -> None:
    """`paste_masks_in_image`: bilinear at the pixels' centres, zero around the grid of 28x28, covered from 0.5 on."""
    model = instance_models.rcnn(tmp_path / "m.onnx", masks="grids", seed=seed, scale=0.01)
    objects = pixels = 0
    with served(tmp_path, backend, DetectionResult, family="rcnn", preprocess=ZOO) as ask:
        for number, size in enumerate(SIZES):
            image = picture(*size, seed=number)
            placed = as_in_the_zoo(image)
            tensor = placed.image[:, :, ::-1].astype(np.float32) - np.array([102.9801, 115.9465, 122.7717], np.float32)
            expected, unclipped = found(model, placed, tensor.transpose(2, 0, 1))
            expected.more = list(zip(expected.more, unclipped, strict=True))
            result = ask(image, LIKELY)

            def same_pixels(i: int, more: tuple[Numbers, Numbers], result: Any = result) -> None:
                grid, (x0, y0, x1, y1) = more
                x, y = centres(result.boxes[i])
                soft = sampled(grid, (x - x0) / (x1 - x0) * 28 - 0.5, (y - y0) / (y1 - y0) * 28 - 0.5, around=0.0)
                assert_mask(covered(result.masks[i]), soft, 0.5)

            assert_same(result.boxes, result.scores, result.label_ids, expected, same_pixels)
            assert result.contain_masks
            objects += len(result.boxes)
            pixels += sum(sum(mask.data) for mask in result.masks)
    assert objects > 30
    assert pixels > 1000


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_dimension", [False, True], ids=["CHW", "NCHW"])
def test_masks_that_the_graph_has_pasted_are_cut_out(batch_dimension: bool, backend: str, tmp_path: Path) -> None:
    model = instance_models.rcnn(tmp_path / "m.onnx", masks="pasted", batch_dimension=batch_dimension, seed=1)
    pixels = 0
    with served(tmp_path, backend, DetectionResult, family="rcnn") as ask:
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            tensor = planes(image)
            expected, _ = found(model, as_it_is(image), tensor if batch_dimension else tensor[0])
            result = ask(image, LIKELY)

            def same_pixels(i: int, mask: Numbers, result: Any = result) -> None:
                x, y = centres(result.boxes[i])
                assert_mask(covered(result.masks[i]), mask[y.astype(int)][:, x.astype(int)].astype(np.float64), 0.5)

            assert_same(result.boxes, result.scores, result.label_ids, expected, same_pixels)
            pixels += sum(sum(mask.data) for mask in result.masks)
    assert pixels > 5000


def test_an_export_of_one_size_gets_pictures_in_proportion(tmp_path: Path) -> None:
    """In the top left corner, the rest black; masks are sampled back."""
    size = (96, 128)
    model = instance_models.rcnn(tmp_path / "m.onnx", masks="pasted", batch_dimension=True, size=size, seed=1)
    pixels = 0
    with served(tmp_path, "onnxruntime", DetectionResult, family="rcnn") as ask:
        for seed, shape in enumerate(((96, 128), (192, 256), (50, 128), (300, 40))):
            image = picture(*shape, seed=seed)
            placed = fitted(image, size, 0, centred=False)
            expected, _ = found(model, placed, planes(placed.image))
            result = ask(image, LIKELY)

            def same_pixels(i: int, mask: Numbers, result: Any = result, placed: Placed = placed) -> None:
                x, y = centres(result.boxes[i])
                height, width = placed.original
                x = np.clip(x * placed.scale[0] - 0.5, 0, width * placed.scale[0] - 1)
                y = np.clip(y * placed.scale[1] - 0.5, 0, height * placed.scale[1] - 1)
                assert_mask(covered(result.masks[i]), sampled(mask, x, y), 0.5)

            assert_same(result.boxes, result.scores, result.label_ids, expected, same_pixels)
            pixels += sum(sum(mask.data) for mask in result.masks)
    assert pixels > 5000


@pytest.mark.parametrize("order", [("scores", "masks", "labels", "boxes"), ("labels", "boxes", "masks", "scores")])
def test_outputs_are_known_by_what_they_are(order: tuple[str, ...], tmp_path: Path) -> None:
    image = picture(60, 90)
    results = []
    for names in (("boxes", "labels", "scores", "masks"), order):
        folder = tmp_path / names[0]
        instance_models.rcnn(folder / "m.onnx", masks="grids", seed=1, order=names)
        with served(folder, "onnxruntime", DetectionResult, family="rcnn") as ask:
            results.append(ask(image, LIKELY))
    assert results[0] == results[1]
    assert results[0].boxes


def test_options_choose_among_the_objects(tmp_path: Path) -> None:
    instance_models.rcnn(tmp_path / "m.onnx", masks="grids", seed=5)
    image = picture(200, 150)
    with served(tmp_path, "onnxruntime", DetectionResult, family="rcnn", labels=NAMES) as ask:
        everything = ask(image, Options(score_threshold=0.05))
        dogs = ask(image, Options(score_threshold=0.05, classes=("dog",)))
        by_number = ask(image, Options(score_threshold=0.05, classes=("2",)))
        best = ask(image, Options(score_threshold=0.05, max_detections=3))
        compact = ask(image, Options(score_threshold=0.05, compact=True))
        with pytest.raises(InvalidOption, match="iou_threshold means nothing"):
            ask(image, Options(iou_threshold=0.5))
    which = [i for i, name in enumerate(everything.labels) if name == "dog"]
    assert 0 < len(which) < len(everything.labels)
    assert [everything.masks[i] for i in which] == list(dogs.masks)
    assert dogs == by_number
    assert best.masks == everything.masks[:3]
    for box, mask, runs in zip(everything.boxes, everything.masks, compact.masks, strict=True):
        whole = np.zeros((200, 150), bool)
        x0, y0, x1, y1 = (round(value) for value in box)
        whole[y0:y1, x0:x1] = covered(mask)
        assert (coco.decode({"size": list(runs.shape), "counts": runs.rle}) == whole).all()


def test_compact_means_nothing_without_masks(tmp_path: Path) -> None:
    instance_models.rcnn(tmp_path / "m.onnx", seed=1)
    with (
        served(tmp_path, "onnxruntime", DetectionResult, family="rcnn") as ask,
        pytest.raises(InvalidOption, match="compact means nothing"),
    ):
        ask(picture(40, 40), Options(compact=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_dimension", [False, True], ids=["CHW", "NCHW"])
def test_pictures_run_one_at_a_time(batch_dimension: bool, backend: str, tmp_path: Path) -> None:
    """The rows of several could not be told apart."""
    instance_models.rcnn(tmp_path / "m.onnx", masks="grids", batch_dimension=batch_dimension, seed=1)
    images = [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]
    with served(tmp_path, backend, DetectionResult, family="rcnn") as ask:
        together, alone = ask.several(images, LIKELY), [ask(image, LIKELY) for image in images]
        assert together == alone
        assert ask.model.pool.groups[0].engine.max_batch_size == 1
    with (
        pytest.raises(SetupError, match="one picture at a time"),
        served(tmp_path, backend, DetectionResult, family="rcnn", batching={"max_batch_size": 2}),
    ):
        pass


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_fix_the_size_of_an_open_input(backend: str, tmp_path: Path) -> None:
    """`runtime.shapes` counts the dimensions of the file: three."""
    model = instance_models.rcnn(tmp_path / "m.onnx", seed=1)
    image = picture(96, 128)
    config = {"family": "rcnn", "runtime": {"shapes": {"image": [3, 96, 128]}}}
    with served(tmp_path, backend, DetectionResult, **config) as ask:
        result = ask(image, LIKELY)
    expected, _ = found(model, as_it_is(image), planes(image)[0])
    assert_same(result.boxes, result.scores, result.label_ids, expected)


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (["__background__", "person", "N/A", "car"], ("__background__", "person", "N/A", "car")),  # torchvision's list
        (["person", "car"], ("background", "person", "car")),
        ({1: "person", 3: "car"}, ("0", "person", "2", "car")),
    ],
)
def test_labels_count_from_the_background(labels: Any, shown: tuple[str, ...], tmp_path: Path) -> None:
    instance_models.rcnn(tmp_path / "m.onnx", seed=1)
    with served(tmp_path, "onnxruntime", DetectionResult, family="rcnn", labels=labels) as ask:
        assert ask.model.labels == shown


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_outputs_that_are_no_numbers_never_break_an_answer(value: float) -> None:
    shapes: dict[str, tuple[int | None, ...]] = {"b": (None, 4), "l": (None,), "s": (None,), "m": (None, 1, 28, 28)}
    family = build_family("rcnn", FamilySpec({"image": (3, None, None)}, shapes))
    random = np.random.default_rng(0)
    for count in (0, 1, 20, 20, 20):
        sizes = {name: (count, *(size or 1 for size in shape[1:])) for name, shape in shapes.items()}
        outputs: dict[str, Any] = {name: (random.random(size) * 40).astype(np.float32) for name, size in sizes.items()}
        for values in outputs.values():
            values[random.random(values.shape) < 0.1] = value
        outputs["l"] = random.integers(0, 90, count)
        result = family.finish(outputs, Geometry(50, 70), Options(score_threshold=0.1))
        json.dumps(result.to_dict(), allow_nan=False)


def test_outputs_that_are_no_rcnns_are_refused(tmp_path: Path) -> None:
    instance_models.yolo_segmentation(tmp_path / "m.onnx")
    with (
        pytest.raises(SetupError, match="an R-CNN has boxes"),
        served(tmp_path, "onnxruntime", DetectionResult, family="rcnn"),
    ):
        pass
    family = build_family("rcnn", FamilySpec({"image": (3, None, None)}, {"b": (None, 4), "l": (None,), "s": (None,)}))
    twice = {"b": np.zeros((2, 4), np.float32), "l": np.zeros(2, np.float32), "s": np.zeros(2, np.float32)}
    with pytest.raises(InferenceFailed, match="not an R-CNN's"):
        family.finish(twice, Geometry(50, 70), Options())


CONFIG = {  # infer_cfg.yml of PaddleDetection's mask_rcnn_r50_fpn, with shorter sides
    "arch": "RCNN",
    "mask": True,
    "draw_threshold": 0.3,
    "label_list": NAMES,
    "Preprocess": [
        {"type": "Resize", "target_size": [96, 128], "keep_ratio": True, "interp": 1},
        {"type": "NormalizeImage", "is_scale": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        {"type": "Permute"},
        {"type": "PadStride", "stride": 32},
    ],
}


def paddle_outputs(model: Path, image: Pixels) -> list[Numbers]:
    height, width = image.shape[:2]
    ratio = min(96 / min(height, width), 128 / max(height, width))
    small = cv2.resize(image, (max(1, round(width * ratio)), max(1, round(height * ratio))))
    normal = (small / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    tensor = np.zeros((1, 3, -(-small.shape[0] // 32) * 32, -(-small.shape[1] // 32) * 32), np.float32)
    black = -np.array([0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]  # padded before it is normalised, here as there
    tensor[:] = black[None, :, None, None]
    tensor[0, :, : small.shape[0], : small.shape[1]] = normal.transpose(2, 0, 1)
    scale = np.array([[small.shape[0] / height, small.shape[1] / width]], np.float32)
    return run(model, image=tensor, im_shape=np.array([small.shape[:2]], np.float32), scale_factor=scale)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_paddle_mask_rcnns_masks_are_cut_out_of_its_own(backend: str, tmp_path: Path) -> None:
    model = instance_models.paddle_masks(tmp_path / "m.onnx")
    (tmp_path / "infer_cfg.yml").write_text(yaml.safe_dump(CONFIG))
    pixels = 0
    with served(tmp_path, backend, DetectionResult) as ask:
        assert ask.model.family_name == "paddle_detection"
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            rows, _, masks = paddle_outputs(model, image)
            which = rows[:, 1] > 0.3
            boxes = rows[which, 2:].clip(0, [size[1], size[0], size[1], size[0]])
            expected = Objects(boxes, rows[which, 1], rows[which, 0], list(masks[which]))
            result, compact = ask(image), ask(image, Options(compact=True))

            def same_pixels(i: int, mask: Numbers, result: Any = result, compact: Any = compact) -> None:
                x0, y0, x1, y1 = (round(value) for value in result.boxes[i])
                assert (covered(result.masks[i]) == mask[y0:y1, x0:x1]).all()
                runs = coco.decode({"size": list(mask.shape), "counts": compact.masks[i].rle})
                assert (runs[y0:y1, x0:x1] == mask[y0:y1, x0:x1]).all()

            assert_same(result.boxes, result.scores, result.label_ids, expected, same_pixels)
            assert set(result.labels) <= set(NAMES)
            pixels += sum(sum(mask.data) for mask in result.masks)
    assert pixels > 5000


def test_rows_and_masks_of_a_batch_stay_together() -> None:
    """Pictures of several sizes in the largest's, the rest -1."""
    shapes: dict[str, tuple[int | None, ...]] = {"bbox": (None, 6), "bbox_num": (None,), "mask": (None, None, None)}
    family = build_family("paddle_detection", FamilySpec({"image": (None, 3, 64, 64)}, shapes, recipe=Recipe()))
    rows = np.array([[0, 0.6, 1, 1, 4, 3], [1, 0.9, 0, 0, 2, 2], [0, 0.8, 2, 2, 6, 7]], np.float32)
    masks = np.full((3, 8, 6), -1, np.int32)
    masks[0, :5, :6] = masks[1, :5, :6] = 0
    masks[2] = 0
    masks[0, 1:3, 1:3] = masks[1, 0, 0] = masks[2, 2:7, 2:6] = 1
    parts = family.split({"bbox": rows, "bbox_num": np.array([2, 1], np.int32), "mask": masks}, 2)
    first = family.finish(parts[0], Geometry(5, 6), Options())
    second = family.finish(parts[1], Geometry(8, 6), Options())
    assert isinstance(first, DetectionResult)
    assert isinstance(second, DetectionResult)
    assert [mask.data for mask in first.masks] == [(1, 0, 0, 0), (1, 1, 0, 1, 1, 0)]  # the better one first
    assert [(mask.shape, sum(mask.data)) for mask in second.masks] == [((5, 4), 20)]
    joined = family.join(parts)
    assert (joined["mask"] == masks).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_solov2_has_masks_and_the_boxes_around_them(backend: str, tmp_path: Path) -> None:
    model = instance_models.paddle_masks(tmp_path / "m.onnx", kind="solov2")
    (tmp_path / "infer_cfg.yml").write_text(yaml.safe_dump({**CONFIG, "arch": "SOLOv2"}))
    total = 0
    with served(tmp_path, backend, DetectionResult) as ask:
        assert ask.model.family_name == "solov2"
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            _, labels, scores, masks = paddle_outputs(model, image)
            which = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0.3]
            result = ask(image)
            assert list(result.label_ids) == labels[which].tolist()
            assert result.scores == pytest.approx(scores[which], abs=1e-4)
            for i, box, mask in zip(which, result.boxes, result.masks, strict=True):
                rows, columns = np.nonzero(masks[i])
                if len(rows):
                    assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                    whole = np.zeros(size, bool)
                    whole[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = covered(mask)
                    assert (whole == masks[i]).all()
                else:
                    assert (box, mask.data) == ((0, 0, 0, 0), ())
                total += len(rows)
    assert total > 5000


def test_what_to_write_is_said_where_nothing_tells_that_it_is_one(tmp_path: Path) -> None:
    instance_models.rcnn(tmp_path / "rcnn" / "m.onnx", masks="grids")
    instance_models.scrfd(tmp_path / "faces" / "m.onnx", landmarks=False)
    with offline([tmp_path / "rcnn", tmp_path / "faces"], Defaults(), max_pixels=1000) as service:
        advice = {model.name: (model.task, model.advice or "") for model in service.models}
    assert advice["rcnn"][0] == advice["faces"][0] == "tensor"
    assert "family: rcnn" in advice["rcnn"][1]
    assert "family: scrfd" in advice["faces"][1]


@pytest.mark.parametrize("arguments", [(), ("--run", "--json")], ids=str)
def test_a_model_of_one_picture_can_be_inspected(arguments: tuple[str, ...], tmp_path: Path) -> None:
    instance_models.rcnn(tmp_path / "m.onnx", masks="grids", seed=1)
    (tmp_path / "model.yaml").write_text("family: rcnn\n")
    command = [sys.executable, "-m", "visionpool", "inspect", str(tmp_path), *arguments]
    told = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert told.returncode == 0, told.stderr
    assert "rcnn" in told.stdout
    assert "640" in told.stdout  # the size that was guessed
