"""PaddleDetection's exports that end in NMS or in a transformer's TopK: whose rows come out of the graph for all pictures.

`MulticlassNms` is OpenVINO's own operator, with the attributes that its reader gives to Paddle's `multiclass_nms3`; the
reference is that operator's algorithm (Paddle `phi/kernels/cpu/multiclass_nms3_kernel.cc`), written here in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from visionpool.errors import InvalidModel
from visionpool.results import DetectionResult
from visionpool_server.families import NO_OPTIONS, Options

from tests import detector_models, tiny_models
from tests.test_detectors import (
    BACKENDS,
    LABELS,
    PADDLE,
    assert_same,
    overlaps,
    paddle_tensors,
    run,
    serving,
    write,
)
from tests.test_hetero import HETERO, predicted, register_simcpu
from tests.test_reference import SIZES, Floats, Found, Pixels, in_picture
from tests.tiny_models import SIZE

NMS = {
    "as PP-YOLOE": {"iou_threshold": 0.7, "score_threshold": 0.01, "nms_top_k": 1000, "keep_top_k": 300},
    "few a class": {"iou_threshold": 0.6, "score_threshold": 0.05, "nms_top_k": 15, "keep_top_k": -1},
    "few at all": {"iou_threshold": 0.5, "score_threshold": 0.2, "nms_top_k": -1, "keep_top_k": 12},
    "whole pixels": {
        "iou_threshold": 0.4,
        "score_threshold": 0.1,
        "nms_top_k": 100,
        "keep_top_k": 50,
        "normalized": False,
    },
    "first class is background": {"iou_threshold": 0.5, "score_threshold": 0.1, "background_class": 0},
}


def multiclass_nms(boxes: Floats, scores: Floats, nms: dict[str, Any]) -> Found:
    """boxes (anchors, 4) xyxy, scores (classes, anchors)."""
    border = 0.0 if nms.get("normalized", True) else 1.0
    found: list[tuple[float, int, int]] = []  # score, class, anchor
    for label_id, of_class in enumerate(scores):
        if label_id == nms.get("background_class", -1):
            continue
        order = [int(i) for i in np.argsort(-of_class, kind="stable") if of_class[i] > nms["score_threshold"]]
        order = order[: nms["nms_top_k"]] if nms.get("nms_top_k", -1) > -1 else order
        kept: list[int] = []
        for anchor in order:
            if not kept or overlaps(boxes[anchor], boxes[kept], border).max() <= nms["iou_threshold"]:
                kept.append(anchor)
        found += [(float(of_class[anchor]), label_id, anchor) for anchor in kept]
    if -1 < nms.get("keep_top_k", -1) < len(found):
        found = sorted(found, key=lambda item: -item[0])[: nms["keep_top_k"]]
    values, labels, anchors = (np.array(part) for part in zip(*found, strict=True))
    return Found(boxes[anchors], values.astype(np.float32), labels)


def heads(image: Pixels, folder: Path) -> tuple[Floats, Floats]:
    """What goes into the operator: from an ONNX with the same weights, which ends before it."""
    path = folder / "heads.onnx"
    if not path.exists():
        detector_models.ppyoloe(path, "exclude_nms")
    boxes, scores = run(path, **paddle_tensors(image))
    return boxes[0], scores[0]


def expected(image: Pixels, folder: Path, nms: dict[str, Any], options: Options = NO_OPTIONS) -> Found:
    found = multiclass_nms(*heads(image, folder), nms)
    over = found.scores > (0.5 if options.score_threshold is None else options.score_threshold)
    over &= np.isin(found.label_ids, [int(c) for c in options.classes] or range(len(LABELS)))
    best = np.flatnonzero(over)[np.argsort(-found.scores[over], kind="stable")][: options.max_detections or 300]
    found = Found(found.boxes[best], found.scores[best], found.label_ids[best])
    return in_picture(found, image, (1, 1), (0, 0))


def bundle(folder: Path, nms: dict[str, Any], *, fixed: bool = False, **said: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    detector_models.paddle_nms(folder / "model.xml", nms=nms, fixed=fixed)
    write(folder, "infer_cfg.yml", PADDLE)
    if said:
        write(folder, "model.yaml", said)
    return folder


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", NMS)
def test_the_rows_of_multiclass_nms_are_those_of_the_reference(kind: str, fixed: bool, tmp_path: Path) -> None:
    total = 0
    with serving(bundle(tmp_path / "model", NMS[kind], fixed=fixed)) as running:
        assert (running.model.family_name, running.model.source) == ("paddle_detection", "infer_cfg.yml")
        assert running.model.labels == tuple(LABELS)
        asked = (
            NO_OPTIONS,
            Options(score_threshold=0.0),
            Options(score_threshold=0.1, classes=("1",), max_detections=4),
        )
        for seed, size in enumerate(SIZES):
            image = tiny_models.picture(*size, seed=seed)
            for options in asked:
                wanted = expected(image, tmp_path, NMS[kind], options)
                assert_same(running.predict(image, options), wanted)
                total += len(wanted.boxes)
    assert total > 100


@pytest.mark.parametrize("sizes", [{"max_batch_size": 2}, {"sizes": [2]}, {"sizes": [1, 2]}])
@pytest.mark.parametrize("kind", ["as PP-YOLOE", "few at all"])
def test_two_pictures_in_one_batch_each_get_their_own_rows(kind: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    images = [
        tiny_models.picture(*size, seed=seed) for seed, size in enumerate([(64, 64), (97, 31), (300, 200), (1, 1)])
    ]
    with serving(bundle(tmp_path / "model", NMS[kind], batching={**sizes, "max_queue_delay_us": 50_000})) as running:
        for image, result in zip(images * 3, running.predict_many(images * 3), strict=True):
            assert_same(result, expected(image, tmp_path, NMS[kind]))
        assert running.model.pool.statistics.snapshot().execution_count < 12


# HETERO, as FastDeploy's users write it: see test_hetero


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    """A process in which the CPU is there twice, as CPU and as SIMCPU."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=register_simcpu) as process:
        yield process


def placed(folder: Path, pictures: list[bytes]) -> tuple[dict[str, tuple[str, ...]], list[Any]]:
    """Where the operators are, and what the model finds. Runs in the other process."""
    from visionpool_server.app import offline
    from visionpool_server.models.loader import Defaults

    with offline([folder], Defaults(precision="f32", workers=1), max_pixels=1_000_000) as service:
        (model,) = service.models
        engines = [group.engine for group in model.pool.groups]
        devices = dict(engines[0].describe().devices)
    return devices, predicted(folder, pictures)


@pytest.mark.parametrize("operators", [["MulticlassNms"], ["MulticlassNms", "Sigmoid"]])
def test_on_two_devices_multiclass_nms_runs_on_the_cpu(
    operators: list[str], elsewhere: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """With the shapes that FastDeploy's page for Intel GPUs fixes."""
    shapes = {"image": [1, 3, SIZE, SIZE], "scale_factor": [1, 2]}
    runtime = {"device": HETERO, "cpu_operators": operators, "shapes": shapes}
    folder = bundle(tmp_path / "model", NMS["as PP-YOLOE"], runtime=runtime, batching={"max_batch_size": 1})
    images = [tiny_models.picture(*size, seed=seed) for seed, size in enumerate([(64, 64), (97, 31)])]
    files = [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in images]
    devices, results = elsewhere.submit(placed, folder, files).result(120)
    assert set(operators) <= set(devices["CPU"])
    assert {"Convolution", "Tanh"} <= set(devices["SIMCPU"])
    for image, result in zip(images, results, strict=True):
        assert result.boxes
        assert_same(result, expected(image, tmp_path, NMS["as PP-YOLOE"]))


# RT-DETR of PaddleDetection


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_an_rt_detr_of_paddle_gives_rows_and_counts(batch: int, backend: str, tmp_path: Path) -> None:
    model = detector_models.paddle_rtdetr(tmp_path / "model.onnx")
    write(tmp_path, "infer_cfg.yml", {**PADDLE, "arch": "DETR", "NMS": None})
    write(tmp_path, "model.yaml", {"batching": {"max_batch_size": batch}})
    images = [tiny_models.picture(*size, seed=seed) for seed, size in enumerate([*SIZES, (333, 77)])]
    with serving(tmp_path, backend) as running:
        assert running.model.family_name == "paddle_detection"
        for image, result in zip(images, running.predict_many(images), strict=True):
            side = np.array([[SIZE, SIZE]], np.float32)
            rows, counts = run(model, **paddle_tensors(image), im_shape=side)
            assert counts.tolist() == [len(rows)] == [detector_models.FOUND]
            rows = rows[rows[:, 1] > 0.5]
            found = Found(rows[:, 2:], rows[:, 1], rows[:, 0].astype(np.int64))
            assert len(found.boxes) > 5
            assert_same(result, in_picture(found, image, (1, 1), (0, 0)))


def test_a_transformer_of_paddle_without_its_end_is_an_rtdetr(tmp_path: Path) -> None:
    """`exclude_post_process=True` of `configs/rtdetr`: names that Paddle made up, and shapes that tell."""
    detector_models.rtdetr(tmp_path / "model.onnx", "raw", names=("linear_1.tmp_1", "sigmoid_4.tmp_0"))
    write(tmp_path, "infer_cfg.yml", {**PADDLE, "arch": "DETR", "NMS": None})
    with serving(tmp_path) as running:
        assert (running.model.family_name, running.model.source) == ("rtdetr", "infer_cfg.yml")
        result = running.predict(tiny_models.picture(90, 50))
    assert isinstance(result, DetectionResult) and result.boxes


# What infer_cfg.yml does not say


def test_the_limits_of_nms_hold_where_the_graph_has_none(tmp_path: Path) -> None:
    write(tmp_path / "m", "infer_cfg.yml", PADDLE)
    detector_models.ppyoloe(tmp_path / "m" / "model.onnx", "exclude_nms")
    with serving(tmp_path / "m") as running:
        assert running.model.family
        assert running.model.family.defaults == Options(score_threshold=0.5, iou_threshold=0.65, max_detections=200)


def test_raw_picodet_heads_beside_their_infer_cfg_are_decoded(tmp_path: Path) -> None:
    write(tmp_path, "infer_cfg.yml", {**PADDLE, "arch": "PicoDet"})
    detector_models.picodet_heads(tmp_path / "model.onnx")
    with serving(tmp_path) as running:
        assert (running.model.family_name, running.model.source) == ("picodet", "infer_cfg.yml")
        assert running.model.labels == tuple(LABELS)
        result = running.predict(tiny_models.picture(90, 50), Options(score_threshold=0.2))
    assert isinstance(result, DetectionResult) and result.boxes


def test_a_ppyoloe_without_its_infer_cfg_says_that_it_needs_it(tmp_path: Path) -> None:
    detector_models.ppyoloe(tmp_path / "m.onnx", "exclude_nms")
    with (
        pytest.raises(InvalidModel, match=r"does not say how pictures are prepared .*put infer_cfg.yml beside"),
        serving(tmp_path),
    ):
        pass
