"""What /metrics says: of each request, stage, batch, queue and worker, over real sockets; and nothing that a caller invents."""

from __future__ import annotations

import asyncio
import gzip
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_metrics
from visionpool.grpc import GrpcClient
from visionpool.v1 import vision_pb2 as v1
from visionpool_server.api.exchange import Exchange
from visionpool_server.api.metrics import Metrics, gpus
from visionpool_server.api.metrics.requests import outcomes
from visionpool_server.app import offline
from visionpool_server.cpu import cpu_count
from visionpool_server.histogram import BUCKETS, Histogram
from visionpool_server.models.loader import Defaults, load_model
from visionpool_server.models.repository import Repository, load_all, locate
from visionpool_server.pool import Occupancy
from visionpool_server.statistics import Statistics

from tests import ocr_models
from tests.prometheus_text import WAIT, Scrape, scrape, until
from tests.real_server import Server, picture, serving, write_model
from tests.test_monitor import A100, GIB, FakeNvml

RED, DEADLY, POISON = (255, 0, 0), (250, 0, 0), (240, 0, 0)
DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"
DEMO = Path(__file__).parents[1] / "server" / "visionpool_server" / "demo"
SLOW_MS = 1500


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "colours")
    write_model(folder / "slow", {"latency_ms": SLOW_MS}, workers=2, batching={"max_queue_size": 3})
    write_model(folder / "batches", {"latency_ms": 30}, workers=1, batching={"max_batch_size": 4})
    write_model(folder / "fragile", {"die": DEADLY, "fail": POISON})
    write_model(folder / "deep", {"latency_ms": 700, "depth": 2}, workers=1)
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


def test_a_duration_is_counted_where_prometheus_looks_for_it() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.0001, 0.00011, 60.0, 61.0):
        histogram.observe(seconds)
    counts, total = histogram.spread()
    assert [counts[0], counts[1], counts[-2], counts[-1]] == [2, 1, 1, 1]  # `le` includes its end
    assert total == pytest.approx(121.00021)
    assert list(BUCKETS) == sorted(set(BUCKETS))


def test_a_batch_is_one_inference_and_each_of_its_pictures_waits_for_itself() -> None:
    statistics = Statistics()

    class Part:
        decode_s, prepare_s, queue_s, finish_s = 0.002, 0.001, 0.2, 0.0004

    statistics.executed(3, 0.01, 0.02, [Part(), Part(), Part()])
    statistics.finished(3, 0.01, [Part(), Part(), Part()])
    spreads = statistics.spreads()
    assert {name: sum(spread.counts) for name, spread in spreads.items()} == {
        **{"decode": 3, "prepare": 3, "queue": 3, "infer": 1, "finish": 3, "encode": 0}
    }
    assert spreads["queue"].seconds == pytest.approx(0.6)
    assert spreads["infer"].seconds == pytest.approx(0.02)


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


def _fill(seen: Scrape, model: str) -> tuple[float, float, float]:
    """How many requests are in flight, how many slots used, and how many pictures wait."""
    gauges = ("visionpool_requests_in_flight", "visionpool_slots_used", "visionpool_queue_length")
    in_flight, used, waiting = (seen(gauge, model=model) for gauge in gauges)
    return in_flight, used, waiting


def test_slots_fill_then_the_queue_then_callers_are_refused(server: Server) -> None:
    """Two workers, three places more: the sixth is refused."""
    idle = scrape(server.url)
    assert idle("visionpool_slots", model="slow") == 2
    assert idle("visionpool_workers", model="slow", device="none") == 2
    with ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(predict, server, "slow") for _ in range(5)]
        until(server.url, lambda now: _fill(now, "slow") == (5, 2, 3))
        assert predict(server, "slow").status_code == 429
        assert {answer.result().status_code for answer in answers} == {200}
    empty = until(server.url, lambda now: _fill(now, "slow") == (0, 0, 0))
    assert requests(empty, "slow", "queue_full") == 1


def test_a_batch_that_a_device_is_given_early_waits(server: Server) -> None:
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(predict, server, "deep") for _ in range(2)]
        busy = until(server.url, lambda now: _fill(now, "deep") == (2, 1, 1))
        assert {answer.result().status_code for answer in answers} == {200}
    assert busy("visionpool_slots", model="deep") == 1


def test_a_picture_that_is_still_to_be_decoded_waits(tmp_path: Path) -> None:
    """Where decoding is what holds a server up, its workers look idle, and pictures wait all the same."""
    write_model(tmp_path / "m")
    with offline([tmp_path], Defaults(), max_pixels=10**6) as service:
        model = service.models.get("m")
        held = Event()
        for _ in range(cpu_count()):
            service.stages.submit(held.wait, 20)

        async def ask() -> Occupancy:
            asked = [asyncio.ensure_future(service.predict_many(model, [picture(RED)] * 2)) for _ in range(2)]
            await asyncio.sleep(0)  # they begin
            waiting = model.pool.occupancy()
            held.set()
            await asyncio.gather(*asked)
            return waiting

        waiting = asyncio.run(ask())
        end = time.monotonic() + WAIT
        while model.pool.occupancy() != Occupancy(2, 0, 0, 0, 0):  # a worker is done a moment after its answer has left
            assert time.monotonic() < end
            time.sleep(0.01)
    assert waiting == Occupancy(capacity=2, executing=0, waiting=4, admitted=4, requests=2)


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
    served = {
        "",
        "colours",
        "slow",
        "batches",
        "deep",
        "fragile",
        "extra",
        "ocr",
        "ocr.detect",
        "ocr.classify",
        "ocr.read",
    }
    assert after.labels("visionpool_requests_total", "model") <= served


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


def test_labels_are_checked_even_where_a_transport_does_not(tmp_path: Path) -> None:
    """The last line: whatever an exchange says of itself."""
    write_model(tmp_path / "m")
    models = Repository()
    metrics = Metrics(models, ready=lambda: True)
    try:
        for model in load_all(locate([tmp_path]), Defaults()):
            models.add(model)
        for name, outcome in (("m", "ok"), ("zz1", "ok"), ("zz2", "ok"), ("m", "zz3"), ("m", "zz4"), ("zz5", "zz5")):
            exchange = Exchange("id", "http", "POST /zz")
            exchange.model, exchange.outcome = name, outcome
            metrics.observe(exchange)
        seen = _of(metrics)
    finally:
        models.close()
    assert "zz" not in seen.text
    assert [requests(seen, "m"), requests(seen, ""), requests(seen, "m", "internal_error")] == [1, 2, 2]
    assert requests(seen, "", "internal_error") == 1


def _of(metrics: Metrics, **headers: str) -> Scrape:
    return Scrape.of(_asked(metrics, "GET", **headers).text)


def _asked(metrics: Metrics, method: str, **headers: str) -> httpx.Response:
    """From the application that stands on a port of its own."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(metrics.endpoint)
        async with httpx.AsyncClient(transport=transport, base_url="http://metrics") as client:
            return await client.request(method, "/metrics", headers=headers)

    return asyncio.run(ask())


def test_two_servers_in_one_process_have_figures_of_their_own() -> None:
    one, other = (Metrics(Repository(), ready=lambda ready=ready: ready) for ready in (True, False))
    one.observe(_ended("http"))
    assert [_of(metrics)("visionpool_ready") for metrics in (one, other)] == [1, 0]
    assert [requests(_of(metrics), "") for metrics in (one, other)] == [1, 0]


def _ended(transport: Any) -> Exchange:
    exchange = Exchange("id", transport, "GET /")
    exchange.outcome = "ok"
    return exchange


def test_it_says_whether_it_is_ready_and_about_to_stop() -> None:
    state = {"ready": False, "draining": False}
    metrics = Metrics(Repository(), ready=lambda: state["ready"], draining=lambda: state["draining"])
    for ready, draining in ((False, False), (True, False), (False, True)):
        state.update(ready=ready, draining=draining)
        seen = _of(metrics)
        assert [seen("visionpool_ready"), seen("visionpool_draining")] == [ready, draining]


def test_the_applications_refuses_other_methods_than_get_and_head() -> None:
    metrics = Metrics(Repository(), ready=lambda: True)
    assert _asked(metrics, "POST").status_code == 405
    assert _asked(metrics, "HEAD").status_code == 200


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/json", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=0.0.4, application/openmetrics-text;q=0.5", "text/plain; version=0.0.4; charset=utf-8"),
        # Prometheus 2 and 3:
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;"
            "version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
def test_it_is_told_in_the_form_that_is_asked_for(server: Server, accept: str | None, kind: str) -> None:
    answer = httpx.get(f"{server.url}/metrics", headers={"Accept": accept} if accept else {})
    assert answer.headers["content-type"] == kind
    read = open_metrics if "openmetrics" in kind else text_metrics
    assert len(list(read(answer.text))) > 20


@pytest.mark.parametrize(("accept", "coding"), [("gzip", "gzip"), ("identity", None), ("gzip;q=0", None)])
def test_it_is_compressed_where_that_is_accepted(server: Server, accept: str, coding: str | None) -> None:
    with httpx.stream("GET", f"{server.url}/metrics", headers={"Accept-Encoding": accept}) as answer:
        assert answer.headers.get("content-encoding") == coding
        raw = b"".join(answer.iter_raw())
    text = gzip.decompress(raw) if coding else raw
    assert b"visionpool_ready 1.0\n" in text


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


def test_the_process_is_told_of_too(server: Server) -> None:
    seen = scrape(server.url)
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"):
        assert seen(name) > 0, name
    assert seen("python_gc_collections_total", generation="0") > 0


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_weights_are_the_least_that_an_engine_holds(backend: str) -> None:
    (files,) = locate([DEMO / "digits"])
    model = load_model(files, Defaults(backend=backend))
    try:
        (placement,) = model.pool.placements
        assert files.weights is not None
        size = files.weights.stat().st_size
        assert placement.memory_bytes is not None
        assert 0.8 * size < placement.memory_bytes <= size
    finally:
        model.close()


def test_weights_beside_an_onnx_file_count_too(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper
    from visionpool_server.backends.onnxruntime.session import weight_bytes

    weights = numpy_helper.from_array(np.zeros((256, 256), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 256]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert weight_bytes(path) == path.stat().st_size + 256 * 256 * 4
    (tmp_path / "weights.bin").unlink()
    assert weight_bytes(path) is None
    assert weight_bytes(None) is None


def test_gpus_that_models_run_on_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(gpus, "gpu_buses", lambda: {"cuda:0": A100})
    monkeypatch.setattr(gpus, "placed", lambda _: {"cuda:0": {}, "CPU": {}})
    metrics = Metrics(Repository(), ready=lambda: True)
    seen = _of(metrics)
    assert seen("visionpool_gpu_info", device="cuda:0", name="NVIDIA A100", bus=A100) == 1
    assert seen("visionpool_gpu_utilization_ratio", device="cuda:0") == 0.37
    kinds = {"total": 80, "used": 5, "own": 3}
    assert {kind: seen(f"visionpool_gpu_memory_{kind}_bytes", device="cuda:0") / GIB for kind in kinds} == kinds
    nvml.fails["nvmlDeviceGetUtilizationRates"] = FakeNvml.NVMLError_NotSupported()
    assert _of(metrics).value("visionpool_gpu_utilization_ratio", device="cuda:0") is None  # what is not told is not 0
    metrics.close()
    assert nvml.open == 0


def test_nothing_of_nvidias_is_opened_where_no_model_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> dict[str, str]:
        raise AssertionError("it was")

    monkeypatch.setattr(gpus, "gpu_buses", opened)
    assert "visionpool_gpu_info" in _of(Metrics(Repository(), ready=lambda: True)).families()
