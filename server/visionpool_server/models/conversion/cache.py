"""Where converted models are kept: a folder that outlives the process, and several processes share.

An entry is `NAME-KEY.onnx` and, beside it, the SHA-256 of its bytes. Both appear by renaming, so that nobody reads half of one;
an entry whose bytes are not those of its digest is made anew.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from visionpool.errors import InvalidModel

from visionpool_server.user_cache import user_cache

log = logging.getLogger(__name__)


def converted(name: str, key: str, wanted: Path | None, make: Callable[[Path], None]) -> Path:
    """The file that `make(path)` writes, from the cache where it is there already.

    `key`: what it is made from. `wanted`: the folder to keep it in; None: the user's cache, or where that cannot be written a
    folder that goes with this process. Raises InvalidModel for a `wanted` that cannot be written, and whatever `make` raises.
    """
    kept = wanted or user_cache()
    entry = f"{name}-{key}.onnx"
    if kept and _intact(kept / entry):
        return kept / entry
    folder = _writable(kept) if kept else None
    if folder is None and wanted:
        raise InvalidModel(f"the converted model cannot be kept in {wanted}", hint="choose another --cache-dir")
    folder = folder or _of_this_process()
    if not _intact(folder / entry):
        _fill(folder, entry, make)
    return folder / entry


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _intact(path: Path) -> bool:
    try:
        return _digest_of(path).read_text(encoding="ascii") == sha256(path)
    except (OSError, ValueError):
        return False


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _fill(folder: Path, entry: str, make: Callable[[Path], None]) -> None:
    """Two processes that fill one entry both leave a good one. Should the files of the one meet the digest of the other, the
    next to look finds them damaged and converts again."""
    with tempfile.TemporaryDirectory(
        prefix=".", dir=folder
    ) as work:  # on the same disk, so that renaming is all or nothing
        made = Path(work) / entry
        make(made)
        digest = _digest_of(made)
        digest.write_text(sha256(made), encoding="ascii")
        made.replace(folder / entry)
        digest.replace(_digest_of(folder / entry))


def _writable(folder: Path) -> Path | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        log.info("converted models are not kept in %s: %s", folder, error)
        return None


@cache
def _of_this_process() -> Path:
    """A folder that nobody else can write to, removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix="visionpool-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
