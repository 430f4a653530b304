"""Masks, oriented boxes, poses and faces over every transport: the same answer to the last digit, drawn too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import visionpool
from visionpool.results import result_from_dict

from tests import instance_models
from tests.instance_reference import png
from tests.kserve_models import PATIENCE, Ask, Way, ways_to, write_yaml
from tests.real_server import Server, serving
from tests.test_kserve_vision import pictures, results_of
from tests.tiny_models import picture

NAMES = str({0: "cat", 1: "dog", 2: "cow"})
MODELS = {
    "segmenter": "images",
    "pasted": "image",
    "rcnn": "image",
    "oriented": "images",
    "poses": "images",
    "faces": "input.1",
}
CASES: list[tuple[str, dict[str, Any]]] = [("pasted", {}), ("pasted", {"compact": True})]  # test_parity has the others
KSERVE = ("http-binary", "grpc-raw", "grpc-typed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("instances")
    instance_models.yolo_segmentation(folder / "segmenter" / "m.onnx", metadata={"names": NAMES, "task": "segment"})
    instance_models.yolo_obb(folder / "oriented" / "m.onnx", metadata={"names": NAMES, "task": "obb"})
    pose = {"names": "{0: 'person'}", "task": "pose", "kpt_shape": "[17, 3]"}
    instance_models.yolo_pose(folder / "poses" / "m.onnx", metadata=pose)
    instance_models.scrfd(folder / "faces" / "m.onnx")
    for name, masks in (("rcnn", "grids"), ("pasted", "pasted")):
        instance_models.rcnn(folder / name / "m.onnx", masks=masks, seed=5)  # type: ignore[arg-type]  # a literal's values
        write_yaml(folder / name, family="rcnn", postprocess={"score_threshold": 0.2})
    with serving(folder) as running:
        yield running


@pytest.fixture(scope="module")
def ways(server: Server) -> Iterator[dict[str, Way]]:
    with ways_to(server, KSERVE) as made:
        yield made


@pytest.mark.parametrize(("model", "options"), CASES)
def test_answers_are_the_same_over_all_transports(
    model: str, options: dict[str, Any], server: Server, ways: dict[str, Way]
) -> None:
    files = [png(picture(90, 120, seed)) for seed in range(2)]
    body = [("image", ("picture", file)) for file in files]
    answer = httpx.post(f"{server.url}/v1/models/{model}/predict", files=body, params=options, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    told = answer.json()["results"]
    results = [result_from_dict(one) for one in told]
    assert all(one["boxes"] for one in told)
    if options:
        assert all(mask["rle"] and not mask["data"] for one in told for mask in one["masks"])
    with visionpool.Client(server.url) as http, visionpool.GrpcClient(server.grpc) as grpc:
        assert http.predict_many(model, files, **options) == results
        assert grpc.predict_many(model, files, **options) == results
    for way in KSERVE:
        assert results_of(ways[way](Ask(model, {MODELS[model]: pictures(*files)}, parameters=options))) == told, way


@pytest.mark.parametrize("model", MODELS)
def test_answers_can_be_drawn(model: str, server: Server) -> None:
    image = picture(90, 120, 1)
    with visionpool.Client(server.url) as client:
        drawn = client.annotate(model, png(image), format="png")
    decoded = cv2.imdecode(np.frombuffer(drawn, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert (decoded[:, :, ::-1] != image).any(axis=2).mean() > 0.05


def test_a_model_of_one_picture_takes_its_own_tensor_too(server: Server, ways: dict[str, Way]) -> None:
    """(3, H, W), without a batch dimension; its outputs then as they come."""
    tensor = np.ascontiguousarray((picture(90, 120) / 255).transpose(2, 0, 1), np.float32)
    for way in KSERVE:
        told = ways[way](Ask("rcnn", {"image": tensor}))
        assert set(told.outputs) == {"boxes", "labels", "scores", "masks"}
        assert told.outputs["masks"].shape[1:] == (1, 28, 28)


def test_what_is_said_of_a_model_of_one_picture(server: Server) -> None:
    told = httpx.get(f"{server.url}/v2/models/rcnn", timeout=PATIENCE).json()
    assert told["inputs"][0]["shape"][-3:] == [3, -1, -1]
    assert httpx.get(f"{server.url}/v2/models/rcnn/config", timeout=PATIENCE).status_code == 200
    assert httpx.get(f"{server.url}/v1/models/rcnn", timeout=PATIENCE).json()["task"] == "detection"
