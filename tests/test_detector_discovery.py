"""Which detector a file is: by names and shapes of its tensors, by metadata, and the advice where neither tells."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from visionpool.errors import InvalidModel
from visionpool_server.backends import Signature, TensorSpec
from visionpool_server.imaging.recipe import Arithmetic, Letterbox, Pad, Recipe, Resize
from visionpool_server.models.files import find_models
from visionpool_server.models.guess import guess_family, paddle_family
from visionpool_server.models.loader import Defaults, Model, load_model

from tests import detector_models, tiny_models
from tests.test_detectors import LABELS, ULTRALYTICS, write

Shape = tuple[int | None, ...]


def load(path: Path) -> Model:
    (files,) = find_models(path)
    return load_model(files, Defaults(workers=1))


def signature(outputs: dict[str, Shape], *, size: int | None = 640, inputs: tuple[str, ...] = ("images",)) -> Signature:
    shapes: dict[str, Shape] = dict.fromkeys(inputs, (1, 2)) | {inputs[0]: (1, 3, size, size)}
    return Signature(
        tuple(TensorSpec(name, shape, "float32") for name, shape in shapes.items()),
        tuple(TensorSpec(name, shape, "float32") for name, shape in outputs.items()),
    )


@pytest.mark.parametrize(
    ("outputs", "classes", "family"),
    [
        ({"output0": (1, 25200, 85)}, None, "yolov5"),
        ({"output": (1, 25200, 85)}, None, "yolov5"),
        ({"output": (1, 25200, 85), **{str(n): (1, 3, n, n, 85) for n in (80, 40, 20)}}, None, "yolov5"),
        ({"output": (1, 25200, 85), **{str(n): (1, 3, n, n, 85) for n in (80, 40, 20)}}, 80, "yolov5"),
        ({"output0": (1, 84, 8400)}, None, "yolov8"),
        ({"output": (1, 8400, 85)}, None, "yolox"),
        ({"output": (1, 8500, 85)}, None, "yolox"),
        ({"outputs": (1, 8400, 85)}, None, "yolov5"),  # YOLOv6
        ({"output0": (1, 8400, 85)}, None, None),
        ({"output0": (1, 300, 6)}, None, "yolo_end2end"),
        ({"output0": (1, 300, 6)}, 80, "yolo_end2end"),
        ({"output0": (1, 25200, 6)}, 1, "yolov5"),
        ({"output0": (1, 5, 8400)}, 1, "yolov8"),
        ({"output0": (1, 300, 84)}, 80, "rtdetr"),
        ({"output0": (1, 300, 84)}, None, None),
        ({"output0": (1, 8400, 84)}, 80, None),
        (
            {"num_dets": (1, 1), "det_boxes": (1, 9, 4), "det_scores": (1, 9), "det_classes": (1, 9)},
            None,
            "yolo_end2end",
        ),
        ({"logits": (1, 300, 80), "pred_boxes": (1, 300, 4)}, None, "rtdetr"),
        ({"pred_boxes": (1, 300, 4), "pred_logits": (1, 300, 80)}, None, "rtdetr"),
        ({"dets": (1, 300, 4), "labels": (1, 300, 91)}, None, "rtdetr"),
        ({"logits": (1, 100, 92), "pred_boxes": (1, 100, 4)}, None, None),  # DETR, YOLOS
        ({"logits": (1, 300, 91), "pred_boxes": (1, 300, 4)}, None, None),  # Conditional and Deformable DETR
        ({"a": (1, 8400, 4), "b": (1, 80, 8400)}, None, None),
        ({"output0": (1, 116, 8400), "output1": (1, 32, 160, 160)}, None, "yolo_segmentation"),
        ({"output1": (1, 160, 160, 32), "output0": (1, 116, 8400)}, None, "yolo_segmentation"),  # TensorFlow's
        ({"output0": (1, 25200, 117), "output1": (1, 32, 160, 160)}, 80, "yolo_segmentation"),
        ({"class_queries_logits": (1, 100, 134), "masks_queries_logits": (1, 100, 160, 160)}, None, None),
        ({"output0": (1, 300, 38), "output1": (1, 32, 160, 160)}, None, None),  # suppressed: only its files say so
        ({"x": (1, 3, 80, 80, 85)}, None, None),
    ],
)
def test_a_detector_is_known_by_its_outputs(outputs: dict[str, Shape], classes: int | None, family: str | None) -> None:
    assert guess_family(signature(outputs), classes) == family


@pytest.mark.parametrize(
    ("output", "size"),
    [
        ((1, 197, 768), 224),  # patches of a ViT
        ((1, 197, 768), None),
        ((1, 1370, 1024), 518),  # of DINOv2
        ((1, 64, 64), 64),  # a map of classes
        ((1, 518, 518), 518),  # of depths
        ((1, 300, 6625), 320),  # steps of a text
    ],
)
def test_what_is_no_grid_of_anchors_is_not_taken_for_one(output: Shape, size: int | None) -> None:
    assert guess_family(signature({"output": output}, size=size), None) is None


@pytest.mark.parametrize(("size", "anchors"), [(1280, 34000), (640, 34000), (416, 2535), (320, 2100), (1280, 102000)])
def test_grids_of_other_sizes_and_strides_are_known(size: int, anchors: int) -> None:
    """1280 with a fourth stride, 640 with stride 4 (YOLOv8-p2), YOLOv3-tiny's two strides."""
    assert guess_family(signature({"output0": (1, 84, anchors)}, size=size), None) == "yolov8"


def test_a_detector_that_takes_a_text_too_is_no_rtdetr() -> None:
    outputs: dict[str, Shape] = {"logits": (1, 900, 256), "pred_boxes": (1, 900, 4)}
    assert guess_family(signature(outputs, inputs=("pixel_values", "input_ids")), None) is None


def test_inputs_tell_too() -> None:
    found: dict[str, Shape] = {"labels": (1, 300), "boxes": (1, 300, 4), "scores": (1, 300)}
    assert guess_family(signature(found, inputs=("images", "orig_target_sizes")), None) == "rtdetr"
    boxes: dict[str, Shape] = {"a": (1, 8400, 4), "b": (1, 80, 8400)}
    assert guess_family(signature(boxes, inputs=("image", "scale_factor")), None) == "ppyoloe"


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        ([(None, 6), (None,)], "paddle_detection"),
        ([(None, 6), (None,), (None, 28, 28)], "paddle_detection"),
        ([(1, 8400, 84)], "ppyoloe"),
        ([(1, 8400, 4), (1, 80, 8400)], "ppyoloe"),
        ([(1, 80, 8400), (1, 8400, 4)], "ppyoloe"),
        ([(None, None, 4), (None, 80, None)], "ppyoloe"),
        ([(1, 300, 4), (1, 300, 80)], "rtdetr"),
        ([(1, n, 80) for n in (1600, 400, 100, 25)] + [(1, n, 32) for n in (1600, 400, 100, 25)], "picodet"),
        ([], "paddle_detection"),
    ],
)
def test_what_paddle_left_out_of_the_graph_shows_in_its_outputs(shapes: list[Shape], family: str) -> None:
    assert paddle_family(signature({str(i): shape for i, shape in enumerate(shapes)})) == family


@pytest.mark.parametrize(
    ("more", "family"),
    [
        ({}, "yolo_end2end"),
        ({"description": "Ultralytics RT-DETR-l model trained on coco"}, "rtdetr"),
        ({"description": "Ultralytics rtdetr-x model"}, "rtdetr"),
        ({"args": "{'batch': 1, 'nms': True}"}, "yolo_end2end"),
        ({"end2end": "True"}, "yolo_end2end"),
        ({"args": "no literal", "end2end": "neither"}, "yolo_end2end"),
    ],
)
def test_metadata_tells_what_shapes_leave_open(more: dict[str, str], family: str, tmp_path: Path) -> None:
    """With two classes, (300, 6) may be four corners and two scores, or corners, score and class."""
    metadata = {**ULTRALYTICS, "names": "{0: 'cat', 1: 'dog'}", **more}
    model = load(detector_models.yolo_end2end(tmp_path / "m.onnx", metadata=metadata))
    assert (model.family_name, model.labels) == (family, ("cat", "dog"))


def test_an_rtdetr_of_ultralytics_is_stretched_and_a_yolo_letterboxed(tmp_path: Path) -> None:
    """`RTDETRPredictor.pre_transform` asks for `scaleFill`."""
    metadata = {**ULTRALYTICS, "description": "Ultralytics rtdetr-l model"}
    transformer = load(detector_models.rtdetr(tmp_path / "a.onnx", "rows", metadata=metadata))
    yolo = load(detector_models.yolo_end2end(tmp_path / "b.onnx", metadata=ULTRALYTICS))
    assert transformer.family and transformer.family.recipe == Recipe((Resize((64, 64)),))
    assert yolo.family and yolo.family.recipe == Recipe((Letterbox((64, 64)),))


def test_a_yolox_gets_raw_bgr_padded_at_the_bottom_and_right(tmp_path: Path) -> None:
    model = load(detector_models.yolox(tmp_path / "m.onnx"))
    assert model.family and model.source == "the shape of its outputs"
    steps = (Resize((64, 64), keep_ratio=True, rounding="down"), Pad((64, 64), 114))
    assert model.family.recipe == Recipe(steps, Arithmetic(1.0, channels="bgr"))


# Advice


def advised(model: Model) -> dict[str, Any]:
    """What the advice says to write into model.yaml; the first thing, where there are several."""
    found = re.search(r"(\{family.*?\}|\{task.*?\})(?= \(|;|$)", model.advice or "")
    assert found, model.advice
    written: dict[str, Any] = yaml.safe_load(found[1])
    return {**written, "labels": LABELS}


@pytest.mark.parametrize(
    ("build", "family"),
    [
        (lambda p: detector_models.yolox(p, name="output0"), "yolox"),
        (lambda p: detector_models.rtdetr(p, "raw", names=("a", "b")), "rtdetr"),
        (detector_models.picodet_heads, "picodet"),
    ],
)
def test_the_advice_is_right(build: Callable[[Path], Path], family: str, tmp_path: Path) -> None:
    build(tmp_path / "m" / "m.onnx")
    model = load(tmp_path / "m")
    assert model.task == "tensor"
    write(tmp_path / "m", "model.yaml", advised(model))
    assert load(tmp_path / "m").family_name == family


def test_boxes_and_scores_may_be_a_ppyoloe(tmp_path: Path) -> None:
    detector_models.ppyoloe(tmp_path / "m.onnx", "export_nms")
    advice = load(tmp_path / "m.onnx").advice or ""
    assert "family: rtdetr" in advice and "put its infer_cfg.yml beside it" in advice
    written = yaml.safe_load(advice[advice.index("{family: ppyoloe") :])
    written |= {"labels": LABELS, "preprocess": [{"resize": {"size": 64, "interpolation": "cubic"}}, "normalize"]}
    write(tmp_path, "model.yaml", written)
    assert load(tmp_path).family_name == "ppyoloe"


def test_raw_heads_are_answered_with_how_to_export_them(tmp_path: Path) -> None:
    model = load(detector_models.raw_heads(tmp_path / "a" / "m.onnx"))
    assert (model.task, "--grid" in (model.advice or "")) == ("tensor", True)
    detector_models.raw_heads(tmp_path / "b" / "m.onnx", ULTRALYTICS)
    for said in ({}, {"family": "yolov7"}):
        if said:
            write(tmp_path / "b", "model.yaml", said)
            (tmp_path / "b" / "m.onnx").unlink()
            detector_models.raw_heads(tmp_path / "b" / "m.onnx")
        with pytest.raises(InvalidModel, match="--grid"):
            load(tmp_path / "b")


@pytest.mark.parametrize("family", ["yolo_end2end", "rtdetr", "ppyoloe", "picodet", "yolox"])
def test_a_family_that_does_not_fit_says_what_it_expects(family: str, tmp_path: Path) -> None:
    tiny_models.classifier(tmp_path / "m.onnx")
    write(tmp_path, "model.yaml", {"family": family, "preprocess": [{"resize": 32}], "input_size": [32, 32]})
    with pytest.raises(InvalidModel, match=r"has (one )?output|pairs of 3-D outputs|with NMS inside has"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("family", "inputs"), [("rtdetr", {"pixel_mask": (1, 64, 64)}), ("ppyoloe", {"im_info": (1, 3)})]
)
def test_inputs_that_nobody_fills_are_named(family: str, inputs: dict[str, Shape]) -> None:
    from visionpool_server.families import FamilySpec, build_family

    outputs: dict[str, Shape] = {"logits": (1, 300, 80), "pred_boxes": (1, 300, 4)}
    spec = FamilySpec({"pixels": (1, 3, 64, 64), **inputs}, outputs, recipe=Recipe((Resize((64, 64)),)))
    with pytest.raises(InvalidModel, match=f"inputs that no .* export has: {next(iter(inputs))}"):
        build_family(family, spec)
