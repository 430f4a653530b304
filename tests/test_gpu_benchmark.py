"""benchmarks.gpu runs through: every section on stand-ins for the driver and TensorRT, with a tiny ResNet; and without a GPU.

What it prints here are no measurements. What is proved: that no section has a mistake in it that a lent machine would find first.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
from visionpool_server.backends import Precision
from visionpool_server.backends.onnxruntime.provider import Provider
from visionpool_server.backends.tensorrt import backend, deserialized, devices
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.profiles import Profile
from visionpool_server.cuda.driver import open_driver
from visionpool_server.cuda.errors import CudaError, NoDriver
from visionpool_server.cuda.gpu import Gpu

from benchmarks import gpu as benchmark
from benchmarks.on_gpu import ask
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.models import Models
from benchmarks.on_gpu.report import NotRun, OutOfTime, Report, failing, shown
from benchmarks.on_gpu.timeline import TimedDriver
from benchmarks.processes import Addresses, visionpool
from tests import tiny_models
from tests.cpu_kernels import CpuKernel, compiled_kernel
from tests.fake_tensorrt import FakeTensorRt, make_plan
from tests.ort_device import OrtDriver
from tests.test_tensorrt_serving import serving

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> CpuKernel:
    return compiled_kernel(tmp_path_factory.mktemp("kernel"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all sections, as in a run."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def driver(kernel: CpuKernel) -> Iterator[OrtDriver]:
    driver = OrtDriver(kernel, seed=2)
    yield driver
    gc.collect()
    driver.assert_clean()


@pytest.fixture
def machine(driver: OrtDriver, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    trt = FakeTensorRt(driver)
    monkeypatch.setattr(devices, "open_driver", lambda: driver)
    for module in (backend, deserialized):
        monkeypatch.setattr(module, "find_api", lambda prefer=None: trt.api())

    def plan(api: Api, onnx: Path, profiles: Sequence[Profile], precision: Precision | None, gpu: Gpu) -> bytes:
        return make_plan(onnx.read_bytes(), [dict(each) for each in profiles])

    @contextmanager
    def serve(models: Path) -> Iterator[Addresses]:
        if models.parent.name == "trt":  # in this process, where the fakes are
            with serving(models) as url:
                yield Addresses(http=url.removeprefix("http://"), grpc="")
        else:
            with visionpool(models) as addresses:
                yield addresses

    return Machine(
        Models(folder, tiny_models.yolov5(folder / "yolov5n.onnx"), width=4),
        seconds=0.05,
        open_driver=lambda name: driver,
        find_api=trt.api,
        plan=plan,
        serve=serve,
        provider=Provider,
        copied=1 << 16,
        picture=(54, 40),
        pictures=(1, 2),
        batches=(1, 2),
        batch=(1, 2, 4),
        concurrency=(1, 2),
    )


def told(name: str, machine: Machine) -> str:
    lines: list[str] = []
    benchmark.run_section(name, machine, Report(lines.append))
    text = "".join(lines)
    assert "failed" not in text, text
    return text


def rows(text: str) -> list[list[str]]:
    """The cells of all rows that are no heads."""
    found = [line for line in text.splitlines() if line.startswith("| ") and "--:" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_both_packages_for_the_driver_are_measured(machine: Machine) -> None:
    text = told("drivers", machine)
    found = {row[0]: row for row in rows(text)}
    assert {"cuda-bindings", "pycuda"} <= found.keys()
    for name in machine.drivers:
        assert all(float(cell.replace(",", "")) > 0 for cell in found[name][1:9]), found[name]
        assert found[name][9] == "0.0 MB"


def test_pictures_are_compared_number_by_number(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.on_gpu.pictures._PICTURES", 6)
    text = told("pictures", machine)
    speeds = [row for row in rows(text) if len(row) == 9 and row[1] in ("1", "2")]
    assert len(speeds) == 4
    for row in rows(text)[-3:]:
        if row[1].isdecimal():  # the kernel's own source on the CPU: bilinear as OpenCV does it, to one step
            assert int(row[1]) > 900_000 and float(row[3]) <= 1.001


def test_overlap_is_shown_by_a_timeline(machine: Machine) -> None:
    text = told("overlap", machine)
    assert "not run" not in text
    lines = [row for row in rows(text) if len(row) == 5 and " .. " in row[1]]
    assert len(lines) == 12  # by hand and TensorRT
    assert [row[4] for row in lines].count("yes") == 10
    for row in lines:
        for cell in row[1:4]:
            begin, end = map(float, cell.split(" .. "))
            assert begin <= end
    assert {"CUDA graphs on", "CUDA graphs off", "one context"} <= {row[0] for row in rows(text)}


def test_onnxruntime_is_served_and_asked_every_way(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with real servers."""
    monkeypatch.setattr("benchmarks.on_gpu.onnx_runtime._DETECTOR", ("images", (3, tiny_models.SIZE, tiny_models.SIZE)))
    text = told("onnxruntime", machine)
    asked = [row for row in rows(text) if len(row) == 7 and row[6].isdecimal()]
    ways = {row[0] for row in asked}
    assert {"pictures over HTTP", "tensors, KServe over HTTP", "tensors, KServe over gRPC"} <= ways
    assert "prepare_on: cpu, pictures over HTTP" in ways or "not run" in text
    for row in asked:
        assert float(row[2].replace(",", "")) > 0 and row[6] == "0", row


def test_tensorrt_is_measured_part_by_part(machine: Machine, driver: OrtDriver) -> None:
    text = told("tensorrt", machine)
    assert "not run" not in text
    found = rows(text)
    assert [row[0] for row in found if len(row) == 5 and row[0] in "1234"][:4] == ["1", "2", "3", "4"]
    accuracy = {row[0]: float(row[1]) for row in found if len(row) == 3 and "%" in row[2]}
    assert len(accuracy) == 3 and max(accuracy.values()) < 1e-4  # the fake's f16 is f32
    graphs = [row for row in found if len(row) == 5 and row[4] == "yes"]
    assert len(graphs) == 2
    pool = [row for row in found if len(row) == 4 and row[1] in ("1", "2") and "**" in row[3]]
    assert len(pool) == 4
    asked = [row for row in found if len(row) == 7 and row[6].isdecimal()]
    assert {row[0] for row in asked} == {"pictures over HTTP", "tensors, KServe over HTTP"}
    assert all(row[6] == "0" for row in asked)
    driver.assert_no_mistakes()


def test_what_is_missing_ends_a_part_and_no_other() -> None:
    said: list[str] = []
    report = Report(said.append)

    def missing() -> None:
        raise NotRun("no weights")

    def package() -> None:
        import_module("no_such_package")

    def late() -> None:
        Report(said.append, until=0.0).check_time()

    def broken() -> None:
        raise CudaError("cuInit", "CUDA_ERROR_UNKNOWN")

    for part in (missing, package, late, broken):
        failing(part, report, NoDriver)
    text = "".join(said)
    assert "not run: no weights" in text
    assert "not run: the Python package no_such_package is not installed" in text
    assert "ended here: no time left" in text
    assert "failed: CudaError: cuInit: CUDA_ERROR_UNKNOWN" in text
    with pytest.raises(OutOfTime):
        Report(said.append, until=0.0).check_time()


def test_a_section_whose_process_dies_is_told_of(tmp_path: Path) -> None:
    said: list[str] = []
    benchmark.in_a_process("drivers", ["--no-such-flag"], 60, said.append)
    assert "failed: the section's process ended with 2" in "".join(said)


def test_a_section_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    said: list[str] = []
    benchmark.in_a_process("drivers", ["--folder", str(tmp_path)], 0.05, said.append)
    assert "failed: the section's process ended with -9 (killed)" in "".join(said)


def test_numbers_are_shown_with_three_digits() -> None:
    assert [shown(value) for value in (3, 0.0, 0.00012, 1.23456, 123.456, 123456.7)] == [
        *("3", "0.000", "0.00012", "1.235", "123.5", "123,457")
    ]


def test_a_timeline_holds_nothing_in_the_end(driver: OrtDriver) -> None:
    timed = TimedDriver(driver)
    gpu = Gpu(timed.as_driver(), 0)
    with gpu.current():
        one, other = gpu.stream(), gpu.stream()
        host, buffer, event = gpu.pinned(64), gpu.buffer(64), gpu.event()
        host.bytes[:] = 5
        timed.begin(one.handle)
        buffer.upload(host, 64, one)
        event.record(one)
        other.wait(event)
        event.record(other)
        for stream in (one, other):
            stream.synchronize()
        upload, compute = timed.spans()
        assert (upload.kind, compute.kind) == ("upload", "compute") and upload.end <= compute.end
        timed.forget()
    gpu.close()


def test_requests_are_what_a_server_takes(machine: Machine) -> None:
    import numpy as np
    from tritonclient.grpc import service_pb2

    array = np.ones((1, 2), np.float32)
    sent = ask.kserve_http("m", "x", array, "y")
    head, _, body = sent.partition(b"\r\n\r\n")
    length = int(re.search(rb"Content-Length: (\d+)$", head)[1])  # type: ignore[index]
    assert len(body) == length and body.endswith(array.tobytes())
    message = service_pb2.ModelInferRequest.FromString(ask.kserve_grpc("m", "x", array))
    assert message.raw_input_contents[0] == array.tobytes() and list(message.inputs[0].shape) == [1, 2]


def test_without_a_gpu_every_section_says_so_and_the_command_succeeds(tmp_path: Path) -> None:
    try:
        open_driver().device_count()
    except NoDriver:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    out = tmp_path / "gpu.md"
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--limit", "200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert out.read_text() == done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("## ")] == [
        f"## {name}" for name in benchmark.SECTIONS
    ]
    assert done.stdout.count("\nnot run: ") == len(benchmark.SECTIONS)
    assert done.stdout.count("driver") >= len(benchmark.SECTIONS)
