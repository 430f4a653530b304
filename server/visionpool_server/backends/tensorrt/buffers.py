"""The memory of one batch: for each tensor pinned RAM and its like on the device, and the events that order what uses it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from visionpool_server.backends.tensorrt.tensors import Tensor
from visionpool_server.cuda.errors import CudaError
from visionpool_server.cuda.gpu import DeviceBuffer, Gpu, PinnedBuffer, Stream


class Closing(Protocol):
    def close(self) -> None: ...


def close_all(held: Iterable[Closing]) -> None:
    """Closes each. On a device that is lost every call fails, and there is nothing left to free."""
    for one in held:
        with suppress(CudaError):
            one.close()


class Slot:
    """One tensor's memory. It is made when it is first asked for, and anew where more is; nothing may use it then."""

    def __init__(self, gpu: Gpu, tensor: Tensor) -> None:
        self.tensor = tensor
        self._gpu = gpu
        self._pinned: PinnedBuffer | None = None
        self._device: DeviceBuffer | None = None

    def pinned(self, size: int) -> PinnedBuffer:
        """At least so many bytes."""
        if self._pinned is None or self._pinned.size < size:
            old, self._pinned = self._pinned, None
            if old:
                old.close()
            self._pinned = self._gpu.pinned(size)
        return self._pinned

    def device(self, size: int) -> DeviceBuffer:
        """At least so many bytes."""
        if self._device is None or self._device.size < size:
            old, self._device = self._device, None
            if old:
                old.close()
            self._device = self._gpu.buffer(size)
        return self._device

    def view(self, shape: Sequence[int]) -> NDArray[np.generic]:
        """An array of the tensor's type on the first bytes of the pinned memory."""
        size = self.tensor.size(shape)
        if not size:
            return np.empty(shape, self.tensor.dtype)
        array: NDArray[np.generic] = self.pinned(size).bytes[:size].view(self.tensor.dtype).reshape(shape)
        return array

    def upload(self, shape: Sequence[int], stream: Stream) -> None:
        if size := self.tensor.size(shape):
            self.device(size).upload(self.pinned(size), size, stream)

    def close(self) -> None:
        """Nothing may use it."""
        buffers, self._pinned, self._device = (self._pinned, self._device), None, None
        close_all(buffer for buffer in buffers if buffer)

    def download(self, shape: Sequence[int], stream: Stream) -> None:
        if size := self.tensor.size(shape):
            self.device(size).download(self.pinned(size), size, stream)


class BufferSet:
    """`slots`: by name. `uploaded`, `computed` and `done`: events of the batch that is in it. `busy`: something may still
    use it; `turn`: which batch that is or was, counted from 1."""

    def __init__(self, gpu: Gpu, tensors: Sequence[Tensor]) -> None:
        self.slots = {tensor.name: Slot(gpu, tensor) for tensor in tensors}
        self.uploaded, self.computed, self.done = gpu.event(), gpu.event(), gpu.event()
        self.busy = False
        self.turn = 0

    def close(self) -> None:
        """Nothing may use it."""
        close_all([*self.slots.values(), self.uploaded, self.computed, self.done])

    def wait(self) -> None:
        """Until nothing uses it."""
        if self.busy:
            self.done.synchronize()
            self.busy = False
