"""ONNX Runtime's CUDA provider: the server over HTTP and KServe against the bare session with IO binding, in the same run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from visionpool_server.backends.onnxruntime.provider import Provider
from visionpool_server.backends.onnxruntime.session import open_session

from benchmarks.on_gpu.machine import DEVICE, Machine
from benchmarks.on_gpu.models import CLASSIFIER, INPUT, served, tensors
from benchmarks.on_gpu.overlap import MISSING
from benchmarks.on_gpu.report import Report, failing
from benchmarks.on_gpu.serving import begin_table, best, measure, pictures_request, tensor_requests

_LANES = 2  # threads of the bare loop, as the server has workers
_DETECTOR = "images", (3, 640, 640)


def run(machine: Machine, report: Report) -> None:
    machine.driver()  # raises NoDriver
    provider = machine.provider()  # raises BackendUnavailable
    report.text(f"\nonnxruntime {ort.__version__}, {provider.name}, float32 without TF32")
    for part in (_resnet, _yolov5n):
        failing(lambda part=part: part(machine, report, provider), report, MISSING)  # type: ignore[misc]


def _resnet(machine: Machine, report: Report, provider: Provider) -> None:
    onnx = machine.models.resnet
    bare = _bare(machine, report, provider, onnx, lambda rows: {INPUT: tensors(rows)})
    folder = served(machine.models.folder / "ort" / onnx.stem, _runtime(provider), onnx, **CLASSIFIER)
    report.check_time(30)
    with machine.serve(folder) as server:
        begin_table(report, "the best bare loop")
        measure(machine, report, server, pictures_request(machine, onnx.stem), bare)
        measure(machine, report, server, tensor_requests(machine, onnx.stem), bare)


def _yolov5n(machine: Machine, report: Report, provider: Provider) -> None:
    onnx = machine.models.detector()  # raises NotRun
    name, shape = _DETECTOR
    bare = _bare(machine, report, provider, onnx, lambda rows: {name: np.zeros((rows, *shape), np.float32)})
    begin_table(report, "the best bare loop")
    for where in ("cpu",) if provider.on_cpu else ("cpu", "gpu"):
        runtime = {**_runtime(provider), "prepare_on": where}
        folder = served(machine.models.folder / f"ort-{where}" / "yolov5n", runtime, onnx, input_size=[640, 640])
        report.check_time(30)
        with machine.serve(folder) as server:
            requests = pictures_request(machine, "yolov5n")
            measure(machine, report, server, requests, bare, title=f"prepare_on: {where}, ")


def _runtime(provider: Provider) -> dict[str, Any]:
    return {"backend": "onnxruntime", "device": "CPU" if provider.on_cpu else DEVICE}


def _bare(
    machine: Machine,
    report: Report,
    provider: Provider,
    onnx: Path,
    batch: Callable[[int], Mapping[str, NDArray[Any]]],
) -> float:
    """Pictures a second of the best batch size."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    session = open_session(onnx, settings, provider.tuned({}, dynamic=True))
    report.text(f"\n{onnx.stem}: one session, {_LANES} threads, each with its IO binding, to the device and back")
    report.table("batch", "batches /s", "pictures /s")
    rates = []
    for rows in machine.batch:
        report.check_time(2 * machine.seconds)
        lanes = [_lane(session, provider, batch(rows)) for _ in range(_LANES)]
        rate = together(lanes, machine.seconds)
        report.row(rows, rate, rate * rows)
        rates.append(rate * rows)
    return best(rates)


def _lane(
    session: ort.InferenceSession, provider: Provider, feeds: Mapping[str, NDArray[Any]]
) -> Callable[[], list[NDArray[Any]]]:
    binding = session.io_binding()
    values = {
        name: ort.OrtValue.ortvalue_from_numpy(array, provider.memory, provider.ordinal)
        for name, array in feeds.items()
    }
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for node in session.get_outputs():
        binding.bind_output(node.name, provider.memory, provider.ordinal)

    def step() -> list[NDArray[Any]]:
        for name, array in feeds.items():
            values[name].update_inplace(array)
        session.run_with_iobinding(binding)
        outputs: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return outputs

    return step


def together(steps: Sequence[Callable[[], object]], seconds: float) -> float:
    """How many calls a second, each step on a thread of its own. Raises what one of them raises."""
    counts, failures = [0] * len(steps), []
    ready = threading.Barrier(len(steps) + 1)
    stop = threading.Event()

    def work(index: int) -> None:
        try:
            steps[index]()
            ready.wait()
            while not stop.is_set():
                steps[index]()
                counts[index] += 1
        except Exception as error:
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(steps))]
    for thread in threads:
        thread.start()
    started = time.perf_counter()
    try:
        ready.wait()
        started = time.perf_counter()
        stop.wait(seconds)
    except threading.BrokenBarrierError:
        pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return sum(counts) / (time.perf_counter() - started)
