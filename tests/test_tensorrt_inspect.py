"""`visionpool inspect` with the tensorrt backend: its layers and their times on the fakes, and what it tells without a driver."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from onnx import TensorProto
from visionpool_server.backends import LoadOptions, Source
from visionpool_server.backends.onnxruntime import OnnxRuntimeBackend
from visionpool_server.backends.tensorrt import backend, deserialized, devices, layers, survey
from visionpool_server.backends.tensorrt.plans import write_plan
from visionpool_server.backends.tensorrt.survey import TensorRtSurvey
from visionpool_server.cli import app
from visionpool_server.cuda.driver import open_driver
from visionpool_server.cuda.errors import NoDriver
from visionpool_server.cuda.pictures import KERNEL
from visionpool_server.inspection import gpus
from visionpool_server.inspection.inspector import inspect_model
from visionpool_server.models.files import find_models

from tests import tensorrt_models, tiny_models
from tests.cpu_kernels import picture_spans
from tests.fake_cuda import FakeDriver
from tests.fake_tensorrt import FakeTensorRt, make_plan
from tests.tensorrt_bench import sums
from tests.tiny_models import Graph

LABELS = ["one", "two", "three"]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """In the place of NVIDIA's, with a TensorRT of its kind. What pictures become is of no matter here."""
    driver = FakeDriver(devices=2, seed=4)
    driver.kernel(KERNEL, lambda grid, block, arguments: None, picture_spans)
    trt = FakeTensorRt(driver)
    for module in (devices, gpus):
        monkeypatch.setattr(module, "open_driver", lambda: driver)
    for user in (backend, deserialized, survey):
        monkeypatch.setattr(user, "find_api", lambda prefer=None: trt.api())
    yield driver
    driver.assert_clean()


@pytest.fixture
def without_driver() -> None:
    try:
        count = open_driver().device_count()
    except NoDriver:
        return
    pytest.skip(f"this machine has an NVIDIA driver, with {count} devices")


def write(folder: Path, *, detailed: bool, sizes: tuple[int, ...] = ()) -> Path:
    """A detector as a plan for the fakes."""
    onnx = tiny_models.yolov5(folder / "kept" / "model.onnx")
    side = tiny_models.SIZE
    shapes = {"images": tuple((rows, 3, side, side) for rows in (sizes or (1, 4, 8)))}
    said = {"family": "yolov5", "labels": LABELS, "runtime": {"backend": "tensorrt", "device": "cuda:0"}}
    if sizes:
        said["batching"] = {"sizes": [sizes[0]]}
    (folder / "gpu").mkdir()
    (folder / "gpu" / "model.yaml").write_text(yaml.safe_dump(said))
    plan = make_plan(onnx.read_bytes(), [shapes], detailed=detailed)  # type: ignore[list-item]  # three of each
    write_plan(folder / "gpu" / "model.plan", plan, OnnxRuntimeBackend().read(Source(onnx)))
    return folder / "gpu"


def inspected(path: Path, **asked: Any) -> dict[str, Any]:
    (files,) = find_models(path)
    report: dict[str, Any] = json.loads(inspect_model(files, **asked).json())
    return report


def printed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app(["inspect", *map(str, arguments)], standalone_mode=False)
    return out.getvalue()


def test_layers_are_told_by_kind_and_type_with_their_times(driver: FakeDriver, tmp_path: Path) -> None:
    folder = write(tmp_path, detailed=True)
    report = inspected(folder, run_seconds=0.1)
    assert report["identity"]["family"] == "yolov5" and report["model"]["backend"] == "tensorrt"
    run = report["run"]
    assert run["device"] == "cuda:0" and run["throughput"] > 0 and run["contexts"] == 2
    kinds = Counter(sums_of(tmp_path / "kept" / "model.onnx"))
    assert {timing["kind"]: timing["count"] for timing in run["timings"]} == kinds
    for timing in run["timings"]:
        assert (timing["device"], timing["precision"]) == ("cuda:0", "f32")
        assert timing["ms"] == pytest.approx(0.5 * kinds[timing["kind"]])  # as the fake's profiler has it
    assert run["operators_ms"] == pytest.approx(0.5 * kinds.total())


def sums_of(path: Path) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load(str(path)).graph.node]


def test_names_stand_for_kinds_where_the_plan_tells_no_more(driver: FakeDriver, tmp_path: Path) -> None:
    folder = write(tmp_path, detailed=False)
    timings = inspected(folder, run_seconds=0.05)["run"]["timings"]
    assert len(timings) == len(sums_of(tmp_path / "kept" / "model.onnx"))
    assert all(timing["count"] == 1 and timing["precision"] is None for timing in timings)


def test_a_plan_of_one_batch_size_is_profiled_with_a_full_batch(driver: FakeDriver, tmp_path: Path) -> None:
    report = inspected(write(tmp_path, detailed=True, sizes=(4, 4, 4)), run_seconds=0.05)
    assert report["run"]["batch"] == 4 and report["run"]["timings"]


def test_devices_are_those_of_the_driver(driver: FakeDriver, tmp_path: Path) -> None:
    report = inspected(write(tmp_path, detailed=True), device="cuda:1")
    assert [entry["device"] for entry in report["devices"]] == ["cuda:1", "cuda:0"]
    for entry, name in zip(report["devices"], ("Fake 1", "Fake 0"), strict=True):
        assert entry["available"]
        assert entry["full_name"] == f"{name}, compute capability 9.0, 8.0 GiB"
        assert entry["note"] == "a plan shows its layers when it is run"
    assert any("cuda:1 is Fake 1" in note for note in report["notes"])
    assert report["run"] is None


def test_a_device_that_is_not_there_is_said(driver: FakeDriver, tmp_path: Path) -> None:
    report = inspected(write(tmp_path, detailed=True), device="cuda:7", run_seconds=0.05)
    assert (report["devices"][0]["device"], report["devices"][0]["available"]) == ("cuda:7", False)
    assert "no device cuda:7" in report["devices"][0]["note"]
    assert any(note.startswith("not measured: there is no device cuda:7") for note in report["notes"])


def test_the_command_prints_layers_their_types_and_times(
    driver: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = printed(monkeypatch, write(tmp_path, detailed=True), "--run", "--seconds", 0.1)
    for words in ("Measured on cuda:0", "executed as", " in ", "f32", "Conv", "cuda:0", "Fake 0"):
        assert words in told
    assert max(map(len, told.splitlines())) <= 100


def test_a_plan_that_says_nothing_of_itself_is_asked(driver: FakeDriver, tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(sums().plan)
    said = {"task": "tensor", "runtime": {"backend": "tensorrt", "device": "cuda:0"}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(said))
    report = inspected(tmp_path, run_seconds=0.05)
    assert [spec["name"] for spec in report["inputs"]] == ["x", "y"]
    assert report["cost"] is None and report["run"]["throughput"] > 0
    assert {timing["kind"] for timing in report["run"]["timings"]} == set(sums().kinds)


@pytest.mark.usefixtures("without_driver")
def test_without_a_driver_it_says_so_and_tells_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = tiny_models.yolov8(tmp_path / "tiny.onnx")
    report = inspected(onnx, device="cuda:0", backend="tensorrt", run_seconds=0.1)
    assert report["identity"]["family"] == "yolov8" and report["cost"]["flops"] > 0
    (gpu,) = report["devices"]
    assert (gpu["device"], gpu["available"]) == ("cuda:0", False)
    assert "driver" in gpu["note"]
    assert report["run"] is None
    assert any(note.startswith("not measured: ") and "driver" in note for note in report["notes"])
    assert "cpu_operators" not in report["placement"]["note"]
    told = printed(monkeypatch, onnx, "--device", "cuda:0", "--backend", "tensorrt", "--run")
    assert "Cost of one inference" in told and "driver" in told


@pytest.mark.usefixtures("without_driver")
def test_without_a_driver_a_plan_tells_what_is_written_in_it(tmp_path: Path) -> None:
    report = inspected(write(tmp_path, detailed=True), run_seconds=0.1)
    assert report["inputs"][0]["name"] == "images" and report["model"]["bytes"] > 0
    assert report["run"] is None and report["cost"] is None


def lacking(path: Path) -> Path:
    """TensorRT has layers for the first and the last of its three nodes."""
    graph = Graph()
    first = graph.add("Relu", graph.input("x", [1, 3, 8, 8]))
    made = graph.add("Det", first)
    graph.add("Neg", made, output="y")
    graph.output("y", [None, None], TensorProto.FLOAT)
    return graph.save(path)


@pytest.mark.usefixtures("without_driver")
def test_what_tensorrt_lacks_is_told_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = LoadOptions(device="cuda:0", options={"library": "tensorrt_rtx"})
    found = TensorRtSurvey(Source(lacking(tmp_path / "m.onnx")), options).support("cuda:0")
    assert (dict(found.supported), dict(found.unsupported)) == ({"Relu": 1, "Neg": 1}, {"Det": 1})
    assert not found.available and "driver" in str(found.note)
    whole = tensorrt_models.scores(tmp_path / "n.onnx")
    taken = TensorRtSurvey(Source(whole), options).support("cuda:0")
    assert Counter(taken.supported) == Counter(sums_of(whole)) and not taken.unsupported


@pytest.mark.parametrize(
    ("entry", "precision"),
    [
        ({"Weights": {"Type": "Int8", "Count": 9}, "Outputs": [{"Format/Datatype": "Float"}]}, "int8"),
        ({"Outputs": [{"Format/Datatype": "Half"}]}, "f16"),
        ({"Outputs": [{"Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}]}, "f16"),
        ({"Outputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}]}, "int8"),
        ({"Outputs": [], "Inputs": [{"Format/Datatype": "Row major linear BF16 format"}]}, "bf16"),
        ({"Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}, None),
        ({"Outputs": [{"Format": "Row major linear", "Datatype": "Float"}]}, "f32"),
        ({"Outputs": "?", "Weights": 3}, None),
        ({}, None),
    ],
)
def test_types_are_read_as_inspectors_write_them(entry: dict[str, Any], precision: str | None) -> None:
    assert layers._layer({"Name": "a", "LayerType": "CaskConvolution", **entry}) == layers.Layer(
        "a", "CaskConvolution", precision
    )
