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

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionpool import messages
from visionpool.errors import InferenceFailed
from visionpool.results import DetectionResult, Mask
from visionpool.v1 import vision_pb2 as v1
from visionpool_server.api.answers import result_fields
from visionpool_server.families import FAMILIES, Options

from tests.kserve_models import PATIENCE, Refused
from tests.parity_clients import Clients, clients_of
from tests.parity_models import LABELS, MODELS, NOT_NUMBERS, pictures_for, write_models
from tests.parity_ways import (
    ONE,
    SEVERAL,
    SHARED,
    Way,
    async_client,
    async_grpc_client,
    body,
    client,
    fastdeploy,
    form,
    grpc_client,
    grpc_stream,
    kserve_grpc,
    kserve_http,
    pixels_of,
)
from tests.real_server import serving
from tests.test_ocr_reference import EN, ONNX, write_pipeline

A_FEW = (fastdeploy, client, grpc_client, kserve_http)
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
    wanted: Sequence[bytes],
    ways: Sequence[Way],
    clients: Clients,
    model: str,
    pictures: Sequence[bytes],
    **options: Any,
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
    assert served == {*MODELS, *NOT_NUMBERS}


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
    assert_same(alone[::-1], (form, grpc_client, kserve_grpc), clients, model, pictures[::-1])


# Options


def values_for(option: str, result: Mapping[str, Any], described: Mapping[str, Any]) -> list[Any]:
    """Values of an option, the first of which leads to another result than `result`, that of a request without options."""
    usual, known = described["defaults"], described["labels"]
    scores = sorted(result.get("scores") or result.get("rec_scores") or [0.9])
    found = result.get("labels") or known
    match option:
        case "score_threshold":
            return [scores[len(scores) // 2], 1.0]
        case "iou_threshold":
            return [0.99 if usual["iou_threshold"] < 0.5 else 0.1]
        case "classes":
            other = next((label for label in known if label != found[0]), known[0])
            return [[other], [0, other]]
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
        values = values_for(option, json.loads(usual), told)
        for value in values:
            text = asked(clients, model, picture, **{option: value})
            ways = (*ONE, *SEVERAL) if value is values[0] else A_FEW
            assert_same([text], ways, clients, model, [picture], **{option: value})
            only_one = option == "classes" and len(told["labels"]) == 1
            assert text != usual or value is not values[0] or only_one, f"{option}={value} of {model} changes nothing"
        together[option] = values[0]
    assert_same([asked(clients, model, picture, **together)], (*ONE, *SEVERAL), clients, model, [picture], **together)


def test_every_option_is_asked_of_a_model(clients: Clients) -> None:
    assert {option for model in MODELS for option in described(clients, model)["options"]} == set(Options.names())


# Drawn pictures


@every_model
def test_the_annotated_picture_is_the_same_file_by_every_way(model: str, clients: Clients) -> None:
    picture = pictures_for(model)["turned"]
    for kind in ("png", "jpeg"):
        told = {
            "REST": clients.web.post(
                f"/v1/models/{model}/predict", content=picture, headers={"Accept": f"image/{kind}"}
            ).content,
            "client": clients.client.annotate(model, picture, format=kind),
            "async client": clients.portal.call(partial(clients.async_client.annotate, model, picture, format=kind)),
            "gRPC": clients.grpc.annotate(model, picture, format=kind),
            "async gRPC": clients.portal.call(partial(clients.async_grpc.annotate, model, picture, format=kind)),
        }
        assert len(set(told.values())) == 1, {name: len(data) for name, data in told.items()}
    drawn, original = pixels_of(clients.client.annotate(model, picture, format="png")), pixels_of(picture)
    assert drawn.shape == original.shape
    assert (drawn != original).any() or model == "embedding"  # of which there is nothing to draw


def test_options_hold_for_what_is_drawn_too(clients: Clients) -> None:
    picture = pictures_for("yolov8")["odd"]
    params, headers = {"max_detections": 1}, {"Accept": "image/png"}
    answer = clients.web.post("/v1/models/yolov8/predict", content=picture, headers=headers, params=params)
    assert clients.grpc.annotate("yolov8", picture, format="png", max_detections=1) == answer.content
    assert clients.grpc.annotate("yolov8", picture, format="png") != answer.content


# Numbers that are none


@pytest.mark.parametrize("model", NOT_NUMBERS)
def test_what_json_has_no_word_for_is_an_error_by_every_way(model: str, clients: Clients) -> None:
    picture = pictures_for(model)["odd"]
    response = clients.web.post(f"/v1/models/{model}/predict", content=picture)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "inference_failed")
    for way in (client, async_client, grpc_client, grpc_stream, async_grpc_client):
        with pytest.raises(InferenceFailed, match="NaN or infinite"):
            way(clients, model, [picture], {})
    for way in (kserve_http, kserve_grpc):
        with pytest.raises(Refused, match="NaN or infinite"):
            way(clients, model, [picture], {})


# A crowd


def test_nobody_gets_anothers_answer(clients: Clients) -> None:
    """32 at a time, of all models, pictures and ways mixed."""
    pictures = {(model, name): file for model in MODELS for name, file in pictures_for(model).items()}
    alone = {key: asked(clients, key[0], file) for key, file in pictures.items()}
    cases = [(way, key) for way in SHARED for key in pictures]
    random.Random(4).shuffle(cases)

    def ask(case: tuple[Way, tuple[str, str]]) -> tuple[str, tuple[str, str]] | None:
        way, (model, name) = case
        told = way(clients, model, [pictures[model, name]], {})
        return None if told == [alone[model, name]] else (way.__name__, (model, name))

    with ThreadPoolExecutor(32) as threads:
        wrong = [case for case in threads.map(ask, cases) if case]
    assert not wrong


# The command line


def run(*arguments: object) -> list[bytes]:
    """What `visionpool predict` prints: a line for each picture."""
    command = [sys.executable, "-m", "visionpool", "predict", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=2 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.splitlines()


SAID: dict[str, dict[str, Any]] = {
    "rcnn": {"classes": LABELS[1], "max_detections": 4},
    "ocr": {"score_threshold": 0.3},
}


@pytest.mark.parametrize("model", SAID)
@pytest.mark.parametrize("where", ["here", "there"])
def test_the_command_line_prints_the_same(
    model: str, where: str, folder: Path, clients: Clients, tmp_path: Path
) -> None:
    """Where the model runs in its own process, and where the server is asked."""
    files = {tmp_path / f"{name}.png": data for name, data in pictures_for(model).items()}
    for path, data in files.items():
        path.write_bytes(data)
    target = [folder / model] if where == "here" else [model, "--url", clients.server.url]
    flags = [part for name, value in SAID[model].items() for part in (f"--{name.replace('_', '-')}", value)]
    lines = run(*target, *files, "--json", *flags, "--save", tmp_path / "drawn")
    for line, (path, data) in zip(lines, files.items(), strict=True):
        text = asked(clients, model, data, **SAID[model])
        assert json.loads(text)["boxes"]
        assert line == orjson.dumps({"picture": str(path)})[:-1] + b"," + text[1:]
        drawn = (tmp_path / "drawn" / f"{path.stem}.jpg").read_bytes()
        assert drawn == clients.grpc.annotate(model, data, format="jpeg", **SAID[model])


# Texts


numbers = st.floats(-1e9, 1e9) | st.floats(-1e-3, 1e-3)
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers, numbers, texts)))
def test_a_result_is_the_same_text_on_both_sides(rows: list[tuple[float, float, float, float, float, str]]) -> None:
    """What the server writes, the client's `to_json`, and what came by gRPC: to the sign of zero."""
    result = DetectionResult(
        boxes=tuple(row[:4] for row in rows),
        scores=tuple(row[4] for row in rows),
        label_ids=tuple(range(len(rows))),
        labels=tuple(row[5] for row in rows),
        rotated_boxes=tuple(row[:4] * 2 for row in rows),
        masks=tuple(Mask((0, 1), (1, 2), row[5]) for row in rows),
        contain_masks=bool(rows),
    )
    written = orjson.dumps(result_fields(result))
    assert result.to_json().encode() == written
    message = v1.Result()
    messages.write_result(result, message)
    received = messages.read_result(v1.Result.FromString(message.SerializeToString()))
    assert received.to_json().encode() == written
    assert DetectionResult.from_json(written).to_json().encode() == written


# Real weights

REAL = {
    "yolov8n": "photos/bus.jpg",
    "squeezenet": "photos/fish.png",
    "humanseg": "photos/humanseg_2.png",
    "picodet_s_320_paddle": "photos/bus.jpg",
    "ocr": "ocr/en.jpg",
}


@pytest.fixture(scope="module")
def real(testdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    ocr = write_pipeline(tmp_path_factory.mktemp("real") / "ocr", testdata, ONNX)
    models = [testdata / "models" / name for name in REAL if name != "ocr"]
    with serving(*models, ocr) as server, clients_of(server) as connected:
        yield connected


@pytest.mark.parametrize("model", REAL)
def test_real_weights_give_the_same_bytes_by_every_way(model: str, real: Clients, testdata: Path) -> None:
    picture = (testdata / "images" / REAL[model]).read_bytes()
    text = asked(real, model, picture)
    exact = REAL[model].endswith(".png")  # decoders of JPEGs differ in the last bit
    ones = [way for way in ONE if exact or not way.__name__.startswith("pixels")]
    assert_same([text], (*ones, *SEVERAL), real, model, [picture])
    result = json.loads(text)
    if model == "ocr":
        assert result["text"] == EN
    else:
        assert result.get("labels")
