"""Both clients against a real socket: what they send, and what they make of good answers."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import visionpool
from visionpool import errors

from tests.scripted_server import (
    JPEG,
    PNG,
    RESULT,
    TIMINGS,
    Connect,
    FakeServer,
    Reply,
    bad,
    good,
)


def test_predict_sends_the_picture_as_the_body_and_reads_the_result(server: FakeServer, connect: Connect) -> None:
    server.script = [good()]
    assert connect(server.url).predict("shapes", JPEG) == RESULT
    request = server.requests[0]
    assert (request.method, request.path, request.query) == ("POST", "/v1/models/shapes/predict", {})
    assert request.body == JPEG
    assert request.headers["content-type"] == "image/jpeg"
    assert request.headers["accept"] == "application/json"
    assert request.headers["user-agent"].startswith("visionpool/")


def test_options_become_query_parameters(server: FakeServer, connect: Connect) -> None:
    server.script = [good()]
    client = connect(server.url)
    client.predict(
        "m",
        JPEG,
        score_threshold=0.4,
        iou_threshold=None,
        top_k=3,
        classes=["person", 7],
        max_detections=0,
        timeout=20.0,
    )
    query = dict(server.requests[0].query)
    assert 19_000 < int(query.pop("timeout_ms")[0]) <= 20_000
    assert query == {
        "score_threshold": ["0.4"],
        "top_k": ["3"],
        "classes": ["person,7"],
        "max_detections": ["0"],
    }


def test_classes_may_be_one_string(server: FakeServer, connect: Connect) -> None:
    server.script = [good()]
    connect(server.url).predict("m", JPEG, classes="person")
    assert server.requests[0].query == {"classes": ["person"]}


def test_options_that_cannot_be_sent_are_refused_before_anything_is(server: FakeServer, connect: Connect) -> None:
    client = connect(server.url)
    with pytest.raises(TypeError, match="no option 'treshold'; there are score_threshold"):
        client.predict("m", JPEG, treshold=0.5)  # type: ignore[call-arg]
    with pytest.raises(errors.InvalidOption, match=r"comma in it \(give its number"):
        client.predict("m", JPEG, classes=["tench, Tinca tinca"])
    with pytest.raises(errors.InvalidOption, match="drawn as 'gif'"):
        client.annotate("m", JPEG, format="gif")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidOption, match="timeout of 0 s"):
        client.predict("m", JPEG, timeout=0)
    assert not server.requests


def test_predict_many_sends_one_form_and_gives_results_in_order(server: FakeServer, connect: Connect) -> None:
    second = visionpool.DetectionResult(boxes=((0.5, 1.0, 2.0, 3.0),), scores=(0.5,), label_ids=(0,))
    server.script = [good(RESULT, second)]
    assert connect(server.url).predict_many("m", (picture for picture in (JPEG, PNG))) == [RESULT, second]
    (request,) = server.requests
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert request.body.count(b'name="image"') == 2
    assert request.body.index(JPEG) < request.body.index(PNG)
    assert b"Content-Type: image/png" in request.body


def test_predict_many_of_none_or_of_one(server: FakeServer, connect: Connect) -> None:
    server.script = [good()]
    client = connect(server.url)
    assert client.predict_many("m", []) == []
    assert not server.requests
    assert client.predict_many("m", [JPEG]) == [RESULT]
    assert server.requests[0].body == JPEG


@pytest.mark.parametrize("single", ["a.jpg", Path("a.jpg"), JPEG, io.BytesIO(JPEG), np.zeros((4, 4, 3), np.uint8)])
def test_predict_many_refuses_a_single_picture(connect: Connect, single: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match="use predict"):
        connect("http://127.0.0.1:9").predict_many("m", single)


def test_predict_full_gives_version_and_timings(server: FakeServer, connect: Connect) -> None:
    server.script = [good(), good(RESULT, RESULT)]
    client = connect(server.url)
    expected = visionpool.Prediction("shapes", "3", (RESULT,), TIMINGS)
    assert client.predict_full("shapes", JPEG) == expected
    assert len(client.predict_full("shapes", [JPEG, PNG]).results) == 2
    with pytest.raises(errors.InvalidRequest, match="no picture"):
        client.predict_full("shapes", [])


def test_annotate_asks_for_a_picture(server: FakeServer, connect: Connect) -> None:
    server.script = [Reply(body=PNG, headers={"Content-Type": "image/png"}), good()]
    client = connect(server.url)
    assert client.annotate("m", JPEG, format="png", score_threshold=0.5) == PNG
    assert server.requests[0].headers["accept"] == "image/png"
    assert server.requests[0].query == {"score_threshold": ["0.5"]}
    with pytest.raises(errors.ServiceError, match="expected a picture"):
        client.annotate("m", JPEG)


def test_models_are_listed_and_described(server: FakeServer, connect: Connect) -> None:
    raw = {
        "name": "a b/c",
        "version": 2,
        "task": "detection",
        "family": "yolov8",
        "state": "ready",
        "new": [1],
    }
    server.script = [
        Reply(body=json.dumps({"models": [raw]}).encode()),
        Reply(body=json.dumps({**raw, "labels": ["cat", "dog"]}).encode()),
    ]
    client = connect(server.url)
    assert client.models() == [visionpool.ModelInfo("a b/c", "2", "detection", "yolov8", "ready", raw=raw)]
    assert client.model("a b/c").labels == ("cat", "dog")
    assert [request.path for request in server.requests] == ["/v1/models", "/v1/models/a%20b%2Fc"]


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_is_no_path_segment_is_no_model(connect: Connect, name: str) -> None:
    with pytest.raises(errors.ModelNotFound):
        connect("http://127.0.0.1:9").predict(name, JPEG)


def test_health_is_a_matter_of_yes_or_no(server: FakeServer, connect: Connect, free_port: int) -> None:
    server.script = [Reply(), Reply(), bad(503, "unavailable")]
    client = connect(server.url)
    assert client.live()
    assert client.ready()
    assert not client.ready()
    assert [request.path for request in server.requests] == ["/health/live", *["/health/ready"] * 2]
    assert not connect(f"http://127.0.0.1:{free_port}").live()


def test_wait_ready_returns_once_the_server_is_ready(server: FakeServer, connect: Connect) -> None:
    server.script = [Reply(0), bad(503, "unavailable"), Reply()]
    connect(server.url).wait_ready(timeout=10)
    assert len(server.requests) == 3


def test_wait_ready_tells_why_it_gave_up(server: FakeServer, connect: Connect, free_port: int) -> None:
    server.script = [bad(503, "unavailable")]
    with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.2 s: /health/ready answers 503"):
        connect(server.url).wait_ready(timeout=0.2)
    with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.1 s: nothing answers at"):
        connect(f"http://127.0.0.1:{free_port}").wait_ready(timeout=0.1)


def test_key_and_headers_are_sent(server: FakeServer, connect: Connect) -> None:
    server.script = [good()]
    connect(server.url, api_key="k3y", headers={"X-Team": "eyes"}).predict("m", JPEG)
    assert server.requests[0].headers["authorization"] == "Bearer k3y"
    assert server.requests[0].headers["x-team"] == "eyes"


def test_the_address_may_have_a_path_or_no_scheme(server: FakeServer, connect: Connect) -> None:
    server.script = [good()]
    for url in (f"{server.url}/vision/", server.url.removeprefix("http://")):
        connect(url).predict("m", JPEG)
    paths = [request.path for request in server.requests]
    assert paths == ["/vision/v1/models/m/predict", "/v1/models/m/predict"]


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port"])
def test_an_address_that_is_none_is_refused(connect: Connect, url: str) -> None:
    with pytest.raises(errors.InvalidOption, match="such as http"):
        connect(url)


def test_a_missing_file_is_a_missing_file(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect("http://127.0.0.1:9").predict("m", tmp_path / "none.jpg")


def test_a_transport_can_be_given() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"models": [{"name": request.url.host}]})

    with visionpool.Client("http://inside", transport=httpx.MockTransport(handle)) as client:
        assert client.models()[0].name == "inside"


def test_one_client_serves_many_threads_and_tasks(server: FakeServer) -> None:
    server.script = [good()]

    async def gather() -> list[visionpool.Result]:
        async with visionpool.AsyncClient(server.url) as client:
            return await asyncio.gather(*(client.predict("m", JPEG) for _ in range(20)))

    assert asyncio.run(gather()) == [RESULT] * 20
    with visionpool.Client(server.url) as client:
        threads = [threading.Thread(target=client.predict, args=("m", JPEG)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert len(server.requests) == 28
