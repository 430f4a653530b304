"""The keys that callers must show one of: read from a file, and read again when it changes.

Keys are looked up by their SHA-256. However long that takes tells nothing about a key: who guesses one cannot choose its digest,
so that neither how much of a digest agrees nor where it lies in the table leads to the next guess.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from visionpool.errors import InvalidSetting, Unauthenticated

log = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds between two looks at the file
_MOST_BYTES = 2**20
_KEY = re.compile(r"[\x21-\x7e]{1,1024}")  # what goes into a header
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_HINT = "each line is KEY or NAME:KEY, in visible ASCII characters; a line that begins with # is a comment"

Keys = Mapping[bytes, str]  # SHA-256 of a key -> the name of who has it, "" where it has none
Stamp = tuple[int, ...]


class ApiKeys:
    """The keys of a file. Raises InvalidSetting where there are none, or something else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)  # before it is read: a change meanwhile is seen later
        self._keys = read_keys(path)

    def caller(self, authorization: str | None, api_key: str | None) -> str | None:
        """Who shows a key in one of the two headers: its name, "" for a key without one, None where no key is known."""
        if authorization:
            scheme, _, shown = authorization.partition(" ")
            if scheme.lower() == "bearer" and (name := self._name(shown.strip())) is not None:
                return name
        return self._name(api_key) if api_key else None

    def _name(self, key: str) -> str | None:
        return self._keys.get(_digest(key))

    async def watch(self) -> None:
        """Reads the file again when it has changed; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_PAUSE)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Takes over what the file says now. Where that makes no sense, the keys stay as they are."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except InvalidSetting as error:
            log.error("the API keys stay as they were: %s", error)
        else:
            log.info("the API keys were read again: there are %d", len(self._keys))


def refusal() -> Unauthenticated:
    """What is told to who shows no key, or one that is not known: the same to both."""
    return Unauthenticated("no valid API key", hint="send it as Authorization: Bearer KEY, or as X-API-Key: KEY")


def read_keys(path: Path) -> Keys:
    """The keys of a file. Raises InvalidSetting, which never shows what a line holds."""
    keys: dict[bytes, str] = {}
    for number, line in enumerate(map(str.strip, _text(path).splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        name, colon, key = line.partition(":")
        name, key = (name.strip(), key.strip()) if colon else ("", name)
        if (colon and not _NAME.fullmatch(name)) or not _KEY.fullmatch(key):
            raise InvalidSetting(f"--api-keys: line {number} of {path} is no key", hint=_HINT)
        if _digest(key) in keys:
            raise InvalidSetting(f"--api-keys: line {number} of {path} has a key for the second time", hint=_HINT)
        keys[_digest(key)] = name
    if not keys:
        raise InvalidSetting(f"--api-keys: there is no key in {path}", hint=_HINT)
    return keys


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise InvalidSetting(f"--api-keys: {path} is larger than 1 MiB", hint=_HINT)
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InvalidSetting(f"--api-keys: cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidSetting(f"--api-keys: {path} is no text", hint=_HINT) from error


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _stamp(path: Path) -> Stamp:
    """Differs when the file that a path leads to is another, or was written: Kubernetes swaps a link on the way to it."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
