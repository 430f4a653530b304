"""A GPU as long as an engine and its contexts use it."""

from __future__ import annotations

from threading import RLock

from visionpool_server.cuda.driver import open_driver
from visionpool_server.cuda.errors import NoDriver
from visionpool_server.cuda.gpu import Gpu


def open_gpu(ordinal: int) -> Gpu:
    """Raises NoDriver where there is no driver, no Python package for it, or no such device."""
    return Gpu(open_driver(), ordinal, for_libraries=True)


def cuda_devices() -> tuple[str, ...]:
    """The names of the devices that the driver sees, if there is one."""
    try:
        return tuple(f"cuda:{ordinal}" for ordinal in range(open_driver().device_count()))
    except NoDriver:
        return ()


class Lease:
    """Closes a GPU when its engine is closed, and no context is open: a worker that hangs in a run may still use its memory."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._users = 1  # the engine
        self._lock = RLock()  # contexts that are collected as garbage give, on any thread at any moment

    def take(self) -> None:
        with self._lock:
            self._users += 1

    def give(self) -> None:
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self.gpu.close()
