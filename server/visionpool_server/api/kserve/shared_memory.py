"""System shared memory: regions of POSIX segments that clients on this machine register, and tensors to and from them.

The segments are never mapped. A client may shrink its segment at any time, and touching a page that is gone would end the
process with SIGBUS; `pread` and `pwrite` answer with fewer bytes instead. The price is one copy of each tensor.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from tritonclient.grpc import service_pb2 as pb
from visionpool.errors import InvalidRequest, NotFound, Unimplemented

SEGMENTS = Path("/dev/shm")  # noqa: S108  where Linux keeps POSIX shared memory, no temporary file
_MAX_REGIONS = 4096
_MAX_NAME = 255
_SEMAPHORE = "sem."  # how the C library names what is no data: POSIX semaphores lie beside the segments


@dataclass(slots=True, eq=False)
class _Region:
    """`users`: how many reads and writes are using `descriptor` right now; it is closed once it is `gone` and they are done."""

    name: str
    key: str
    offset: int
    byte_size: int
    descriptor: int
    users: int = 0
    gone: bool = False


class SharedMemory:
    """The registered regions; for any thread. All raises Unimplemented where it is not `available`. `close()` forgets them."""

    def __init__(self, *, allowed: bool = True) -> None:
        self._allowed = allowed
        self._regions: dict[str, _Region] = {}
        self._lock = Lock()

    @property
    def available(self) -> bool:
        return self._allowed and SEGMENTS.is_dir()

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Makes `byte_size` bytes of the segment `key`, from `offset` on, known as `name`.

        Raises InvalidRequest where there is no such segment or it is smaller, for a name that is taken, and for too many.
        """
        self._check_available()
        _check_extent(name, offset, byte_size)
        if not (0 < len(name) <= _MAX_NAME and name.isprintable()):
            raise InvalidRequest(f"a region's name has 1 to {_MAX_NAME} printable characters, not {name[:_MAX_NAME]!r}")
        with self._lock:
            if name in self._regions:
                raise InvalidRequest(
                    f"a shared memory region {name!r} is registered already",
                    hint="unregister it first, or use another name",
                )
            if len(self._regions) >= _limit():
                raise InvalidRequest(
                    f"{len(self._regions)} shared memory regions are registered, and no more are taken"
                )
            self._regions[name] = _Region(name, key, offset, byte_size, _opened(key, offset + byte_size))

    def unregister(self, name: str = "") -> None:
        """Forgets a region, or all of them; a name that is not registered is no error, as with Triton."""
        self._check_available()
        self._forget(name)

    def _forget(self, name: str) -> None:
        with self._lock:
            for region in list(self._regions.values()):
                if name in ("", region.name):
                    del self._regions[region.name]
                    region.gone = True
                    _close_unused(region)

    def status(self, name: str = "") -> Any:
        """One region, or all. Raises NotFound."""
        self._check_available()
        response = pb.SystemSharedMemoryStatusResponse()
        with self._lock:
            for region in [self._find(name)] if name else self._regions.values():
                shown = response.regions[region.name]
                shown.name, shown.key = region.name, region.key
                shown.offset, shown.byte_size = region.offset, region.byte_size
        return response

    def read(self, name: str, offset: int, byte_size: int) -> bytes:
        """A copy of `byte_size` bytes of a region, from its `offset` on.

        Raises NotFound for an unknown region, InvalidRequest for what lies outside of it or is gone.
        """
        with self._using(name, offset, byte_size) as region:
            pieces, done = [], 0
            while done < byte_size:
                piece = os.pread(region.descriptor, byte_size - done, region.offset + offset + done)
                if not piece:
                    raise _shrunken(region)
                pieces.append(piece)
                done += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """Copies `data` into a region, from its `offset` on.

        Raises NotFound for an unknown region, InvalidRequest for what would lie outside of it, or where it has shrunk.
        """
        view = memoryview(data).cast("B")
        with self._using(name, offset, len(view)) as region:
            start, done = region.offset + offset, 0
            if os.fstat(region.descriptor).st_size < start + len(view):  # writing behind the end would make it grow
                raise _shrunken(region)
            try:
                while done < len(view):
                    done += os.pwrite(region.descriptor, view[done:], start + done)
            except OSError as error:
                raise InvalidRequest(
                    f"shared memory region {name!r} cannot be written: {error.strerror}",
                    hint="the machine may have too little memory left for the segment",
                ) from error

    def close(self) -> None:
        """Forgets all regions. What is being read or written meanwhile is finished first."""
        self._forget("")

    def _check_available(self) -> None:
        if not self._allowed:
            raise Unimplemented(
                "system shared memory is switched off",
                hint="send tensors in the request, or drop --no-system-shared-memory",
            )
        if not SEGMENTS.is_dir():
            raise Unimplemented("system shared memory is for Linux alone", hint="send tensors in the request")

    @contextmanager
    def _using(self, name: str, offset: int, byte_size: int) -> Iterator[_Region]:
        """Keeps a region's descriptor open, whoever unregisters it meanwhile."""
        self._check_available()
        _check_extent(name, offset, byte_size, at_least=0)
        with self._lock:
            region = self._find(name)
            if offset + byte_size > region.byte_size:
                raise InvalidRequest(
                    f"bytes {offset} to {offset + byte_size} lie outside of shared memory region {name!r}, "
                    f"which has {region.byte_size}",
                    hint="offset and byte_size count from the start of the region",
                )
            region.users += 1
        try:
            yield region
        finally:
            with self._lock:
                region.users -= 1
                _close_unused(region)

    def _find(self, name: str) -> _Region:
        if name not in self._regions:
            raise NotFound(f"no shared memory region {name[:_MAX_NAME]!r}", hint="register it first")
        return self._regions[name]


def _close_unused(region: _Region) -> None:
    if region.gone and not region.users:
        os.close(region.descriptor)


def _opened(key: str, needed: int) -> int:
    """A descriptor of the segment `key`, which has at least `needed` bytes. Raises InvalidRequest."""
    name = key.lstrip("/")
    if not _is_segment(name):
        raise InvalidRequest(
            f"{key[:_MAX_NAME]!r} is no key of a shared memory segment",
            hint="send the name given to shm_open, as /tensors",
        )
    try:
        descriptor = os.open(SEGMENTS / name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(
            f"shared memory segment {key!r} cannot be opened: {error.strerror}",
            hint="create it first, on the machine of the server; a container needs --ipc=host to see the host's",
        ) from error
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size >= needed:
        return descriptor
    os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise InvalidRequest(f"{key!r} is no shared memory segment")
    raise InvalidRequest(
        f"shared memory segment {key!r} has {found.st_size} bytes, and offset + byte_size are {needed}",
        hint="register no more than the segment has",
    )


def _is_segment(name: str) -> bool:
    """Whether a file of this name, if there is one, is the clients' business: nothing elsewhere, and no semaphore."""
    plain = name.isprintable() and "/" not in name and name not in ("", ".", "..")
    return plain and len(name) <= _MAX_NAME and not name.startswith(_SEMAPHORE)


def _check_extent(name: str, offset: int, byte_size: int, at_least: int = 1) -> None:
    if offset < 0 or byte_size < at_least:
        raise InvalidRequest(
            f"shared memory region {name[:_MAX_NAME]!r}: offset {offset} and byte_size {byte_size} make no sense",
            hint=f"offset is at least 0, byte_size at least {at_least}",
        )


def _shrunken(region: _Region) -> InvalidRequest:
    return InvalidRequest(
        f"the segment {region.key!r} of shared memory region {region.name!r} is smaller than when it was registered",
        hint="unregister the region, and register it again",
    )


def _limit() -> int:
    """How many regions are let in: each holds a descriptor, and connections need some too."""
    import resource

    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MAX_REGIONS if descriptors == resource.RLIM_INFINITY else min(_MAX_REGIONS, descriptors // 4)
