"""Fetches pictures for a caller, from where the operator allowed it and from nowhere else."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import httpx
from visionpool.errors import InvalidRequest, InvalidSetting, TooLarge

from visionpool_server.api.budget import Held

_TIMEOUT = 10.0  # seconds, for all of a picture


class UrlFetcher:
    """`allowed`: prefixes of URLs, such as `https://img.example.com/pictures/`. Redirects are not followed."""

    def __init__(self, allowed: tuple[str, ...], max_bytes: int) -> None:
        self._allowed = tuple(_allowed(prefix) for prefix in allowed)
        self._max_bytes = max_bytes

    async def fetch(self, url: str, held: Held) -> bytes:
        """Raises InvalidRequest for a URL that is not allowed or does not answer, TooLarge for a body over the limit."""
        if not self.allows(url):
            raise InvalidRequest(
                "this server does not fetch that URL",
                hint="send the picture itself, or start it with --allow-urls PREFIX",
            )
        chunks, size = [], 0
        try:
            async with (
                asyncio.timeout(_TIMEOUT),
                httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False) as client,
                client.stream("GET", url) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise InvalidRequest(f"the picture's URL answered {response.status_code}")
                async for chunk in response.aiter_bytes():
                    size += len(chunk)
                    held.take(len(chunk))
                    if size > self._max_bytes:
                        raise TooLarge(f"the picture at that URL is larger than {self._max_bytes / 2**20:g} MiB")
                    chunks.append(chunk)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise InvalidRequest(f"the picture's URL cannot be fetched: {type(error).__name__}") from error
        return b"".join(chunks)

    def allows(self, url: str) -> bool:
        """Scheme, host and port as in a prefix, and a path below its path: `..` and credentials never pass."""
        try:
            scheme, host, path = _parts(url)
        except (InvalidRequest, ValueError):
            return False
        return any(scheme == s and host == h and _below(path, p) for s, h, p in self._allowed)


def _allowed(prefix: str) -> tuple[str, str, str]:
    try:
        return _parts(prefix)
    except (InvalidRequest, ValueError) as error:
        raise InvalidSetting(
            f"--allow-urls {prefix[:100]!r}: {error}", hint="such as https://img.example.com/pictures/"
        ) from error


def _below(path: str, prefix: str) -> bool:
    """`/a` allows `/a` and `/a/b`, but not `/ab`."""
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def _parts(url: str) -> tuple[str, str, str]:
    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname or "@" in split.netloc:
        raise InvalidRequest(f"{url[:100]!r} is not an http or https URL")
    if ".." in split.path or "%2e" in split.path.lower() or "\\" in url:
        raise InvalidRequest("a URL with '..' in it is not fetched")
    port = split.port or {"http": 80, "https": 443}[split.scheme]
    return split.scheme, f"{split.hostname}:{port}", split.path or "/"
