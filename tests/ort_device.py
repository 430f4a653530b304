"""ONNX Runtime's device context without a GPU: the CPU provider on a fake driver's memory, which lies in RAM.

What binds, copies, waits and frees is the code that runs on a GPU; only the provider differs, and the name of its memory.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from visionpool_server.backends import LoadOptions, Source
from visionpool_server.backends.onnxruntime.engine import OnnxRuntimeEngine, load_on
from visionpool_server.backends.onnxruntime.provider import Provider
from visionpool_server.cuda.errors import CudaError
from visionpool_server.cuda.gpu import Gpu
from visionpool_server.cuda.pictures import KERNEL

from tests.cpu_kernels import CpuKernel, picture_spans
from tests.fake_cuda import FakeDriver, Span


class OrtDriver(FakeDriver):
    """Also copies from memory that ONNX Runtime has on the device: late, as all is done here, so that it has to be there."""

    def __init__(self, kernel: CpuKernel | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._copies: dict[int, list[int]] = {}  # by stream, each of which is one thread's
        if kernel is not None:
            self.kernel(KERNEL, kernel, picture_spans)

    def download(self, host: int, device: int, size: int, stream: int) -> None:
        if not self.room(device):
            copy = super().allocate(size)
            self._copies.setdefault(stream, []).append(copy)
            self.enqueue(stream, partial(_copy, copy, device, size), writes=[Span(copy, size)])
            device = copy
        super().download(host, device, size, stream)

    def synchronize(self, stream: int) -> None:
        try:
            super().synchronize(stream)
        except CudaError:
            if not self._schedule.broken:  # it was not waited for, and will be
                raise
            with suppress(CudaError):
                self._free_copies(stream)
            raise
        self._free_copies(stream)

    def _free_copies(self, stream: int) -> None:
        with ExitStack() as freeing:
            for copy in self._copies.pop(stream, ()):
                freeing.callback(self.free, copy)


def _copy(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)


def engine_on(driver: FakeDriver, path: Any, **options: Any) -> OnnxRuntimeEngine:
    """As `OnnxRuntimeBackend.load` makes one for device 0."""
    gpu = Gpu(driver, 0)
    try:
        return load_on(Source(path), LoadOptions(device="cuda:0", **options), Provider(), gpu)
    except BaseException:
        gpu.close()
        raise
