"""A batch on its way in: into a set's pinned memory, to the device, and, of pictures, through the kernel into their tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidRequest

from visionpool_server.backends import Tensors
from visionpool_server.backends.tensorrt.buffers import BufferSet
from visionpool_server.backends.tensorrt.loaded import Loaded
from visionpool_server.backends.tensorrt.ranges import Shapes
from visionpool_server.cuda.gpu import Stream
from visionpool_server.cuda.pictures import PictureBatch
from visionpool_server.imaging.unprepared import NotOnGpu


class Feeds:
    """The inputs of one set of buffers, which has to be free at `load`."""

    def __init__(self, loaded: Loaded, buffers: BufferSet) -> None:
        self._loaded = loaded
        self._buffers = buffers
        self._image = loaded.image
        self._pictures = self._picture_batch()
        self._shapes: dict[str, tuple[int, ...]] = {}

    def _picture_batch(self) -> PictureBatch | None:
        """None where the CPU does the arithmetic: for a type that the kernel does not write."""
        image = self._image
        if image is None:
            return None
        dtype = self._buffers.slots[image.name].tensor.dtype.name
        try:
            return PictureBatch(self._loaded.gpu, image.arithmetic, image.layout, dtype)
        except NotOnGpu:
            if image.unprepared:
                raise
            return None

    def load(self, batch: Tensors) -> Shapes:
        """Copies the batch into pinned memory, and says of what shapes the model's inputs become. Raises InvalidRequest."""
        self._shapes = {}
        for tensor in self._loaded.inputs:
            if tensor.name not in batch:
                raise InvalidRequest(f"input {tensor.name!r} is missing")
            array = batch[tensor.name]
            if self._image is not None and tensor.name == self._image.name:
                self._shapes[tensor.name] = self._load_pictures(array)
            else:
                self._shapes[tensor.name] = array.shape
                self._store(tensor.name, array)
        return self._shapes

    def _load_pictures(self, pictures: NDArray[Any]) -> tuple[int, ...]:
        image = self._image
        assert image is not None
        if self._pictures:
            return self._pictures.load(pictures)
        array = image.arithmetic.apply(pictures, image.layout, self._buffers.slots[image.name].tensor.dtype)
        self._store(image.name, array)
        return array.shape

    def _store(self, name: str, array: NDArray[Any]) -> None:
        slot = self._buffers.slots[name]
        if array.dtype != slot.tensor.dtype:
            raise InvalidRequest(f"input {name!r} is {array.dtype}, and the engine takes {slot.tensor.dtype}")
        np.copyto(slot.view(array.shape), array)

    def values(self) -> Shapes:
        """The numbers of the inputs that are read in RAM."""
        return {
            tensor.name: tuple(int(number) for number in self._view(tensor.name).ravel())
            for tensor in self._loaded.inputs
            if tensor.on_host
        }

    def on_host(self) -> dict[str, int]:
        """Where the inputs lie that are read in RAM."""
        return {
            tensor.name: self._buffers.slots[tensor.name].pinned(tensor.size(self._shapes[tensor.name])).address
            for tensor in self._loaded.inputs
            if tensor.on_host
        }

    def upload(self, stream: Stream) -> None:
        """Tells `stream` to copy what was loaded. The kernel's target is reserved, too."""
        for tensor in self._loaded.inputs:
            slot, shape = self._buffers.slots[tensor.name], self._shapes[tensor.name]
            if self._pictures and self._image and tensor.name == self._image.name:
                slot.device(tensor.size(shape))
                self._pictures.upload(stream)
            elif not tensor.on_host:
                slot.upload(shape, stream)

    def prepare(self, stream: Stream) -> None:
        """Tells `stream` to make the pictures' tensor of what was uploaded."""
        if self._pictures and self._image:
            slot = self._buffers.slots[self._image.name]
            self._pictures.run(slot.device(slot.tensor.size(self._shapes[self._image.name])).address, stream)

    def addresses(self) -> dict[str, int]:
        """Where TensorRT finds the inputs that it reads on the device."""
        return {
            tensor.name: self._buffers.slots[tensor.name].device(tensor.size(self._shapes[tensor.name])).address
            for tensor in self._loaded.inputs
            if not tensor.on_host
        }

    def _view(self, name: str) -> NDArray[Any]:
        return self._buffers.slots[name].view(self._shapes[name])

    def close(self) -> None:
        if self._pictures:
            self._pictures.close()
