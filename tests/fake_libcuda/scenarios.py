"""What a driver and a Gpu have to do where nothing goes wrong that the caller did not do wrong."""

from __future__ import annotations

from threading import Barrier, Thread

import numpy as np
from visionpool_server.cuda.driver import open_driver
from visionpool_server.cuda.errors import OutOfMemory
from visionpool_server.cuda.gpu import Gpu

from tests.fake_libcuda.common import ONE, On, increments, refused, run, step


def devices(on: On) -> None:
    assert on.driver.device_count() == 2
    for i in range(2):
        found = on.driver.properties(i)
        assert found.name == f"Fake GPU {i}"
        assert found.capability == (9, i)
        assert (found.memory, found.multiprocessors, found.bus) == (1 << 30, 132, f"0000:3{'ab'[i]}:00.0")
    with refused(call="cuDeviceGet", status="CUDA_ERROR_INVALID_DEVICE"):
        on.driver.properties(2)
    with refused(call="cuDeviceGet", status="CUDA_ERROR_INVALID_DEVICE"):
        on.driver.retain(2)


def contexts_nest(on: On) -> None:
    first, second = on.gpu(0), on.gpu(1)
    with first.current():
        outer = first.stream()
        with second.current():
            second.stream().synchronize()
            with first.current():
                outer.synchronize()
            second.stream().synchronize()
        outer.synchronize()
    with refused(status="CUDA_ERROR_INVALID_CONTEXT"):
        first.event()
    with first.current():
        second.close()
        outer.synchronize()
    first.close()


def contexts_of_threads(on: On) -> None:
    gpu = on.gpu()
    problems: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with refused(status="CUDA_ERROR_INVALID_CONTEXT"):  # current on the other thread is not current here
                gpu.stream()
            with gpu.current():
                gpu.stream().synchronize()
                stream.synchronize()
                event.close()
            assert "current" not in on.fake.left()
        except BaseException as problem:
            problems.append(problem)

    with gpu.current():
        stream, event = gpu.stream(), gpu.event()
        run(elsewhere)
        stream.synchronize()
    run(gpu.close)
    assert not problems, problems


def kept_for_libraries(on: On) -> None:
    """The context is the same one as long as the process lives, however often a Gpu is opened in it, by whichever driver."""
    on.driver.device_count()
    for driver in (on.driver, open_driver(on.driver.name), on.driver):
        Gpu(driver, 0, for_libraries=True).close()
        assert on.fake.left() == {"context": 1}
    assert on.fake.calls("cuDevicePrimaryCtxRetain") == 1 + 3
    assert on.fake.calls("cuDevicePrimaryCtxRelease") == 3
    on.fake.fail("cuDevicePrimaryCtxRetain", 1, 46)
    with refused(call="cuDevicePrimaryCtxRetain", status="CUDA_ERROR_DEVICE_UNAVAILABLE"):
        Gpu(on.driver, 1, for_libraries=True)
    Gpu(on.driver, 1, for_libraries=True).close()  # it is tried again
    assert on.fake.left() == {"context": 2}


def device_twice(on: On) -> None:
    one, other = on.gpu(), on.gpu()
    with one.current():
        one.buffer(10)
    with other.current():
        stream = other.stream()
    one.close()
    assert on.fake.left() == {"context": 1, "stream": 1}
    with other.current():
        stream.synchronize()
        with refused(ValueError):
            one.buffer(10)
    assert on.fake.left() == {"context": 1, "stream": 1}
    other.close()
    again = on.gpu()
    assert again.memory() == (1 << 30, 1 << 30)
    again.close()


def memory(on: On) -> None:
    gpu = on.gpu()
    with gpu.current():
        buffer, pinned, stream = gpu.buffer(1000), gpu.pinned(0), gpu.stream()
        assert gpu.memory() == ((1 << 30) - 1000, 1 << 30)
        assert (pinned.size, pinned.bytes.shape, buffer.size) == (1, (1,), 1000)
        with refused(OutOfMemory, call="cuMemAlloc", status="CUDA_ERROR_OUT_OF_MEMORY"):
            gpu.buffer(1 << 30)
        buffer.close()
        buffer.close()
        assert gpu.memory()[0] == 1 << 30
        pinned.close()
        assert pinned.bytes.size == 0
        with refused(status="CUDA_ERROR_INVALID_HANDLE" if on.driver.name == "pycuda" else "CUDA_ERROR_INVALID_VALUE"):
            on.driver.free(4096)
    gpu.close()
    gpu.close()
    with refused(ValueError):
        buffer.download(pinned, 1, stream)


def copies(on: On) -> None:
    gpu = on.gpu()
    with gpu.current():
        stream, buffer, there, back = gpu.stream(), gpu.buffer(256), gpu.pinned(256), gpu.pinned(256)
        there.bytes[:], back.bytes[:] = np.arange(256), 0
        buffer.upload(there, 200, stream)
        buffer.download(back, 100, stream)
        assert not back.bytes.any()  # nobody has waited
        stream.synchronize()
        assert np.array_equal(back.bytes, np.where(np.arange(256) < 100, np.arange(256), 0))
        with refused(call="cuMemcpyHtoDAsync", status="CUDA_ERROR_INVALID_VALUE"):
            buffer.upload(there, 257, stream)
        with refused(call="cuMemcpyDtoHAsync", status="CUDA_ERROR_INVALID_VALUE"):
            buffer.download(back, 257, stream)
    gpu.close()


def streams_wait(on: On) -> None:
    """One stream uploads, another downloads what it was given: the host waits for the second only."""
    gpu = on.gpu()
    with gpu.current():
        up, down, given, buffer = gpu.stream(), gpu.stream(), gpu.event(), gpu.buffer(8)
        there, back = gpu.pinned(8), gpu.pinned(8)
        there.bytes[:], back.bytes[:] = 7, 0
        given.synchronize()  # never recorded
        buffer.upload(there, 8, up)
        given.record(up)
        down.wait(given)
        buffer.download(back, 8, down)
        down.synchronize()
        assert (back.bytes == 7).all()
        there.bytes[:] = 8
        buffer.upload(there, 8, up)
        given.record(up)
        buffer.download(back, 8, up)
        given.synchronize()
        assert (back.bytes == 7).all()  # what follows the event is not waited for
        up.synchronize()
        assert (back.bytes == 8).all()
    gpu.close()


def events_time(on: On) -> None:
    gpu = on.gpu()
    with gpu.current():
        stream, start, end, plain = gpu.stream(), gpu.event(timing=True), gpu.event(timing=True), gpu.event()
        buffer, host = gpu.buffer(8), gpu.pinned(8)
        with refused(call="cuEventElapsedTime", status="CUDA_ERROR_INVALID_HANDLE"):
            end.milliseconds_since(start)
        start.record(stream)
        for _ in range(3):
            buffer.upload(host, 8, stream)
        end.record(stream)
        plain.record(stream)
        with refused(call="cuEventElapsedTime", status="CUDA_ERROR_NOT_READY"):
            end.milliseconds_since(start)
        end.synchronize()
        assert end.milliseconds_since(start) == 3.0
        with refused(call="cuEventElapsedTime", status="CUDA_ERROR_INVALID_HANDLE"):
            plain.milliseconds_since(start)
    gpu.close()


def kernels(on: On) -> None:
    values: list[np.generic] = [
        *(
            np.uint8(200),
            np.int16(-2),
            np.uint32(1 << 31),
            np.int64(-3),
            np.float32(0.1),
            np.float64(0.1),
            np.bool_(True),
        ),
        *(np.float16(0.1), np.int32(-4), np.uint64(1 << 63), np.float64(-1e300), np.float32(-0.0), np.int8(-5)),
    ]
    gpu = on.gpu()
    with gpu.current():
        stream, buffer, host, module = gpu.stream(), gpu.buffer(8 * 17), gpu.pinned(8 * 17), gpu.module(on.image)
        host.bytes[:] = 0
        buffer.upload(host, 8 * 17, stream)
        arguments = [np.uint64(buffer.address), *values]
        module.kernel("every_type").launch((5, 6, 7), (8, 9, 10), arguments, stream)
        del arguments
        buffer.download(host, 8 * 17, stream)
        module.kernel("nothing").launch(ONE, ONE, [], stream)
        stream.synchronize()
        for i, value in enumerate(values):
            assert host.bytes[8 * i : 8 * i + value.nbytes].tobytes() == value.tobytes(), (i, value)
        assert host.bytes[8 * 13 :].view(np.uint32)[[0, 1, 2, 4, 5, 6]].tolist() == [5, 6, 7, 8, 9, 10]
        with refused(call="cuModuleGetFunction", status="CUDA_ERROR_NOT_FOUND"):
            module.kernel("missing")
        with refused(status="CUDA_ERROR_INVALID_VALUE"):
            module.kernel("nothing").launch(ONE, (1025, 1, 1), [], stream)
        with refused(status="CUDA_ERROR_INVALID_IMAGE"):
            gpu.module(b"no kernels")
        kernel = module.kernel("nothing")
        module.close()
        with refused(ValueError):
            kernel.launch(ONE, ONE, [], stream)
    gpu.close()


def graphs(on: On) -> None:
    gpu = on.gpu()
    with gpu.current():
        stream, buffer, host, add = increments(on, gpu)
        with gpu.captured(stream) as captured:
            step(add, buffer, host, stream)
        graph = captured()
        stream.synchronize()
        assert not host.bytes.any()  # captured is not done
        for _ in range(3):
            graph.launch(stream)
        assert not host.bytes.any()
        stream.synchronize()
        assert (host.bytes == 6).all()
        graph.close()
        with refused(ValueError):
            graph.launch(stream)
    gpu.close()


def no_graphs(on: On) -> None:
    gpu = on.gpu()
    assert not on.driver.graphs
    with gpu.current(), refused(status="CUDA_ERROR_NOT_SUPPORTED"), gpu.captured(gpu.stream()):
        raise AssertionError("the body is not reached")
    gpu.close()


def others_run_while_one_waits(on: On) -> None:
    """A kernel that waits for another Python thread: with the GIL held it would wait in vain, and fail."""
    gpu = on.gpu()
    with gpu.current():
        stream, event, flags, kernel = (
            gpu.stream(),
            gpu.event(),
            gpu.pinned(2),
            gpu.module(on.image).kernel("wait_for_host"),
        )

        def answer() -> None:
            while not flags.bytes[0]:
                pass
            flags.bytes[1] = 1

        for wait in (stream.synchronize, event.synchronize):
            flags.bytes[:] = 0
            kernel.launch(ONE, ONE, [np.uint64(flags.address)], stream)
            event.record(stream)
            other = Thread(target=answer)
            other.start()
            wait()
            other.join()
    gpu.close()


def threads_share_a_device(on: On) -> None:
    gpu = on.gpu()
    start, right = Barrier(4), []

    def work(mine: int) -> None:
        start.wait()
        for i in range(15):
            with gpu.current():
                stream, buffer, host, add = increments(on, gpu)
                for _ in range(i + mine):
                    step(add, buffer, host, stream)
                stream.synchronize()
                right.append((host.bytes == 2 * (i + mine)).all())
                if i % 2:  # the others are left to `close`
                    for thing in (host, buffer, stream):
                        thing.close()

    threads = [Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 60
    assert all(right)
    gpu.close()
