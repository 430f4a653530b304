"""The fake driver itself: what is right passes whatever the order, and each kind of mistake is seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress

import numpy as np
import pytest
from visionpool_server.cuda.errors import CudaError, NoDriver, OutOfMemory
from visionpool_server.cuda.gpu import DeviceBuffer, Event, Gpu, PinnedBuffer, Stream

from tests.fake_cuda import FakeDriver, Fault, Span

SIZE = 64


class Bench:
    """Two streams, two buffers on each side, and an event."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.gpu = Gpu(driver, 0)
        self.current: AbstractContextManager[None] | None = self.gpu.current()
        self.current.__enter__()
        self.first, self.second = self.gpu.stream(), self.gpu.stream()
        self.host, self.back = self.gpu.pinned(SIZE), self.gpu.pinned(SIZE)
        self.device, self.other = self.gpu.buffer(SIZE), self.gpu.buffer(SIZE)
        self.event = self.gpu.event()

    def double(self, stream: Stream, source: DeviceBuffer, target: DeviceBuffer) -> None:
        def run() -> None:
            after = np.frombuffer(np.ctypeslib.as_array(view(source.address)), np.uint8) * 2
            np.ctypeslib.as_array(view(target.address))[:] = after

        read, write = [Span(source.address, SIZE)], [Span(target.address, SIZE)]
        self.driver.enqueue(stream.handle, run, reads=read, writes=write, name="double")

    def close(self) -> None:
        if self.current:
            self.current.__exit__(None, None, None)
        self.current = None
        self.gpu.close()


def view(address: int) -> object:
    import ctypes

    return (ctypes.c_uint8 * SIZE).from_address(address)


@pytest.fixture(params=range(4))
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(FakeDriver(seed=request.param))
    yield made
    with suppress(CudaError):  # of a device that a mistake broke
        made.close()


def test_copies_and_work_in_order_give_what_they_should(bench: Bench) -> None:
    bench.host.bytes[:] = 21
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.event.record(bench.first)
    bench.second.wait(bench.event)
    bench.double(bench.second, bench.device, bench.other)
    bench.other.download(bench.back, SIZE, bench.second)
    bench.second.synchronize()
    assert (bench.back.bytes == 42).all()
    bench.close()
    bench.driver.assert_clean()


def test_the_host_that_does_not_wait_reads_garbage(bench: Bench) -> None:
    bench.host.bytes[:] = 21
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.device.download(bench.back, SIZE, bench.first)
    bench.event.record(bench.first)
    bench.driver.run_pending(bench.first.handle)
    assert (bench.back.bytes == 255).all()
    bench.event.synchronize()
    assert (bench.back.bytes == 21).all()


def forget_a_wait(bench: Bench) -> None:
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.double(bench.second, bench.device, bench.other)


def wait_too_early(bench: Bench) -> None:
    """For an event that is recorded, but before what matters."""
    bench.event.record(bench.first)
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.second.wait(bench.event)
    bench.double(bench.second, bench.device, bench.other)


def overwrite_what_is_read(bench: Bench) -> None:
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.first.synchronize()
    bench.double(bench.second, bench.device, bench.other)
    bench.device.upload(bench.back, SIZE, bench.first)


def change_an_upload(bench: Bench) -> None:
    bench.host.bytes[:] = 1
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.host.bytes[3] = 2
    bench.first.synchronize()


def change_an_upload_that_others_waited_for(bench: Bench) -> None:
    """It happened, and yet nobody could know: another stream was waited for."""
    bench.host.bytes[:] = 1
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.driver.run_pending(bench.first.handle)
    bench.second.synchronize()
    bench.host.bytes[3] = 2
    bench.first.synchronize()


def write_into_a_download(bench: Bench) -> None:
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.device.download(bench.back, SIZE, bench.first)
    bench.back.bytes[3] = 2
    bench.first.synchronize()


def read_what_nobody_wrote(bench: Bench) -> None:
    bench.device.download(bench.back, SIZE, bench.first)


def write_past_the_end(bench: Bench) -> None:
    np.ctypeslib.as_array(view(bench.device.address + 8))[:] = 0


def free_what_is_used(bench: Bench) -> None:
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.device.close()


def free_what_is_copied_from(bench: Bench) -> None:
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.host.close()


def use_what_is_freed(bench: Bench) -> None:
    address = bench.device.address
    bench.device.close()
    bench.driver.enqueue(bench.first.handle, lambda: None, reads=[Span(address, SIZE)])


def run_past_the_end(bench: Bench) -> None:
    bench.driver.enqueue(bench.first.handle, lambda: None, writes=[Span(bench.device.address, SIZE + 1)])


def destroy_a_stream_that_works(bench: Bench) -> None:
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.first.close()


MISTAKES: dict[Callable[[Bench], None], str] = {
    forget_a_wait: "race",
    wait_too_early: "race",
    overwrite_what_is_read: "race",
    change_an_upload: "were changed",
    change_an_upload_that_others_waited_for: "were changed",
    write_into_a_download: "host wrote",
    read_what_nobody_wrote: "nobody wrote",
    write_past_the_end: "past device memory",
    free_what_is_used: "nobody waited",
    free_what_is_copied_from: "nobody waited",
    use_what_is_freed: "freed",
    run_past_the_end: "nobody's",
    destroy_a_stream_that_works: "nobody waited",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_seen(bench: Bench, mistake: Callable[[Bench], None]) -> None:
    bench.driver.assert_no_mistakes()
    mistake(bench)
    with pytest.raises(AssertionError, match=MISTAKES[mistake]):
        bench.driver.assert_no_mistakes()


def copy_too_much(bench: Bench) -> None:
    bench.device.upload(bench.host, SIZE + 1, bench.first)


def free_twice(bench: Bench) -> None:
    address = bench.driver.allocate(8)
    bench.driver.free(address)
    bench.driver.free(address)


def free_as_the_other_kind(bench: Bench) -> None:
    bench.driver.free(bench.host.address)


def use_a_closed_event(bench: Bench) -> None:
    event = bench.event.handle
    bench.event.close()
    bench.driver.record(event, bench.first.handle)


def use_a_closed_stream(bench: Bench) -> None:
    stream = bench.first.handle
    bench.first.close()
    bench.driver.record(bench.event.handle, stream)


def use_without_a_context(bench: Bench) -> None:
    raised: list[Exception] = []

    def elsewhere() -> None:
        try:
            bench.first.synchronize()
        except CudaError as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    raise raised[0]


@pytest.mark.parametrize(
    "mistake",
    [copy_too_much, free_twice, free_as_the_other_kind, use_a_closed_event, use_a_closed_stream, use_without_a_context],
    ids=lambda mistake: mistake.__name__,
)
def test_a_call_that_cannot_be_right_raises_and_is_remembered(bench: Bench, mistake: Callable[[Bench], None]) -> None:
    with pytest.raises(CudaError):
        mistake(bench)
    assert len(bench.driver.mistakes) == 1


def test_what_is_left_behind_is_seen() -> None:
    driver = FakeDriver()
    gpu = Gpu(driver, 0)
    with gpu.current():
        gpu.buffer(3)
    with pytest.raises(AssertionError, match="device"):
        driver.assert_clean()
    gpu.close()
    driver.assert_clean()


def test_the_nth_call_fails_once_and_has_done_nothing() -> None:
    driver = FakeDriver()
    gpu = Gpu(driver, 0)
    driver.fail("allocate", at=2, status="CUDA_ERROR_OUT_OF_MEMORY")
    with gpu.current():
        gpu.buffer(8)
        with pytest.raises(CudaError, match="OUT_OF_MEMORY"):
            gpu.buffer(8)
        gpu.buffer(8)
    assert driver.held()["device"] == 2 and driver.failed == ["allocate"]
    gpu.close()
    driver.assert_clean()


def test_a_fault_on_the_device_stays() -> None:
    driver = FakeDriver()
    gpu = Gpu(driver, 0)

    def fault() -> None:
        raise Fault

    with gpu.current():
        stream = gpu.stream()
        driver.enqueue(stream.handle, fault)
        for _ in range(2):
            with pytest.raises(CudaError, match="ILLEGAL_ADDRESS"):
                stream.synchronize()
        with pytest.raises(CudaError, match="ILLEGAL_ADDRESS"):
            gpu.buffer(1)
    driver.assert_no_mistakes()


def test_memory_is_bounded_and_devices_are_counted() -> None:
    driver = FakeDriver(devices=2, memory=100)
    with pytest.raises(NoDriver, match="cuda:2"):
        Gpu(driver, 2)
    gpu = Gpu(driver, 1)
    with gpu.current():
        gpu.buffer(60)
        with pytest.raises(OutOfMemory):
            gpu.buffer(60)
    assert gpu.memory() == (40, 100)
    gpu.close()
    driver.assert_clean()
    with pytest.raises(NoDriver):
        FakeDriver(there=False).device_count()


def test_what_is_captured_runs_only_when_launched_and_then_each_time(bench: Bench) -> None:
    bench.host.bytes[:] = 3
    with bench.gpu.captured(bench.first) as graph:
        bench.device.upload(bench.host, SIZE, bench.first)
        bench.double(bench.first, bench.device, bench.other)
        bench.other.download(bench.back, SIZE, bench.first)
    bench.first.synchronize()
    for value in (3, 5):
        bench.host.bytes[:] = value
        graph().launch(bench.first)
        bench.first.synchronize()
        assert (bench.back.bytes == value * 2).all()
    bench.driver.assert_no_mistakes()


def test_waiting_or_allocating_spoils_a_capture(bench: Bench) -> None:
    for spoil in (bench.first.synchronize, lambda: bench.gpu.buffer(8)):
        bench.driver.begin_capture(bench.first.handle)
        with pytest.raises(CudaError, match="CAPTURE_UNSUPPORTED"):
            spoil()
        with pytest.raises(CudaError, match="INVALIDATED"):
            bench.driver.end_capture(bench.first.handle)
    bench.driver.assert_no_mistakes()


def test_a_kernel_is_called_with_its_arguments(bench: Bench) -> None:
    seen: list[object] = []
    bench.driver.kernel("add", lambda grid, block, arguments: seen.append((grid, block, *arguments)))
    kernel = bench.gpu.module(b"ptx").kernel("add")
    kernel.launch((2, 1, 1), (32, 1, 1), [np.uint64(bench.device.address), np.int32(3)], bench.first)
    assert not seen
    bench.first.synchronize()
    assert seen == [((2, 1, 1), (32, 1, 1), bench.device.address, 3)]
    with pytest.raises(CudaError, match="NOT_FOUND"):
        bench.gpu.module(b"ptx").kernel("subtract")


def test_what_may_overlap_is_told_apart_from_what_may_not(bench: Bench) -> None:
    bench.device.upload(bench.host, SIZE, bench.first)
    bench.event.record(bench.first)
    bench.second.wait(bench.event)
    bench.double(bench.second, bench.device, bench.other)
    uploaded, doubled = (next(w for w in bench.driver.history if w.name == name) for name in ("upload", "double"))
    more: tuple[PinnedBuffer, Event] = (bench.gpu.pinned(8), bench.gpu.event())
    bench.gpu.buffer(8).upload(more[0], 8, bench.first)
    assert doubled.follows(uploaded) and not uploaded.follows(doubled)
    beside = bench.driver.history[-1]
    assert beside.follows(uploaded) and not beside.follows(doubled) and beside.begin_ms == doubled.begin_ms
