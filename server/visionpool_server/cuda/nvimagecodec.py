"""nvImageCodec, NVIDIA's library of codecs, as a decoder of JPEGs: the one module that knows its names.

Its own decoders on the CPU are left out: what the GPU does not take, OpenCV decodes here, as always. Reference: the Python API
of nvImageCodec 0.5 to 0.9 (docs.nvidia.com/cuda/nvimagecodec).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from visionpool.errors import BackendUnavailable

_NAME = "nvidia.nvimgcodec"
_SAYS = "PYNVIMGCODEC_VERBOSITY"
_PACKAGES = "nvidia-nvimgcodec-cu13[nvjpeg] (or -cu12, as nvidia-smi shows)"
_HINT = f"pip install 'visionpool[cuda-jpeg]', which brings {_PACKAGES}; or say decode: exact in model.yaml"
_OPTIONS = ":fancy_upsampling=1"  # colours between those of neighbours, as libjpeg makes them
_THREADS = 4  # of its own, for the part of nvJPEG that runs on the CPU


class Jpeg(NamedTuple):
    data: NDArray[np.uint8]
    height: int
    width: int

    @property
    def size(self) -> int:
        """Bytes of its pixels."""
        return self.height * self.width * 3


class DecodedJpeg(NamedTuple):
    """(H, W, 3) RGB uint8 at `address`, as long as `image` is there."""

    address: int
    pitch: int  # bytes from row to row
    image: object


class Codec(Protocol):
    """What one thread at a time calls, with the device current."""

    def decode(self, jpegs: Sequence[Jpeg], stream: int) -> list[DecodedJpeg | None]:
        """Their pixels, once the stream is through; None for what it does not decode. Raises whatever the library does."""


def find_library() -> ModuleType:
    """Raises BackendUnavailable where it is not installed, or does not fit this Python or machine."""
    os.environ.setdefault(_SAYS, "0")  # it would write a line to stderr for each picture that it does not decode
    try:
        return import_module(_NAME)
    except ImportError as error:
        raise BackendUnavailable(
            f"decode: gpu needs nvImageCodec, and {_NAME} is not there: {error}", hint=_HINT
        ) from error


class NvImageCodec:
    """A decoder on one device. `ordinal` None: on the CPU, into RAM, by the library's own decoders, for tests.

    Not for several threads: it keeps what it is told to do in the decoder (src/image_generic_decoder.cpp). Raises
    BackendUnavailable where the library finds no GPU, or not what it decodes JPEGs with.
    """

    def __init__(self, library: Any, ordinal: int | None) -> None:
        self._library = library
        kinds = library.BackendKind
        usable = (kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU) if ordinal is not None else (kinds.CPU_ONLY,)
        device = library.NVIMGCODEC_DEVICE_CPU_ONLY if ordinal is None else ordinal
        backends = [library.Backend(kind) for kind in usable]
        try:
            self._decoder = library.Decoder(
                device_id=device, max_num_cpu_threads=_THREADS, backends=backends, options=_OPTIONS
            )
        except RuntimeError as error:
            raise BackendUnavailable(
                f"nvImageCodec does not start on {_named(ordinal)}: {error}", hint=_HINT
            ) from error
        self._params = library.DecodeParams(apply_exif_orientation=False)  # to sRGB, 8 bits, interleaved

    def decode(self, jpegs: Sequence[Jpeg], stream: int) -> list[DecodedJpeg | None]:
        sources = {index: source for index, jpeg in enumerate(jpegs) if (source := self._source(jpeg))}
        images = self._decoder.decode([*sources.values()], params=self._params, cuda_stream=stream) if sources else []
        found = dict(zip(sources, images, strict=True))
        return [_decoded(found.get(index), jpeg) for index, jpeg in enumerate(jpegs)]

    def _source(self, jpeg: Jpeg) -> Any:
        """None where the library reads another size from it, or none: what is to be allocated follows from that."""
        with suppress(RuntimeError):
            source = self._library.CodeStream(jpeg.data)
            if (source.height, source.width) == (jpeg.height, jpeg.width):
                return source
        return None


def ordinary_jpeg() -> Jpeg:
    """One that every decoder takes, to see whether there is one: the library starts without nvJPEG, too."""
    _, data = cv2.imencode(".jpg", np.full((64, 64, 3), 127, np.uint8))
    return Jpeg(np.asarray(data, np.uint8).ravel(), 64, 64)


def decodes_nothing(ordinal: int, why: object = None) -> BackendUnavailable:
    """For a codec that does not decode that one."""
    why = why or "nvJPEG is missing, or does not know this GPU"
    return BackendUnavailable(f"nvImageCodec decodes no JPEG on {_named(ordinal)}: {why}", hint=_HINT)


def _decoded(image: Any, jpeg: Jpeg) -> DecodedJpeg | None:
    if image is None or tuple(image.shape) != (jpeg.height, jpeg.width, 3) or image.dtype != np.uint8:
        return None
    on_device = "DEVICE" in image.buffer_kind.name
    said = image.__cuda_array_interface__ if on_device else image.__array_interface__
    return DecodedJpeg(said["data"][0], image.strides[0], image)


def _named(ordinal: int | None) -> str:
    return "the CPU" if ordinal is None else f"cuda:{ordinal}"
