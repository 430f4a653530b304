"""One batch of pictures on its way to a model's input tensor: copied once, then resized, padded and normalised by one kernel.

    with gpu.current():
        batch = PictureBatch(gpu, arithmetic, "NCHW", "float32")
        shape = batch.load(pictures)          # into pinned memory; the pictures are no longer needed then
        batch.upload(stream)
        batch.run(tensor.address, stream)     # writes the tensor of that shape

What the kernel makes is what `Recipe.prepare` and `Arithmetic.apply` make on the CPU (kernels/pictures.cu says how). One batch
is under way at a time: `load` overwrites what the stream still reads unless somebody has waited for it.

Memory, here and on the device: a table of PICTURE, one for each picture, and their pixels behind it. Pictures that were decoded
on the device stay where they are, and are held until the next `load`.
"""

from __future__ import annotations

from contextlib import ExitStack
from importlib.resources import files
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InferenceFailed

from visionpool_server.cuda.driver import Grid
from visionpool_server.cuda.gpu import DeviceBuffer, Gpu, PinnedBuffer, Stream
from visionpool_server.cuda.sources import PICTURE, Resident, source_of
from visionpool_server.imaging.recipe import Arithmetic
from visionpool_server.imaging.unprepared import NotOnGpu, Unprepared

Layout = Literal["NCHW", "NHWC", "CHW"]

KERNEL = "prepare_pictures"
_TYPES = {"uint8": 0, "float16": 1, "float32": 2}  # `enum Type`
_BLOCK: Grid = (32, 8, 1)  # one warp's threads write neighbours in a row
_ALIGNMENT = 16  # of pixels; what floats need, and what copies like


class Shape(NamedTuple):
    """Of the batch that is loaded."""

    pictures: int
    height: int
    width: int
    channels: int


class PictureBatch:
    """The memory of one batch, and the kernel. The device has to be current wherever it is used.

    `dtype`: of the model's tensor, as NumPy names it. Raises NotOnGpu for one that the kernel does not write, CudaError.
    """

    def __init__(self, gpu: Gpu, arithmetic: Arithmetic, layout: Layout, dtype: str) -> None:
        if dtype not in _TYPES:
            raise NotOnGpu(f"the model takes its picture as {dtype}, and the GPU makes {', '.join(_TYPES)} of it")
        self._gpu = gpu
        self._layout = layout
        self._type = _TYPES[dtype]
        self._source_type = _TYPES["uint8"]
        self._reversed = arithmetic.channels == "bgr"
        factor, shift = (np.resize(numbers, 3) for numbers in arithmetic.factors())
        self._numbers = *factor, *shift
        self._shape = Shape(0, 0, 0, 0)
        self._size = 0
        self._resident: list[Resident] = []  # of the batch that is loaded
        self._host: PinnedBuffer | None = None
        self._device: DeviceBuffer | None = None
        self._module = gpu.module(kernel_image())
        self._kernel = self._module.kernel(KERNEL)

    def load(self, pictures: NDArray[Any]) -> tuple[int, ...]:
        """The shape of the tensor that they become. Whatever was loaded before has to be done.

        `pictures`: (N, H, W, C) uint8 or float32, prepared, or (N,) objects, each an `Unprepared`; C is 1 or 3.
        Raises InferenceFailed where the pictures are to become of different sizes, OutOfMemory.
        """
        self._resident = []
        if pictures.dtype == object:
            self._load_unprepared(cast("list[Unprepared]", pictures.tolist()))
        else:
            self._load_prepared(pictures)
        count, height, width, channels = self._shape
        match self._layout:
            case "NCHW":
                return count, channels, height, width
            case "NHWC":
                return count, height, width, channels
            case "CHW":
                return channels, height, width

    def upload(self, stream: Stream) -> None:
        """Copies what is loaded to the device."""
        host, device = self._buffers()
        device.upload(host, self._size, stream)

    def run(self, target_address: int, stream: Stream) -> None:
        """Writes the tensor of what was uploaded."""
        count, height, width, channels = self._shape
        numbers = height, width, channels, self._reversed, self._layout == "NHWC", self._source_type, self._type
        arguments: list[np.generic] = [np.uint64(self._buffers()[1].address), np.uint64(target_address)]
        arguments += [np.int32(number) for number in numbers]
        arguments += [np.float32(number) for number in self._numbers]
        grid = -(-width // _BLOCK[0]), -(-height // _BLOCK[1]), count
        self._kernel.launch(grid, _BLOCK, arguments, stream)

    def close(self) -> None:
        """Frees its memory and the kernel. What it was told has to be done."""
        self._resident = []
        with ExitStack() as closing:
            closing.callback(self._module.close)
            closing.callback(self._free)

    def _load_unprepared(self, pictures: list[Unprepared]) -> None:
        sizes = {picture.shape for picture in pictures}
        if len(sizes) != 1:
            raise InferenceFailed(f"one batch of pictures is to be of several sizes: {sorted(sizes)}")
        shape = Shape(len(pictures), *sizes.pop())
        sources = {id(picture): source_of(picture) for picture in pictures}  # one that fills a batch up comes often
        starts, end = {}, shape.pictures * PICTURE.itemsize
        for key, source in sources.items():
            starts[key] = _aligned(end)
            end = starts[key] + source.size
        self._begin(shape, "uint8", end)
        self._resident = [source for source in sources.values() if isinstance(source, Resident)]
        host, table, staged = self._buffers()[0].bytes, self._table(), self._buffers()[1].address
        for key, source in sources.items():
            source.copy(host[starts[key] : starts[key] + source.size])
        for index, picture in enumerate(pictures):
            table[index] = sources[id(picture)].record(starts[id(picture)], staged)

    def _load_prepared(self, pictures: NDArray[Any]) -> None:
        if pictures.dtype not in (np.uint8, np.float32):
            raise InferenceFailed(f"prepared pictures are uint8 or float32, not {pictures.dtype}")
        count, height, width, channels = pictures.shape
        start = _aligned(count * PICTURE.itemsize)
        self._begin(Shape(*pictures.shape), pictures.dtype.name, start + pictures.nbytes)
        table = self._table()
        table[:] = np.zeros((), PICTURE)
        table["pitch"] = width * channels * pictures.itemsize
        table["pixels"] = start + np.arange(count) * height * table["pitch"]
        table["bottom"], table["right"] = height, width
        host = self._buffers()[0].bytes[start : start + pictures.nbytes]
        np.copyto(host.view(pictures.dtype).reshape(pictures.shape), pictures)

    def _begin(self, shape: Shape, source_type: str, size: int) -> None:
        if shape.channels not in (1, 3):
            raise InferenceFailed(f"pictures have 1 or 3 channels, not {shape.channels}")
        if self._layout == "CHW" and shape.pictures != 1:
            raise InferenceFailed(f"the model takes one picture, not {shape.pictures}")
        self._reserve(size)
        self._shape, self._source_type, self._size = shape, _TYPES[source_type], size

    def _table(self) -> NDArray[Any]:
        return self._buffers()[0].bytes[: self._shape.pictures * PICTURE.itemsize].view(PICTURE)

    def _buffers(self) -> tuple[PinnedBuffer, DeviceBuffer]:
        if self._host is None or self._device is None:
            raise ValueError("no pictures are loaded")
        return self._host, self._device

    def _reserve(self, size: int) -> None:
        held = self._device.size if self._device else 0
        if held >= size:
            return
        self._free()
        self._host = self._gpu.pinned(max(size, 2 * held))
        self._device = self._gpu.buffer(max(size, 2 * held))

    def _free(self) -> None:
        buffers, self._host, self._device = (self._host, self._device), None, None
        with ExitStack() as closing:
            for buffer in buffers:
                if buffer:
                    closing.callback(buffer.close)


def kernel_image() -> bytes:
    """The kernel as PTX, which any driver from 525 on compiles for its device."""
    return (files("visionpool_server.cuda") / "kernels" / "pictures.ptx").read_bytes()


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT
