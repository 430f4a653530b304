"""HTTP responses become answers or errors: the last step of a call over HTTP, free of any HTTP library.

A good response is read into values; any other is turned back into the class of `visionpool.errors` that the
server raised, by its `code`. What is not the server's own JSON (a proxy's page, say) is judged by its status.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from visionpool import errors
from visionpool.answers import (
    SOON,
    Answer,
    Health,
    ModelInfo,
    Picture,
    Prediction,
    Refusal,
    check_count,
    error_from,
    unreadable,
)
from visionpool.protocol import Call
from visionpool.results import result_from_dict


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response, read to its end. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


_BY_STATUS: dict[int, type[errors.VisionpoolError]] = {
    401: errors.Unauthenticated,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    408: errors.RequestTimeout,
    413: errors.TooLarge,
    415: errors.UnsupportedMedia,
    429: errors.QueueFull,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unavailable,  # a proxy's; the server's own has the code deadline_exceeded
}
_SERVER_GONE = (502, 503)  # what a balancer says, without a word of ours: the next request may go to another
_NO_SERVER = "is this the address of a visionpool server, and is no proxy in the way?"
_HINTS = {401: "pass api_key=... to the client", 403: "is the api_key the right one?"}


def read(call: Call, response: Response) -> Answer | Refusal:
    """What `response` says to `call`. Raises ServiceError where a good one does not make sense."""
    if call.what in ("live", "ready"):
        return Health(response.status == 200, f"/health/{call.what} answers {response.status}")
    if not 200 <= response.status < 300:
        return _refusal(response)
    match call.what:
        case "predict":
            return _prediction(response, len(call.pictures))
        case "annotate":
            return _picture(response)
        case "models":
            return _models(response)
    return _model(response)


def _prediction(response: Response, pictures: int) -> Prediction:
    data = _read_json(response)
    try:
        prediction = Prediction(
            model=str(data["model"]),
            version=str(data.get("version", "")),
            results=tuple(result_from_dict(item) for item in data["results"]),
            timings_ms=dict(data.get("timings_ms") or {}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(error) from error
    check_count(len(prediction.results), pictures)
    return prediction


def _models(response: Response) -> list[ModelInfo]:
    data = _read_json(response)
    try:
        return [ModelInfo.from_dict(item) for item in data["models"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise unreadable(error) from error


def _model(response: Response) -> ModelInfo:
    data = _read_json(response)
    try:
        return ModelInfo.from_dict(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise unreadable(error) from error


def _picture(response: Response) -> Picture:
    if not response.headers.get("content-type", "").startswith("image/"):
        raise errors.ServiceError(f"expected a picture, the server {_described(response)}", hint=_NO_SERVER)
    return Picture(response.body)


def _refusal(response: Response) -> Refusal:
    """What a response other than 2xx stands for."""
    told, asked = _told(response), _retry_after(response)
    foreign = "", f"the server {_described(response)}", _HINTS.get(response.status, _NO_SERVER)
    code, message, hint = told or foreign
    error = error_from(code, message, hint, retry_after=asked, otherwise=_kind_by_status(response.status))
    if told is None and asked is None and response.status in _SERVER_GONE:
        return Refusal(error, SOON, broke=True)
    return Refusal(error, _pause(response))


def _told(response: Response) -> tuple[str, str, str | None] | None:
    """Code, message and hint of an error of ours, None where the answer is another's."""
    try:
        told = json.loads(response.body)["error"]
        code, message, hint = str(told["code"]), str(told["message"]), told.get("hint")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return code, message, str(hint) if hint else None


def _pause(response: Response) -> float | None:
    """Seconds after which to ask again, None where it is of no use."""
    asked = _retry_after(response)
    if response.status == 429:
        return 1.0 if asked is None else asked
    return asked if response.status == 503 else None


def _retry_after(response: Response) -> float | None:
    """Seconds that the server asks to wait, None where it does not (RFC 9110, 10.2.3: number or date)."""
    value = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        return _seconds_until(value, response.headers.get("date", ""))
    return max(seconds, 0.0) if seconds < float("inf") else None  # not so for nan, too


def _seconds_until(date: str, now: str) -> float | None:
    from email.utils import parsedate_to_datetime

    try:
        then = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    try:
        start = parsedate_to_datetime(now).timestamp()  # by the server's clock, which may differ from ours
    except ValueError:
        start = time.time()
    return max(then - start, 0.0)


def _kind_by_status(status: int) -> type[errors.VisionpoolError]:
    return _BY_STATUS.get(status) or (errors.RequestError if 400 <= status < 500 else errors.ServiceError)


def _read_json(response: Response) -> Any:
    try:
        return json.loads(response.body)
    except ValueError as error:
        message = f"expected JSON, the server {_described(response)}"
        raise errors.ServiceError(message, hint=_NO_SERVER) from error


def _described(response: Response) -> str:
    """Such as `answered 502 (text/html): '<html>Bad Gateway</html>'`."""
    kind = response.headers.get("content-type", "no content type").partition(";")[0]
    where = f" pointing to {response.headers['location']}" if "location" in response.headers else ""
    start = " ".join(response.body[:400].decode("utf-8", "replace").split())[:120]
    text = f": {start!r}" if start and (kind.startswith("text/") or kind.endswith("json")) else ""
    return f"answered {response.status} ({kind}){where}{text}"
