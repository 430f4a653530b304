"""A stand-in for NVIDIA's `nvidia.nvimgcodec` on the fake driver: OpenCV decodes, and the pixels land in device memory, late.

As the real one: it works on the stream it is given and does not wait for it; rows may be padded; memory is freed by that stream
when the image goes; a decoder is one thread's at a time. Using it otherwise is noted by the driver as a mistake.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from visionpool.errors import RequestError
from visionpool_server.imaging.headers import read_header

from tests.fake_cuda import FakeDriver, Span

_PADDING = 64  # rows begin at multiples of it, and there is some between them


class BackendKind(enum.Enum):
    CPU_ONLY = 1
    GPU_ONLY = 2
    HYBRID_CPU_GPU = 3
    HW_GPU_ONLY = 4


class ImageBufferKind(enum.Enum):
    STRIDED_DEVICE = 1


class Backend:
    def __init__(self, backend_kind: BackendKind) -> None:
        assert backend_kind is not BackendKind.CPU_ONLY, "that is OpenCV's, here"


class CodeStream:
    def __init__(self, data: NDArray[np.uint8]) -> None:
        assert data.dtype == np.uint8 and data.ndim == 1
        try:
            header = read_header(data.data)
        except RequestError as error:
            raise RuntimeError("Failed to get image info") from error
        self.data, self.height, self.width = data, header.height, header.width


class DecodeParams:
    def __init__(self, *, apply_exif_orientation: bool) -> None:
        assert not apply_exif_orientation


class Image:
    def __init__(self, driver: FakeDriver, ordinal: int, pixels: NDArray[np.uint8], stream: int) -> None:
        self._driver, self._ordinal, self._stream = driver, ordinal, stream
        self.shape: tuple[int, ...] = pixels.shape
        self.dtype = pixels.dtype
        self.buffer_kind = ImageBufferKind.STRIDED_DEVICE
        pitch = (pixels.shape[1] * 3 // _PADDING + 1) * _PADDING
        self.strides = (pitch, 3, 1)
        self._address = driver.allocate(pitch * pixels.shape[0])
        rows = np.full((pixels.shape[0], pitch), 0xEE, np.uint8)
        rows[:, : pixels.shape[1] * 3] = pixels.reshape(pixels.shape[0], -1)
        write = partial(_write, self._address, rows)
        try:
            driver.enqueue(stream, write, writes=[Span(self._address, rows.nbytes)], name="decode")
        except BaseException:
            driver.free(self._address)
            self._address = 0
            raise

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"data": (self._address, False), "shape": self.shape, "typestr": "|u1", "version": 3, "strides": None}

    def __del__(self) -> None:
        driver = self._driver
        if not getattr(self, "_address", 0):
            return
        driver.push(driver._contexts[self._ordinal])
        try:
            if driver._schedule.line(self._stream) is None:
                driver.mistakes.append("an image was freed after the stream it is freed by")
            driver.run_pending(self._stream)  # cudaFreeAsync comes after what the stream was told
            block = driver._blocks.at(self._address)
            assert block is not None
            driver._blocks.free(block)
        finally:
            driver.pop()


class FakeNvImageCodec:
    """The module. `refuses(data)`: what it answers None for; `error`: what its next decoding raises; `calls`: how many
    pictures each had."""

    Backend = Backend
    BackendKind = BackendKind
    CodeStream = CodeStream
    DecodeParams = DecodeParams

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.refuses: Callable[[bytes], bool] = lambda _: False
        self.error: Exception | None = None
        self.calls: list[int] = []
        self.between: Callable[[], None] = lambda: None  # called in the middle of a decoding

    def Decoder(self, *, device_id: int, max_num_cpu_threads: int, backends: Sequence[Any], options: str) -> Decoder:
        assert max_num_cpu_threads > 0 and backends and options == ":fancy_upsampling=1"
        return Decoder(self, device_id)


class Decoder:
    def __init__(self, library: FakeNvImageCodec, ordinal: int) -> None:
        self._library = library
        self._ordinal = ordinal
        self._busy = Lock()

    def decode(self, sources: Sequence[CodeStream], *, params: DecodeParams, cuda_stream: int) -> list[Image | None]:
        assert isinstance(params, DecodeParams) and cuda_stream
        library = self._library
        if not self._busy.acquire(blocking=False):
            library.driver.mistakes.append("two threads use one decoder")
            return [None] * len(sources)
        try:
            library.calls.append(len(sources))
            library.between()
            images = [self._image(source, cuda_stream) for source in sources]
            if library.error:
                images.clear()
                raise library.error
            return images
        finally:
            self._busy.release()

    def _image(self, source: CodeStream, stream: int) -> Image | None:
        if self._library.refuses(source.data.tobytes()):
            return None
        pixels = cv2.imdecode(source.data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        return (
            None if pixels is None else Image(self._library.driver, self._ordinal, np.asarray(pixels, np.uint8), stream)
        )


def _write(address: int, rows: NDArray[np.uint8]) -> None:
    ctypes.memmove(address, rows.ctypes.data, rows.nbytes)
