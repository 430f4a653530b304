"""What a driver and a Gpu have to do where the device fails them: say so, and leave nothing behind."""

from __future__ import annotations

from contextlib import suppress

from visionpool_server.cuda.errors import CudaError
from visionpool_server.cuda.gpu import Gpu

from tests.fake_libcuda.common import ONE, On, increments, refused, step

FREES = (
    *("cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuModuleUnload"),
    *("cuGraphDestroy", "cuGraphExecDestroy"),
)
CALLS = (  # but cuCtxPopCurrent, which fails only where nothing is current
    *("cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceTotalMem", "cuDeviceGetAttribute"),
    *("cuDeviceGetPCIBusId", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxPushCurrent"),
    *("cuMemGetInfo", "cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate", "cuModuleLoadData"),
    *("cuModuleGetFunction", "cuMemcpyHtoDAsync", "cuLaunchKernel", "cuMemcpyDtoHAsync", "cuEventRecord"),
    *("cuStreamWaitEvent", "cuEventSynchronize", "cuStreamSynchronize", "cuEventElapsedTime"),
    *("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch"),
    *FREES,
)


def captures_that_fail(on: On) -> None:
    gpu = on.gpu()
    with gpu.current():
        stream, buffer, host, add = increments(on, gpu)
        with refused(KeyError), gpu.captured(stream):
            step(add, buffer, host, stream)
            raise KeyError
        for forbidden in (stream.synchronize, lambda: gpu.buffer(1)):
            with refused(status="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"), gpu.captured(stream):
                forbidden()
        void = refused(call="cuStreamEndCapture", status="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        with void, gpu.captured(stream), suppress(CudaError):
            gpu.pinned(1)
        for call in ("cuStreamEndCapture", "cuGraphInstantiate"):
            on.fake.fail(call, 1, 46)
            with refused(call=call, status="CUDA_ERROR_DEVICE_UNAVAILABLE"), gpu.captured(stream):
                step(add, buffer, host, stream)
        assert "graph" not in on.fake.left()
        assert "executable" not in on.fake.left()
        step(add, buffer, host, stream)  # the stream is as good as before
        stream.synchronize()
        assert (host.bytes == 2).all()
    gpu.close()


def every_call_fails(on: On) -> None:
    """Each call of a whole life, one after the other, is refused: its own error comes, and nothing is left behind."""
    life(on)
    names = [name for name in CALLS if on.fake.calls(name)]
    counted = {name: on.fake.calls(name) for name in names}
    assert len(names) >= len(CALLS) - (0 if on.driver.graphs else 6), counted
    life(on)
    counted = {name: on.fake.calls(name) - counted[name] for name in names}
    for name in names:
        for nth in range(1, counted[name] + 1):
            on.fake.fail(name, nth, 46)
            silent = name in (FREES if on.driver.name == "pycuda" else ["cuGraphDestroy"])
            try:
                life(on)
            except CudaError as error:
                assert (error.call.removesuffix("Ex"), error.status) == (name, "CUDA_ERROR_DEVICE_UNAVAILABLE"), error
                assert type(error) is CudaError
            else:
                assert silent, f"call {nth} of {name} failed, and nothing was raised"
            assert not on.fake.fault_pending
            left = on.fake.left()
            if name == "cuCtxPushCurrent":  # who cannot make it current can free nothing but the context itself
                left.pop("reclaimed", None)
            assert not left, (name, nth, left)


def life(on: On) -> None:
    """Uses all that a Gpu has, and closes it whatever happens; what is raised first is what comes."""
    gpu = on.gpu()
    try:
        with gpu.current():
            use(on, gpu)
    except CudaError:
        with suppress(CudaError):
            gpu.close()
        raise
    gpu.close()


def use(on: On, gpu: Gpu) -> None:
    stream, buffer, host, add = increments(on, gpu)
    other, start, end = gpu.stream(), gpu.event(timing=True), gpu.event(timing=True)
    gpu.memory()
    start.record(stream)
    step(add, buffer, host, stream)
    end.record(stream)
    other.wait(end)
    end.synchronize()
    other.synchronize()
    assert end.milliseconds_since(start) == 3.0
    if on.driver.graphs:
        with gpu.captured(stream) as graph:
            step(add, buffer, host, stream)
        graph().launch(stream)
        stream.synchronize()
        assert (host.bytes == 4).all()


def lost_device(on: On) -> None:
    """After an illegal address nothing works on the device, not even freeing; the end comes all the same."""
    gpu = on.gpu()
    with gpu.current():
        stream, buffer, host, _ = increments(on, gpu)
        gpu.module(on.image).kernel("wrong_address").launch(ONE, ONE, [], stream)
        with refused(status="CUDA_ERROR_ILLEGAL_ADDRESS", sticky=True):
            stream.synchronize()
        with refused(status="CUDA_ERROR_ILLEGAL_ADDRESS"):
            buffer.upload(host, 1, stream)
    with refused(status="CUDA_ERROR_ILLEGAL_ADDRESS"):
        gpu.close()
    gpu.close()
    assert on.fake.left().keys() == {"reclaimed"}


def left_open_at_exit(on: On) -> None:
    """A process that ends in the middle: quietly."""
    gpu = on.gpu()
    with gpu.current():
        increments(on, gpu)
        gpu.event()
