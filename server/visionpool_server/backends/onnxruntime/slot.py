"""The memory of one batch on its way: inputs in pinned memory and on the device, outputs in pinned memory.

A context has two, so that one batch is taken in while another is computed. Buffers grow to the largest batch that came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from visionpool_server.backends import ImageInput, Tensors
from visionpool_server.cuda.gpu import DeviceBuffer, Gpu, PinnedBuffer, Stream
from visionpool_server.cuda.pictures import PictureBatch
from visionpool_server.imaging.unprepared import NotOnGpu

Buffer = TypeVar("Buffer", DeviceBuffer, PinnedBuffer)


class OnDevice(NamedTuple):
    """A tensor there."""

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Growing(Generic[Buffer]):
    """A buffer as large as the largest that was asked for."""

    def __init__(self, make: Callable[[int], Buffer]) -> None:
        self._make: Callable[[int], Buffer] = make
        self._buffer: Buffer | None = None

    def of(self, size: int) -> Buffer:
        """At least so many bytes, at another address than before where they are more."""
        if self._buffer is None or self._buffer.size < size:
            self.close()
            self._buffer = self._make(size)
        return self._buffer

    def close(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.close()


class Slot:
    """All calls with the device current. `dtype`: of the model's own picture tensor."""

    def __init__(self, gpu: Gpu, stream: Stream, image: ImageInput | None, dtype: str) -> None:
        self._gpu = gpu
        self._stream = stream
        self._image = image
        self._dtype = np.dtype(dtype)
        self._pinned: dict[str, Growing[PinnedBuffer]] = {}
        self._device: dict[str, Growing[DeviceBuffer]] = {}
        self._landing: dict[str, Growing[PinnedBuffer]] = {}
        self._behind = False  # whether the stream was told something that `_ready` says nothing of
        self.inputs: dict[str, OnDevice] = {}
        with ExitStack() as made:
            self._ready = gpu.event()
            made.callback(self._ready.close)
            self._pictures = _picture_batch(gpu, image, dtype) if image else None
            made.pop_all()

    def take(self, batch: Tensors) -> None:
        """Begins to bring a batch to the device. Its arrays are copied before this returns."""
        self.wait()  # a batch whose outputs nobody asked for may have left something
        self._behind = True
        self.inputs = {name: self._taken(name, array) for name, array in batch.items()}
        self._ready.record(self._stream)
        self._behind = False

    def wait(self) -> None:
        """Until all that the stream was told of this slot is done. Raises CudaError for what failed of it."""
        if self._behind:
            self._stream.synchronize()
            self._behind = False
        else:
            self._ready.synchronize()

    def fetch(self, outputs: Mapping[str, OnDevice]) -> dict[str, NDArray[Any]]:
        """Copies outputs from the device. They are views, until the next `fetch`."""
        self._behind = True
        arrays = {name: self._fetched(name, tensor) for name, tensor in outputs.items()}
        self.wait()
        return arrays

    def close(self) -> None:
        """Once the stream is through."""
        with ExitStack() as closing:
            closing.callback(self._ready.close)
            for buffers in (self._device, self._pinned, self._landing):
                for buffer in buffers.values():
                    closing.callback(buffer.close)
            if self._pictures is not None:
                closing.callback(self._pictures.close)

    def _taken(self, name: str, array: NDArray[Any]) -> OnDevice:
        if self._image is None or name != self._image.name:
            return self._uploaded(name, array)
        if self._pictures is None:
            return self._uploaded(name, self._image.arithmetic.apply(array, self._image.layout, self._dtype))
        shape = self._pictures.load(array)
        target = self._on_device(name, math.prod(shape) * self._dtype.itemsize)
        self._pictures.upload(self._stream)
        self._pictures.run(target.address, self._stream)
        return OnDevice(target.address, self._dtype, tuple(shape))

    def _uploaded(self, name: str, array: NDArray[Any]) -> OnDevice:
        pinned = self._pinned.setdefault(name, Growing(self._gpu.pinned)).of(array.nbytes)
        np.copyto(pinned.bytes[: array.nbytes].view(array.dtype).reshape(array.shape), array)
        target = self._on_device(name, array.nbytes)
        if array.nbytes:
            target.upload(pinned, array.nbytes, self._stream)
        return OnDevice(target.address, array.dtype, array.shape)

    def _fetched(self, name: str, tensor: OnDevice) -> NDArray[Any]:
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        pinned = self._landing.setdefault(name, Growing(self._gpu.pinned)).of(size)
        if size:
            self._gpu.driver.download(pinned.address, tensor.address, size, self._stream.handle)
        return pinned.bytes[:size].view(tensor.dtype).reshape(tensor.shape)

    def _on_device(self, name: str, size: int) -> DeviceBuffer:
        return self._device.setdefault(name, Growing(self._gpu.buffer)).of(size)


def _picture_batch(gpu: Gpu, image: ImageInput, dtype: str) -> PictureBatch | None:
    """None for a type of numbers that only the CPU makes of a picture. Raises NotOnGpu where the GPU has to."""
    try:
        return PictureBatch(gpu, image.arithmetic, image.layout, dtype)
    except NotOnGpu:
        if image.unprepared:
            raise
        return None
