"""What TensorRT has measured of its kernels, kept in a file: further builds on the same GPU take a fraction of the time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.writing import write_whole

log = logging.getLogger(__name__)


@contextmanager
def timings_kept(api: Api, path: Path | None) -> Iterator[bytearray | None]:
    """The file's bytes, to be changed in place, and written where they were; None where nothing is kept."""
    if path is None or not api.timing_cache:
        yield None
        return
    before = _read(path)
    timings = bytearray(before)
    yield timings
    if timings != before:
        try:
            write_whole(path, bytes(timings))
        except OSError as error:
            log.info("what TensorRT has measured is not kept in %s: %s", path, error)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
