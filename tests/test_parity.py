"""The same picture by every way there is gives the same bytes: of every family, with every option, alone and in a crowd.

Byte-identical means: the JSON text of the result. What REST answers in `results`, what FastDeploy's format has in `result`, what
KServe's output `result` holds, and what `to_json` of a Python client's result gives are one and the same string of bytes. The
tests hold it where a batch is one picture, which is the default on a CPU: in batches of several a runtime may add in another
order, and the last digit of a score may then depend on a picture's neighbours.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionpool import messages
from visionpool.results import DetectionResult, Mask
from visionpool.v1 import vision_pb2 as v1
from visionpool_server.api.answers import result_fields
from visionpool_server.families import FAMILIES, Options

from tests.kserve_models import PATIENCE
from tests.parity_models import MODELS, pictures_for, write_models
from tests.parity_ways import ONE, SEVERAL, SHARED, Clients, Way, body, clients_of, pixels_of
from tests.real_server import Server, serving
from tests.test_ocr_reference import EN, ONNX, write_pipeline

every_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("parity"))


@pytest.fixture(scope="module")
def clients(folder: Path) -> Iterator[Clients]:
    with serving(folder) as server, clients_of(server) as connected:
        yield connected


def asked(clients: Clients, model: str, picture: bytes, **options: Any) -> bytes:
    """By the plainest way: what all others are held against."""
    (text,) = body(clients, model, [picture], options)
    return text


def assert_same(
    wanted: Sequence[bytes], ways: Sequence[Way], clients: Clients, model: str, pictures: Sequence[bytes], **options: Any
) -> None:
    told = {way.__name__: way(clients, model, pictures, options) for way in ways}
    other = {name: texts for name, texts in told.items() if texts != list(wanted)}
    assert not other, f"{model} with {options}: {sorted(other)} differ from {wanted}: {other}"


def described(clients: Clients, model: str) -> dict[str, Any]:
    told: dict[str, Any] = clients.web.get(f"/v1/models/{model}").json()
    return told


def test_every_family_is_asked(clients: Clients) -> None:
    families = {described(clients, model)["family"] for model in MODELS}
    assert families >= set(FAMILIES)
    served = {one["name"] for one in clients.web.get("/v1/models").json()["models"]}
    assert served == set(MODELS)


@every_model
def test_a_picture_gives_the_same_bytes_by_every_way(model: str, clients: Clients) -> None:
    texts = set()
    for picture in pictures_for(model).values():
        text = asked(clients, model, picture)
        assert_same([text], (*ONE, *SEVERAL), clients, model, [picture])
        texts.add(text)
    assert len(texts) == 3 or model == "ocr.classify"


@every_model
def test_several_pictures_in_one_request_are_answered_as_alone(model: str, clients: Clients) -> None:
    pictures = list(pictures_for(model).values())
    assert {group["max_batch_size"] for group in described(clients, model)["workers"]} <= {1}
    alone = [asked(clients, model, picture) for picture in pictures]
    assert_same(alone, SEVERAL, clients, model, pictures)
    assert_same(alone[::-1], SEVERAL, clients, model, pictures[::-1])


# Options


def values_for(option: str, result: Mapping[str, Any], usual: Mapping[str, Any]) -> list[Any]:
    """Values of an option, the first of which leads to another result than `result`, that of a request without options."""
    scores = sorted(result.get("scores") or result.get("rec_scores") or [0.9])
    labels = result.get("labels") or ["person"]
    match option:
        case "score_threshold":
            return [scores[len(scores) // 2], 1.0]
        case "iou_threshold":
            return [0.99 if usual["iou_threshold"] < 0.5 else 0.1]
        case "classes":
            return [[labels[-1]], [0, labels[-1]]]
        case "top_k":
            return [2]
        case "max_detections":
            return [1, 3]
        case "compact" | "score_map":
            return [True, False]
    raise AssertionError(f"no value is known for {option}")


@every_model
def test_options_mean_the_same_by_every_way(model: str, clients: Clients) -> None:
    picture = pictures_for(model)["odd"]
    usual, told = asked(clients, model, picture), described(clients, model)
    together = {}
    for option in told["options"]:
        values = values_for(option, json.loads(usual), told["defaults"])
        for value in values:
            text = asked(clients, model, picture, **{option: value})
            assert_same([text], (*ONE, *SEVERAL), clients, model, [picture], **{option: value})
            assert text != usual or value is not values[0], f"{option}={value} of {model} changes nothing"
        together[option] = values[0]
    assert_same([asked(clients, model, picture, **together)], (*ONE, *SEVERAL), clients, model, [picture], **together)


def test_every_option_is_asked_of_a_model(clients: Clients) -> None:
    assert {option for model in MODELS for option in described(clients, model)["options"]} == set(Options.names())
