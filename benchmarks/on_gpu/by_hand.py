"""The least that overlaps: two sets of buffers, three streams, the pictures' kernel in between; as a worker's context has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool_server.cuda.gpu import DeviceBuffer, Event, Gpu, PinnedBuffer
from visionpool_server.cuda.pictures import PictureBatch
from visionpool_server.imaging.recipe import Arithmetic

_SETS = 2


@dataclass(frozen=True)
class _Set:
    pictures: PictureBatch
    tensor: DeviceBuffer
    host: PinnedBuffer
    uploaded: Event
    computed: Event
    done: Event


class Loop:
    """Up with pixels, their tensor made, and down with it. `pictures`: (N,) objects, loaded once."""

    def __init__(self, gpu: Gpu, arithmetic: Arithmetic, pictures: NDArray[Any]) -> None:
        self.upload, self.compute, self.download = gpu.stream(), gpu.stream(), gpu.stream()
        self._sets = [self._set(gpu, arithmetic, pictures) for _ in range(_SETS)]
        self._turn = 0

    def _set(self, gpu: Gpu, arithmetic: Arithmetic, pictures: NDArray[Any]) -> _Set:
        batch = PictureBatch(gpu, arithmetic, "NCHW", "float32")
        size = int(np.prod(batch.load(pictures))) * 4
        return _Set(batch, gpu.buffer(size), gpu.pinned(size), gpu.event(), gpu.event(), gpu.event())

    def one_by_one(self) -> None:
        one = self._sets[0]
        one.done.synchronize()
        one.pictures.upload(self.upload)
        self.upload.synchronize()
        one.pictures.run(one.tensor.address, self.compute)
        self.compute.synchronize()
        one.tensor.download(one.host, one.host.size, self.download)
        self.download.synchronize()

    def pipelined(self) -> None:
        """Tells the streams of one batch, once the set that it takes is free."""
        one = self._sets[self._turn % _SETS]
        self._turn += 1
        one.done.synchronize()
        one.pictures.upload(self.upload)
        one.uploaded.record(self.upload)
        self.compute.wait(one.uploaded)
        one.pictures.run(one.tensor.address, self.compute)
        one.computed.record(self.compute)
        self.download.wait(one.computed)
        one.tensor.download(one.host, one.host.size, self.download)
        one.done.record(self.download)

    def finish(self) -> None:
        for stream in (self.upload, self.compute, self.download):
            stream.synchronize()

    def close(self) -> None:
        self.finish()
        for one in self._sets:
            one.pictures.close()
            for held in (one.tensor, one.host, one.uploaded, one.computed, one.done):
                held.close()
        for stream in (self.upload, self.compute, self.download):
            stream.close()
