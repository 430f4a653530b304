"""JPEGs decoded on the GPU that runs the model: their pixels stay there, and the pictures' kernel reads them (`decode: gpu`).

    stage threads: bytes -> header, checks -> `JpegDecoder.decode` -> DevicePixels -> queue -> worker: kernel -> ...

The library's decoder is one thread's at a time, and likes batches. So whichever thread comes first decodes what is there, those
that come meanwhile wait, and the next of them takes all that has gathered: as workers do, without a delay to choose.

The decoder's stream is waited for before anybody hears of the pixels: any other stream may read them then. The library frees
them by the same stream when their owner goes, and so the stream stays until the last has gone, even after `close()`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, RLock

import numpy as np

from visionpool_server.cuda.driver import open_driver
from visionpool_server.cuda.errors import CudaError
from visionpool_server.cuda.gpu import Gpu
from visionpool_server.cuda.nvimagecodec import (
    Codec,
    DecodedJpeg,
    Jpeg,
    NvImageCodec,
    decodes_nothing,
    find_library,
    ordinary_jpeg,
)
from visionpool_server.imaging.device_pixels import DevicePixels

log = logging.getLogger(__name__)

MOST = 16  # pictures of one call
PATIENCE_S = 5.0  # for a turn; who has waited longer leaves a GPU that hangs alone, and so do all until it is back
_SHARE = 8  # of the device's memory, one part in so many may be pictures that wait: engines need the rest


@dataclass(eq=False, slots=True)
class _Asked:
    jpeg: Jpeg
    done: bool = False
    left: bool = False  # nobody waits for it any more
    pixels: DevicePixels | None = None


class JpegDecoder:
    """Any thread may call it. `most_bytes`: of pixels on the device, beyond which it takes no further picture.

    It owns `gpu`, and closes it. Raises BackendUnavailable where `codec` decodes nothing.
    """

    def __init__(self, gpu: Gpu, codec: Codec, most_bytes: int | None = None) -> None:
        self._gpu = gpu
        self._codec: Codec | None = codec
        self._most = gpu.properties.memory // _SHARE if most_bytes is None else most_bytes
        self._held = 0  # bytes; also of pictures that are being decoded
        self._waiting: deque[_Asked] = deque()
        self._turn = Lock()  # whose holder decodes
        self._lock = RLock()  # an owner may go at any moment, also on a thread that has it
        self._hangs = False
        self._told = False
        with gpu.current():
            self._stream = gpu.stream()
            self._check()

    def decode(self, jpeg: memoryview, height: int, width: int) -> DevicePixels | None:
        """Its pixels, (height, width, 3), which are there; None where it does not decode it, or has no room, or is closed."""
        asked = _Asked(Jpeg(np.frombuffer(jpeg, np.uint8), height, width))
        size = asked.jpeg.size
        with self._lock:
            if self._codec is None or self._hangs or self._held + size > self._most:
                return None
            self._held += size
            self._waiting.append(asked)
        if not self._turn.acquire(timeout=PATIENCE_S):
            self._give_up(asked)
            return None
        try:
            while not asked.done:
                self._decode(self._next())
        finally:
            self._turn.release()
        if asked.pixels is None:
            self._give_back(size)
        return asked.pixels

    def close(self) -> None:
        """What is decoded stays until its owners go; and all of it, where the GPU hangs."""
        if not self._turn.acquire(timeout=PATIENCE_S):
            return
        try:
            with self._lock:
                if self._codec is None:
                    return
                with self._gpu.current():
                    self._codec = None
                unused = not self._held
        finally:
            self._turn.release()
        if unused:
            self._gpu.close()

    def _check(self) -> None:
        try:
            (decoded,) = self._decoded([ordinary_jpeg()])
        except Exception as error:
            raise decodes_nothing(self._gpu.ordinal, error) from error
        if decoded is None:
            raise decodes_nothing(self._gpu.ordinal)

    def _next(self) -> list[_Asked]:
        with self._lock:
            return [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]

    def _give_up(self, asked: _Asked) -> None:
        """Where a call has taken it, the room is that call's until it ends."""
        with self._lock:
            log.error("cuda:%d has not decoded a JPEG for %g s: the CPU decodes", self._gpu.ordinal, PATIENCE_S)
            self._hangs = True
            if asked in self._waiting:
                self._waiting.remove(asked)
                asked.done = True
            asked.left = True
            unused = asked.done and asked.pixels is None
        if unused:
            self._give_back(asked.jpeg.size)

    def _decode(self, batch: Sequence[_Asked]) -> None:
        try:
            with self._gpu.current():
                for asked, decoded in zip(batch, self._decoded([asked.jpeg for asked in batch]), strict=True):
                    asked.pixels = self._owned(asked.jpeg, decoded) if decoded else None
        except Exception as error:
            level = logging.DEBUG if self._told else logging.WARNING
            log.log(level, "nvImageCodec failed on cuda:%d, and the CPU decodes: %s", self._gpu.ordinal, str(error))
            self._told = True
        finally:
            with self._lock:
                self._hangs = False
                for asked in batch:
                    asked.done = True
                lost = [asked for asked in batch if asked.left and asked.pixels is None]
            for asked in lost:
                self._give_back(asked.jpeg.size)

    def _decoded(self, jpegs: Sequence[Jpeg]) -> list[DecodedJpeg | None]:
        """Waits until they are there."""
        if self._codec is None:
            return [None] * len(jpegs)
        decoded: list[DecodedJpeg | None] = []
        try:
            decoded += self._codec.decode(jpegs, self._stream.handle)
            self._stream.synchronize()
        except BaseException:
            decoded.clear()  # whoever has the error has this frame, and images go before the stream does
            with suppress(CudaError):
                self._stream.synchronize()
            raise
        return decoded

    def _owned(self, jpeg: Jpeg, decoded: DecodedJpeg) -> DevicePixels:
        shape = jpeg.height, jpeg.width, 3
        return DevicePixels(decoded.address, shape, decoded.pitch, _Owner(self, decoded.image, jpeg.size))

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._held -= size
            last = self._codec is None and not self._held
        if last:
            self._gpu.close()


class _Owner:
    """Holds an image, and says when it is gone: not by `weakref.finalize`, which would say so before it is."""

    __slots__ = ("_decoder", "_image", "_size")

    def __init__(self, decoder: JpegDecoder, image: object, size: int) -> None:
        self._decoder = decoder
        self._image = image
        self._size = size

    def __del__(self) -> None:
        self._image = None
        self._decoder._give_back(self._size)


def open_jpeg_decoder(ordinal: int) -> JpegDecoder:
    """Raises BackendUnavailable where nvImageCodec or what it needs is not there, NoDriver where the device is not."""
    library = find_library()
    gpu = Gpu(open_driver(), ordinal)
    try:
        with gpu.current():
            codec = NvImageCodec(library, ordinal)
        return JpegDecoder(gpu, codec)
    except BaseException:
        gpu.close()
        raise
