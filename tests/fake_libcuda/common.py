"""What the scenarios share: what they are given, and a little work for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import numpy as np
from visionpool_server.cuda.driver import Driver
from visionpool_server.cuda.errors import CudaError
from visionpool_server.cuda.gpu import DeviceBuffer, Gpu, Kernel, PinnedBuffer, Stream

from tests.fake_libcuda import Fake

ONE = (1, 1, 1)


@dataclass
class On:
    """What a scenario is given."""

    driver: Driver
    fake: Fake
    image: bytes

    def gpu(self, ordinal: int = 0) -> Gpu:
        self.driver.device_count()
        return Gpu(self.driver, ordinal)


@contextmanager
def refused(kind: type[Exception] = CudaError, **said: object) -> Iterator[None]:
    """Exactly this exception comes, with these attributes."""
    try:
        yield
    except Exception as error:
        assert type(error) is kind, repr(error)
        assert {name: getattr(error, name) for name in said} == said, repr(error)
    else:
        raise AssertionError(f"{kind.__name__} did not come")


def increments(on: On, gpu: Gpu) -> tuple[Stream, DeviceBuffer, PinnedBuffer, Kernel]:
    """Ten zeros on the device and here, and a kernel that adds to them."""
    stream, buffer, host, add = gpu.stream(), gpu.buffer(10), gpu.pinned(10), gpu.module(on.image).kernel("add")
    host.bytes[:] = 0
    buffer.upload(host, 10, stream)
    stream.synchronize()
    return stream, buffer, host, add


def step(add: Kernel, buffer: DeviceBuffer, host: PinnedBuffer, stream: Stream) -> None:
    add.launch(ONE, ONE, [np.uint64(buffer.address), np.uint32(10), np.int32(2)], stream)
    buffer.download(host, 10, stream)


def run(action: Callable[[], Any]) -> None:
    thread = Thread(target=action)
    thread.start()
    thread.join()
