"""Between `visionpool.protocol` and httpx: what both HTTP clients send, read and raise the same way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx

import visionpool
from visionpool import errors
from visionpool.answers import Answer, Refusal
from visionpool.http_answers import Response, read
from visionpool.protocol import Call
from visionpool.tls import Tls

Http: TypeAlias = httpx.Client | httpx.AsyncClient
DEFAULT_URL = "http://127.0.0.1:8000"


def settings(url: str, api_key: str | None, headers: Mapping[str, str] | None, tls: Tls | None) -> dict[str, Any]:
    """What both of httpx's clients are made with. Raises InvalidOption for a URL that is none, and for `tls` without need."""
    try:
        base = httpx.URL(url if "://" in url else f"http://{url}")
    except httpx.InvalidURL as error:
        raise errors.InvalidOption(f"{url!r} is not a URL: {error}", hint=f"such as {DEFAULT_URL}") from error
    if base.scheme not in ("http", "https") or not base.host:
        raise errors.InvalidOption(f"{url!r} is not an HTTP address", hint=f"such as {DEFAULT_URL}")
    if tls and base.scheme != "https":
        raise errors.InvalidOption(f"tls is of no use for {url}", hint=f"use https://{base.netloc.decode()}")
    verify = {"verify": tls.context()} if tls else {}
    bearer = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    agent = {"User-Agent": f"visionpool/{visionpool.__version__}"}
    # uvicorn hangs up after 5 idle seconds; a request sent in that very moment would be lost.
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=3.0)
    return {"base_url": base, "headers": {**agent, **bearer, **(headers or {})}, "limits": limits, **verify}


def request(http: Http, call: Call) -> httpx.Request:
    """One picture is the body itself; several are the `image` parts of a multipart form. Raises ModelNotFound."""
    headers = {"Accept": f"image/{call.picture_type}" if call.what == "annotate" else "application/json"}
    shared: dict[str, Any] = {"params": _query(call), "headers": headers, "timeout": call.timeout}
    if len(call.pictures) == 1:
        headers["Content-Type"] = call.pictures[0].media_type
        shared["content"] = call.pictures[0].data
    elif call.pictures:
        shared["files"] = [("image", ("picture", part.data, part.media_type)) for part in call.pictures]
    return http.build_request("POST" if call.pictures else "GET", _path(call), **shared)


def answer(call: Call, response: httpx.Response) -> Answer | Refusal:
    return read(call, Response(response.status_code, dict(response.headers), response.content))


def _query(call: Call) -> dict[str, str]:
    return {name: _written(value) for name, value in call.told().items()}


def _written(value: Any) -> str:
    """A value of an option as it stands in a URL: classes with commas between, true and false in lower case."""
    if isinstance(value, (tuple, bool)):
        return ",".join(value) if isinstance(value, tuple) else str(value).lower()
    return str(value)


def _path(call: Call) -> str:
    match call.what:
        case "live" | "ready":
            return f"/health/{call.what}"
        case "models":
            return "/v1/models"
    if call.model in ("", ".", ".."):
        raise errors.ModelNotFound(f"no model can be called {call.model!r}")
    model = f"/v1/models/{quote(call.model, safe='')}"
    return model if call.what == "model" else f"{model}/predict"


@contextmanager
def translated(http: Http, call: Call) -> Iterator[None]:
    """httpx's errors become ours, with what to do about them."""
    url = str(http.base_url.copy_with(userinfo=b"")).rstrip("/")  # no passwords in messages
    try:
        yield
    except httpx.TimeoutException as error:
        raise errors.DeadlineExceeded(
            f"no answer from {url} within {call.timeout:.3g} s", hint="the client's own limit: timeout=..."
        ) from error
    except httpx.ConnectError as error:
        raise errors.ConnectionFailed(
            f"nothing answers at {url}: {error}", hint="is the server running, and is this its address?", sent=False
        ) from error
    except httpx.HTTPError as error:
        raise errors.ConnectionFailed(
            f"the connection to {url} broke off: {str(error) or type(error).__name__}",
            hint="the server may have stopped, or refused a body of this size; its log tells",
        ) from error
