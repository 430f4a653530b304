"""Both packages for NVIDIA's driver on a real device: copies, events, kernels, graphs, memory that is given back."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from visionpool_server.cuda.compiler import compile_kernels, find_nvrtc
from visionpool_server.cuda.driver import Driver
from visionpool_server.cuda.errors import CudaError, OutOfMemory
from visionpool_server.cuda.gpu import Gpu, Kernel
from visionpool_server.cuda.pictures import KERNEL, PictureBatch, kernel_image
from visionpool_server.imaging.recipe import Arithmetic

from tests.gpu.stand_in import STAND_IN

MEGABYTE = 1 << 20
SPIN = r"""
extern "C" __global__ void spin(long long cycles, unsigned int* done) {
    long long start = clock64();
    while (clock64() - start < cycles) { }
    if (threadIdx.x == 0) atomicAdd(done, 1u);
}
extern "C" __global__ void add(float* x, const float* y, float factor, int count) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) x[index] += factor * y[index];
}
"""


@pytest.fixture
def kernels(gpu: Gpu, real: None) -> dict[str, Kernel]:
    try:
        find_nvrtc()
    except Exception as error:
        pytest.skip(f"no NVRTC: {error}")
    major, minor = gpu.properties.capability
    module = gpu.module(compile_kernels(SPIN, f"sm_{major}{minor}"))
    return {name: module.kernel(name) for name in ("spin", "add")}


def test_properties_are_those_of_a_device(driver: Driver) -> None:
    there = driver.properties(0)
    assert there.name and there.capability >= (5, 0) and there.multiprocessors > 0
    assert there.bus.count(":") == 2 and there.bus == there.bus.lower()
    gpu = Gpu(driver, 0)
    free, total = gpu.memory()
    gpu.close()
    assert 0 < free <= total
    assert abs(total - there.memory) < there.memory / 10


def test_bytes_go_up_and_come_back(gpu: Gpu) -> None:
    sent = np.random.default_rng(1).integers(0, 256, 3 * MEGABYTE + 5).astype(np.uint8)
    stream, buffer = gpu.stream(), gpu.buffer(sent.nbytes)
    host, back = gpu.pinned(sent.nbytes), gpu.pinned(sent.nbytes)
    host.bytes[:] = sent
    buffer.upload(host, sent.nbytes, stream)
    buffer.download(back, sent.nbytes, stream)
    stream.synchronize()
    np.testing.assert_array_equal(back.bytes, sent)


def test_events_order_streams_and_tell_the_time(gpu: Gpu) -> None:
    one, other = gpu.stream(), gpu.stream()
    size = MEGABYTE if STAND_IN else 32 * MEGABYTE
    host, back, buffer = gpu.pinned(size), gpu.pinned(size), gpu.buffer(size)
    start, copied, end = (gpu.event(timing=True) for _ in range(3))
    for turn in range(1, 6):
        host.bytes[:] = turn
        start.record(one)
        buffer.upload(host, size, one)
        copied.record(one)
        other.wait(copied)
        buffer.download(back, size, other)
        end.record(other)
        end.synchronize()
        assert (back.bytes == turn).all()
        assert 0 < copied.milliseconds_since(start) < end.milliseconds_since(start)


def test_the_shipped_ptx_loads_and_its_kernel_runs(gpu: Gpu) -> None:
    module = gpu.module(kernel_image())
    module.kernel(KERNEL)
    with pytest.raises(CudaError) as raised:
        module.kernel("no_such_kernel")
    assert raised.value.status == "CUDA_ERROR_NOT_FOUND"
    module.close()
    batch, stream, target = (
        PictureBatch(gpu, Arithmetic(1.0), "NHWC", "float32"),
        gpu.stream(),
        gpu.buffer(4 * 4 * 5 * 3),
    )
    pixels = np.arange(60, dtype=np.uint8).reshape(1, 4, 5, 3)
    host = gpu.pinned(4 * pixels.size)
    batch.load(pixels)
    batch.upload(stream)
    batch.run(target.address, stream)
    target.download(host, host.size, stream)
    stream.synchronize()
    np.testing.assert_array_equal(host.bytes.view(np.float32).reshape(pixels.shape), pixels)
    batch.close()


def test_what_is_no_kernel_is_refused(gpu: Gpu, real: None) -> None:
    with pytest.raises(CudaError) as raised:
        gpu.module(b"this is no PTX\0")
    assert "PTX" in raised.value.status or "IMAGE" in raised.value.status
    assert not raised.value.sticky


def test_arguments_arrive_as_the_kernel_declares_them(gpu: Gpu, kernels: dict[str, Kernel]) -> None:
    count = 10_001
    x, y = (np.random.default_rng(seed).random(count, np.float32) for seed in range(2))
    stream, host = gpu.stream(), gpu.pinned(8 * count)
    buffers = [gpu.buffer(4 * count) for _ in range(2)]
    for buffer, array in zip(buffers, (x, y), strict=True):
        host.bytes[: 4 * count] = array.view(np.uint8)
        buffer.upload(host, 4 * count, stream)
        stream.synchronize()
    arguments: list[np.generic] = [
        np.uint64(buffers[0].address),
        np.uint64(buffers[1].address),
        np.float32(2.5),
        np.int32(count),
    ]
    kernels["add"].launch((-(-count // 256), 1, 1), (256, 1, 1), arguments, stream)
    buffers[0].download(host, 4 * count, stream)
    stream.synchronize()
    np.testing.assert_allclose(host.bytes[: 4 * count].view(np.float32), x + np.float32(2.5) * y, rtol=1e-6)


def test_streams_run_side_by_side(gpu: Gpu, kernels: dict[str, Kernel]) -> None:
    """A kernel that spins does not keep a copy on another stream waiting."""
    one, other = gpu.stream(), gpu.stream()
    done, host, buffer = gpu.buffer(4), gpu.pinned(MEGABYTE), gpu.buffer(MEGABYTE)
    zero, copied, spun = (gpu.event(timing=True) for _ in range(3))
    buffer.upload(host, MEGABYTE, other)
    other.synchronize()
    zero.record(one)
    kernels["spin"].launch((1, 1, 1), (1, 1, 1), [np.int64(200_000_000), np.uint64(done.address)], one)
    spun.record(one)
    buffer.upload(host, MEGABYTE, other)
    copied.record(other)
    for event in (copied, spun):
        event.synchronize()
    assert copied.milliseconds_since(zero) < spun.milliseconds_since(zero)


def test_a_captured_stream_is_replayed(gpu: Gpu) -> None:
    if not gpu.driver.graphs:
        pytest.skip(f"{gpu.driver.name} has no graphs")
    stream, size = gpu.stream(), 4096
    host, back, buffer = gpu.pinned(size), gpu.pinned(size), gpu.buffer(size)
    with gpu.captured(stream) as made:
        buffer.upload(host, size, stream)
        buffer.download(back, size, stream)
    graph = made()
    for turn in (3, 4, 5):
        host.bytes[:] = turn
        graph.launch(stream)
        stream.synchronize()
        assert (back.bytes == turn).all()
    graph.close()


def test_a_failed_capture_leaves_the_stream_usable(gpu: Gpu) -> None:
    if not gpu.driver.graphs:
        pytest.skip(f"{gpu.driver.name} has no graphs")
    stream, host, buffer = gpu.stream(), gpu.pinned(64), gpu.buffer(64)
    with pytest.raises(CudaError), gpu.captured(stream):
        stream.synchronize()
    host.bytes[:] = 7
    buffer.upload(host, 64, stream)
    stream.synchronize()


def test_more_than_there_is_is_out_of_memory_and_harms_nothing(gpu: Gpu) -> None:
    with pytest.raises(OutOfMemory) as raised:
        gpu.buffer(gpu.memory()[1] * 2)
    assert not raised.value.sticky
    gpu.buffer(MEGABYTE).close()


def test_close_gives_back_what_nobody_closed(driver: Driver) -> None:
    watch = Gpu(driver, 0)
    Gpu(driver, 0).close()
    before = watch.memory()[0]
    for _ in range(3):
        gpu = Gpu(driver, 0)
        with gpu.current():
            held = [gpu.buffer(64 * MEGABYTE), gpu.pinned(MEGABYTE), gpu.stream(), gpu.event()]
            assert watch.memory()[0] <= before - 64 * MEGABYTE
        gpu.close()
        assert before - watch.memory()[0] <= 4 * MEGABYTE
        with pytest.raises(ValueError, match="closed"):
            held[0].handle  # noqa: B018  asking raises
    watch.close()


def test_threads_each_make_the_device_their_own(driver: Driver) -> None:
    gpu = Gpu(driver, 0)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            sent = np.random.default_rng(seed).integers(0, 256, 65536).astype(np.uint8)
            with gpu.current():
                stream, host, buffer = gpu.stream(), gpu.pinned(65536), gpu.buffer(65536)
                for _ in range(20):
                    host.bytes[:] = sent
                    buffer.upload(host, 65536, stream)
                    stream.synchronize()
                    host.bytes[:] = 0
                    buffer.download(host, 65536, stream)
                    stream.synchronize()
                    np.testing.assert_array_equal(host.bytes, sent)
                for held in (buffer, host, stream):
                    held.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gpu.close()
    assert not failures, failures[0]
