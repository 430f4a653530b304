"""How figures become what Prometheus reads: histograms, labels, forms, and what is known of the process, weights and GPUs."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_metrics
from visionpool_server.api.exchange import Exchange
from visionpool_server.api.metrics import Metrics, gpus
from visionpool_server.histogram import BUCKETS, Histogram
from visionpool_server.models.loader import Defaults, load_model
from visionpool_server.models.repository import Repository, load_all, locate
from visionpool_server.statistics import Statistics

from tests.prometheus_text import Scrape, asked, in_process
from tests.real_server import write_model
from tests.test_monitor import A100, GIB, FakeNvml

DEMO = Path(__file__).parents[1] / "server" / "visionpool_server" / "demo"


def _requests(seen: Scrape, model: str, outcome: str = "ok") -> float:
    return seen.value("visionpool_requests_total", model=model, outcome=outcome, transport="http") or 0.0


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
        seen = in_process(metrics)
    finally:
        models.close()
    assert "zz" not in seen.text
    assert [_requests(seen, "m"), _requests(seen, ""), _requests(seen, "m", "internal_error")] == [1, 2, 2]
    assert _requests(seen, "", "internal_error") == 1


def test_two_servers_in_one_process_have_figures_of_their_own() -> None:
    one, other = (Metrics(Repository(), ready=partial(bool, ready)) for ready in (True, False))
    one.observe(_ended("http"))
    assert [in_process(metrics)("visionpool_ready") for metrics in (one, other)] == [1, 0]
    assert [_requests(in_process(metrics), "") for metrics in (one, other)] == [1, 0]


def _ended(transport: Any) -> Exchange:
    exchange = Exchange("id", transport, "GET /")
    exchange.outcome = "ok"
    return exchange


def test_it_says_whether_it_is_ready_and_about_to_stop() -> None:
    state = {"ready": False, "draining": False}
    metrics = Metrics(Repository(), ready=lambda: state["ready"], draining=lambda: state["draining"])
    for ready, draining in ((False, False), (True, False), (False, True)):
        state.update(ready=ready, draining=draining)
        seen = in_process(metrics)
        assert [seen("visionpool_ready"), seen("visionpool_draining")] == [ready, draining]


def test_the_applications_refuses_other_methods_than_get_and_head() -> None:
    metrics = Metrics(Repository(), ready=lambda: True)
    assert asked(metrics, "POST").status_code == 405
    assert asked(metrics, "HEAD").status_code == 200


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
def test_it_is_told_in_the_form_that_is_asked_for(accept: str | None, kind: str) -> None:
    answer = asked(Metrics(Repository(), ready=lambda: True), "GET", **({"Accept": accept} if accept else {}))
    assert answer.headers["content-type"] == kind
    read = open_metrics if "openmetrics" in kind else text_metrics
    assert len(list(read(answer.text))) > 20


@pytest.mark.parametrize(("accept", "coding"), [("gzip", "gzip"), ("identity", None), ("gzip;q=0", None)])
def test_it_is_compressed_where_that_is_accepted(accept: str, coding: str | None) -> None:
    answer = asked(Metrics(Repository(), ready=lambda: True), "GET", **{"Accept-Encoding": accept})
    assert answer.headers.get("content-encoding") == coding
    assert "visionpool_ready 1.0\n" in answer.text  # httpx has inflated it


def test_the_process_is_told_of_too() -> None:
    seen = in_process(Metrics(Repository(), ready=lambda: True))
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
    seen = in_process(metrics)
    assert seen("visionpool_gpu_info", device="cuda:0", name="NVIDIA A100", bus=A100) == 1
    assert seen("visionpool_gpu_utilization_ratio", device="cuda:0") == 0.37
    kinds = {"total": 80, "used": 5, "own": 3}
    assert {kind: seen(f"visionpool_gpu_memory_{kind}_bytes", device="cuda:0") / GIB for kind in kinds} == kinds
    nvml.fails["nvmlDeviceGetUtilizationRates"] = FakeNvml.NVMLError_NotSupported()
    assert (
        in_process(metrics).value("visionpool_gpu_utilization_ratio", device="cuda:0") is None
    )  # what is not told is not 0
    metrics.close()
    assert nvml.open == 0


def test_nothing_of_nvidias_is_opened_where_no_model_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> dict[str, str]:
        raise AssertionError("it was")

    monkeypatch.setattr(gpus, "gpu_buses", opened)
    assert "visionpool_gpu_info" in in_process(Metrics(Repository(), ready=lambda: True)).families()
