"""Both packages for the driver: how fast copies are, and what a call costs the thread that makes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from visionpool_server.cuda.errors import NoDriver
from visionpool_server.cuda.gpu import Event, Gpu, Stream
from visionpool_server.cuda.pictures import PictureBatch
from visionpool_server.imaging.recipe import Arithmetic

from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.report import Report, per_second

_MANY = 64  # launches between two waits


def run(machine: Machine, report: Report) -> None:
    machine.driver()  # raises NoDriver
    report.table(
        "package", "pinned to device GB/s", "device to pinned GB/s", "both at once GB/s", "copy of 4 bytes µs",
        "launch µs", "launch and wait µs", "graph µs", "event µs", "not freed",
    )  # fmt: skip
    for name in machine.drivers:
        try:
            watch = machine.gpu(machine.driver(name))
        except NoDriver as error:
            report.row(name, f"not run: {error.message}", *[""] * 8)
            continue
        try:
            _one(machine, report, name, watch)
        finally:
            watch.close()


def _one(machine: Machine, report: Report, name: str, watch: Gpu) -> None:
    """`watch`: keeps the context, so that what is left is what was not freed."""
    before, gpu = watch.memory()[0], Gpu(watch.driver, 0)
    try:
        with gpu.current():
            row = _row(machine, gpu, report)
    finally:
        gpu.close()
    report.row(name, *row, f"{(before - watch.memory()[0]) / 1e6:.1f} MB")


def _row(machine: Machine, gpu: Gpu, report: Report) -> list[object]:
    seconds = machine.seconds / 4
    report.check_time(8 * seconds)
    up, down, both = _bandwidth(gpu, machine.copied, seconds)
    stream, small, host = gpu.stream(), gpu.buffer(4), gpu.pinned(4)
    event = gpu.event()
    launch = _launching(gpu)
    copy = _cost(lambda: small.upload(host, 4, stream), stream, seconds)
    alone = _cost(lambda: launch(stream), stream, seconds)

    def launch_and_wait() -> None:
        launch(stream)
        stream.synchronize()

    waited = 1e6 / per_second(launch_and_wait, seconds)
    graph: object = "none"
    if gpu.driver.graphs:
        with gpu.captured(stream) as made:
            launch(stream)
        captured = made()
        graph = _cost(lambda: captured.launch(stream), stream, seconds)
    recorded = _cost(lambda: event.record(stream), stream, seconds)
    stream.synchronize()
    for held in (event, small, host, stream):
        held.close()
    return [up, down, both, copy, alone, waited, graph, recorded]


def _bandwidth(gpu: Gpu, size: int, seconds: float) -> tuple[float, float, float]:
    """GB/s to the device, from it, and the sum of both at once, by events on the device where it is one copy at a time."""
    one, other = gpu.stream(), gpu.stream()
    hosts, buffers = [gpu.pinned(size) for _ in range(2)], [gpu.buffer(size) for _ in range(2)]
    start, end = gpu.event(timing=True), gpu.event(timing=True)
    for host, buffer in zip(hosts, buffers, strict=True):
        host.bytes[:] = 1
        buffer.upload(host, size, one)
    one.synchronize()
    up = _gigabytes(lambda: buffers[0].upload(hosts[0], size, one), one, (start, end), size)
    down = _gigabytes(lambda: buffers[0].download(hosts[0], size, one), one, (start, end), size)

    def crossing() -> None:
        buffers[0].upload(hosts[0], size, one)
        buffers[1].download(hosts[1], size, other)
        one.synchronize()
        other.synchronize()

    both = 2 * size * per_second(crossing, seconds) / 1e9
    for held in (start, end, *buffers, *hosts, one, other):
        held.close()
    return up, down, both


def _gigabytes(copy: Callable[[], None], stream: Stream, events: tuple[Event, Event], size: int) -> float:
    start, end = events
    copies = 8
    start.record(stream)
    for _ in range(copies):
        copy()
    end.record(stream)
    stream.synchronize()
    return copies * size / max(end.milliseconds_since(start), 1e-6) / 1e6


def _cost(call: Callable[[], None], stream: Stream, seconds: float) -> float:
    """Microseconds of the thread for a call that only tells the stream something."""

    def many() -> None:
        for _ in range(_MANY):
            call()
        stream.synchronize()

    return 1e6 / per_second(many, seconds) / _MANY


def _launching(gpu: Gpu) -> Callable[[Stream], None]:
    """Launches the pictures' kernel on a picture of 8x8. What it holds goes with the GPU."""
    batch, target = PictureBatch(gpu, Arithmetic(), "NCHW", "float32"), gpu.buffer(3 * 8 * 8 * 4)
    batch.load(np.zeros((1, 8, 8, 3), np.uint8))
    stream = gpu.stream()
    batch.upload(stream)
    stream.synchronize()
    return lambda where: batch.run(target.address, where)
