"""What /metrics says: of each request, stage, batch, queue and worker, over real sockets; and nothing that a caller invents."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from visionpool.grpc import GrpcClient
from visionpool.v1 import vision_pb2 as v1
from visionpool_server.api.metrics.requests import outcomes

from tests import ocr_models
from tests.prometheus_text import Scrape, scrape, until
from tests.real_server import Server, picture, serving, write_model

RED, DEADLY, POISON = (255, 0, 0), (250, 0, 0), (240, 0, 0)
DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "colours")
    write_model(folder / "full", {"latency_ms": 300}, workers=1, batching={"max_queue_size": 1})
    write_model(folder / "batches", {"latency_ms": 30}, workers=1, batching={"max_batch_size": 4})
    write_model(folder / "fragile", {"die": DEADLY, "fail": POISON})
    write_model(folder / "extra")
    ocr_models.pipeline(folder / "ocr")
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    with serving(folder, *explicit) as running:
        yield running


def predict(server: Server, model: str, data: bytes = picture(RED), **more: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/models/{model}/predict", content=data, timeout=60, **more)


def requests(seen: Scrape, model: str, outcome: str = "ok", transport: str = "http") -> float:
    return seen.value("visionpool_requests_total", model=model, outcome=outcome, transport=transport) or 0.0


def stage(seen: Scrape, model: str, name: str) -> float:
    return seen.value("visionpool_stage_duration_seconds_count", model=model, stage=name) or 0.0


def test_requests_are_counted_by_model_transport_and_outcome(server: Server) -> None:
    before = scrape(server.url)
    assert (
        before("visionpool_requests_total", model="colours", outcome="ok", transport="grpc") == 0
    )  # an increase later
    for _ in range(3):
        assert predict(server, "colours").status_code == 200
    assert predict(server, "colours", b"no picture").status_code == 415
    assert predict(server, "nobody").status_code == 404
    with GrpcClient(server.grpc) as client:
        client.predict("colours", picture(RED))
    seen = until(server.url, lambda now: requests(now, "colours", transport="grpc") == 1)
    assert requests(seen, "colours") - requests(before, "colours") == 3
    assert requests(seen, "colours", "unsupported_media") == 1
    assert requests(seen, "", "model_not_found") == 1
    took = {"model": "colours", "transport": "http"}
    assert seen("visionpool_request_duration_seconds_count", **took) == requests(
        seen, "colours"
    )  # of those that succeed
    assert seen("visionpool_request_duration_seconds_sum", **took) > 0
    assert seen("visionpool_request_duration_seconds_bucket", **took, le="+Inf") == requests(seen, "colours")


@pytest.mark.parametrize("way", ["http", "fastdeploy", "picture", "grpc", "kserve http", "kserve grpc"])
def test_each_stage_of_a_picture_is_counted_once_whichever_way_it_comes(server: Server, way: str) -> None:
    before = scrape(server.url)
    _send(server, way)
    stages = ("decode", "prepare", "queue", "infer", "finish", "encode")
    seen = until(
        server.url, lambda now: all(stage(now, "colours", one) > stage(before, "colours", one) for one in stages)
    )
    assert {one: stage(seen, "colours", one) - stage(before, "colours", one) for one in stages} == dict.fromkeys(
        stages, 1
    )
    assert _pictures(seen, "colours") - _pictures(before, "colours") == 1


def _send(server: Server, way: str) -> None:
    data = picture(RED)
    match way:
        case "http":
            predict(server, "colours").raise_for_status()
        case "picture":
            predict(server, "colours", headers={"Accept": "image/png"}).raise_for_status()
        case "fastdeploy":
            import base64

            body = {"data": {"image": base64.b64encode(data).decode()}}
            httpx.post(f"{server.url}/fd/colours", json=body).raise_for_status()
        case "grpc":
            with GrpcClient(server.grpc) as client:
                client.predict("colours", data)
        case "kserve http":
            tensor = triton_http.InferInput("images", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([data], object))
            with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as http_client:
                http_client.infer("colours", [tensor])
        case "kserve grpc":
            given = triton_grpc.InferInput("images", [1], "BYTES")
            given.set_data_from_numpy(np.array([data], object))
            with triton_grpc.InferenceServerClient(server.grpc) as grpc_client:
                grpc_client.infer("colours", [given])


def _pictures(seen: Scrape, model: str) -> float:
    return seen("visionpool_pictures_total", model=model)


def test_pictures_and_batches_are_those_of_kserves_statistics(server: Server) -> None:
    with ThreadPoolExecutor(12) as threads:
        assert {answer.status_code for answer in threads.map(lambda _: predict(server, "batches"), range(24))} == {200}
    seen = scrape(server.url)
    said = httpx.get(f"{server.url}/v2/models/batches/stats").json()["model_stats"][0]
    assert _pictures(seen, "batches") == int(said["inference_count"])
    assert seen("visionpool_batch_size_count", model="batches") == int(said["execution_count"])
    assert seen("visionpool_batch_size_sum", model="batches") == int(said["inference_count"])
    assert stage(seen, "batches", "infer") == int(said["execution_count"])
    for limit in (1, 2, 4):
        upto = sum(int(one["compute_infer"]["count"]) for one in said["batch_stats"] if int(one["batch_size"]) <= limit)
        assert seen("visionpool_batch_size_bucket", model="batches", le=f"{limit}.0") == upto
    assert int(said["execution_count"]) < int(said["inference_count"])  # some were joined


def test_who_is_refused_is_counted_and_makes_no_server_look_quick(server: Server) -> None:
    with ThreadPoolExecutor(6) as threads:
        codes = [answer.status_code for answer in threads.map(lambda _: predict(server, "full"), range(12))]
    seen = scrape(server.url)
    assert set(codes) == {200, 429}
    assert requests(seen, "full", "queue_full") == codes.count(429)
    took = {"model": "full", "transport": "http"}
    assert seen("visionpool_request_duration_seconds_count", **took) == codes.count(200)
    assert seen("visionpool_request_duration_seconds_bucket", **took, le="0.25") == 0


def test_a_worker_that_dies_and_a_batch_that_fails_are_counted(server: Server) -> None:
    assert scrape(server.url)("visionpool_worker_restarts_total", model="fragile") == 0
    assert predict(server, "fragile", picture(POISON)).status_code == 500
    assert predict(server, "fragile", picture(DEADLY)).status_code == 500
    seen = until(server.url, lambda now: now("visionpool_worker_restarts_total", model="fragile") == 2)  # tried twice
    assert requests(seen, "fragile", "inference_failed") == 2
    assert predict(server, "fragile").status_code == 200


def test_a_vision_models_own_tensors_are_its_figures_too_but_no_further_slots(server: Server) -> None:
    before = scrape(server.url)
    tensor = triton_http.InferInput("images", [5, 3, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.ones((5, 3, 8, 8), np.float32))
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        client.infer("colours", [tensor])
    seen = scrape(server.url)
    assert _pictures(seen, "colours") - _pictures(before, "colours") == 5
    assert seen("visionpool_slots", model="colours") == before("visionpool_slots", model="colours")
    workers = {"model": "colours", "device": "none"}
    assert seen("visionpool_workers", **workers) == 2 * before("visionpool_workers", **workers)
    assert stage(seen, "colours", "decode") == stage(before, "colours", "decode")  # there is nothing to decode
    assert stage(seen, "colours", "encode") == stage(before, "colours", "encode") + 1


def test_a_pipelines_pictures_are_its_own_and_its_lines_those_of_its_steps(server: Server) -> None:
    lines = ocr_models.written(7, 3)
    page = ocr_models.png(ocr_models.page(lines))
    before = scrape(server.url)
    answer = predict(server, "ocr", page)
    assert answer.status_code == 200, answer.text
    found = len(answer.json()["results"][0]["text"])
    seen = scrape(server.url)
    grown = {name: _pictures(seen, name) - _pictures(before, name) for name in ("ocr", "ocr.detect", "ocr.read")}
    assert found > 1
    assert grown == {"ocr": 1, "ocr.detect": 1, "ocr.read": found}
    assert requests(seen, "ocr") == 1
    assert requests(seen, "ocr.read") == 0  # nobody asked for it
    assert seen.value("visionpool_slots", model="ocr") is None
    assert seen("visionpool_slots", model="ocr.read") > 0
    assert seen("visionpool_queue_length", model="ocr") == 0
    stages = ("decode", "prepare", "queue", "infer", "finish", "encode")
    assert {one: stage(seen, "ocr", one) for one in stages} == dict.fromkeys(stages, 1)


def test_an_unloaded_model_is_gone_and_counts_from_zero_when_it_is_back(server: Server) -> None:
    assert predict(server, "extra").status_code == 200
    control = f"{server.url}/v2/repository/models/extra"
    assert httpx.post(f"{control}/unload").status_code == 200
    gone = scrape(server.url)
    own = {name for name, labels in gone.samples if ("model", "extra") in labels}
    assert own == {f"visionpool_request{rest}" for rest in ("s_total", *_histogram("_duration_seconds"))}
    assert requests(gone, "extra") == 1  # the server has answered it
    assert httpx.post(f"{control}/load", timeout=60).status_code == 200
    back = scrape(server.url)
    assert _pictures(back, "extra") == 0
    assert requests(back, "extra") == 1
    assert back("visionpool_slots", model="extra") == 2


def _histogram(name: str) -> tuple[str, ...]:
    return f"{name}_bucket", f"{name}_count", f"{name}_sum"


def test_nothing_that_callers_invent_becomes_a_label(server: Server) -> None:
    def shape(seen: Scrape) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return set(seen.samples)

    _flood(server, "warm")
    before = scrape(server.url)
    for round_ in range(15):
        _flood(server, f"zz{round_}")
    after = scrape(server.url)
    assert shape(after) == shape(before)
    assert "zz" not in after.text
    assert after.labels("visionpool_requests_total", "outcome") <= outcomes()
    served = {model["name"] for model in httpx.get(f"{server.url}/v1/models").json()["models"]}
    assert after.labels("visionpool_requests_total", "model") <= {"", *served}


def _flood(server: Server, word: str) -> None:
    """Names, paths, methods, ids, options and bodies with this word in them."""
    with httpx.Client(base_url=server.url, headers={"X-Request-ID": word, "User-Agent": word}) as client:
        for path in (f"/v1/models/{word}/predict", f"/v2/models/{word}/infer", f"/fd/{word}", f"/{word}"):
            client.post(path, content=word.encode())
        client.post(f"/v2/models/colours/versions/{word}/infer", content=b"{}")
        client.post(f"/v1/models/colours/predict?{word}=1", content=picture(RED))
        client.post("/v1/models/colours/predict", headers={"Content-Type": f"image/{word}"}, content=word.encode())
        client.get(f"/v1/models/{word}", headers={"Accept": word})
        client.get(f"/metrics?{word}=1", headers={"Accept": f"application/openmetrics-text;version={word}"})
    with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
        raw.sendall(f"{word.upper()} / HTTP/1.1\r\nHost: {word}\r\nConnection: close\r\n\r\n".encode())
        while raw.recv(4096):
            pass
    with grpc.insecure_channel(server.grpc) as channel:
        for method in ("/visionpool.v1.Vision/Predict", f"/{word}/Predict", f"/visionpool.v1.Vision/{word}"):
            with suppress(grpc.RpcError):
                asked = v1.PredictRequest(model=word, pictures=[word.encode()])
                call: Any = channel.unary_unary(method)
                call(asked.SerializeToString(), timeout=30, metadata=(("x-request-id", word),))


def test_promtool_finds_nothing_to_criticise(server: Server) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is missing: apt-get install prometheus")
    said = subprocess.run(
        ["promtool", "check", "metrics"],
        check=False,
        input=scrape(server.url).text,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_the_docs_list_all_that_is_told_with_its_type_and_labels_and_nothing_else(server: Server) -> None:
    _send(server, "http")
    seen = until(server.url, lambda now: requests(now, "colours") > 0)
    rows = re.findall(r"^\| `(visionpool_\w+)` \| (\w+)[^|]*\| ([^|]*)\|", DOCS.read_text(encoding="utf-8"), re.M)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    types = dict(re.findall(r"^# TYPE (visionpool_\w+) (\w+)$", seen.text, re.M))
    assert {name: kind for name, (kind, _) in documented.items()} == types
    for name, labels in ((name, {key for key, _ in pairs} - {"le"}) for name, pairs in seen.samples):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        if name.startswith("visionpool_"):
            assert documented[name if name in documented else base][1] == labels, name
