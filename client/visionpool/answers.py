"""What the server answers becomes values or errors: the last step of a call, free of any HTTP library.

A good answer is read into results; any other is turned back into the class of `visionpool.errors` that the
server raised, by its `code`. What is not the server's own JSON (a proxy's page, say) is judged by its status.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from visionpool import errors
from visionpool.results import Result, result_from_dict


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response, read to its end. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """All that the server says about one request.

    `results` has one item per picture, in the order they were given; `timings_ms` holds the milliseconds of
    `decode`, `prepare`, `queue`, `infer` and `finish`.
    """

    model: str
    version: str
    results: tuple[Result, ...]
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model. `raw` is everything the server tells of it, also what this class has no field for."""

    name: str
    version: str = ""
    task: str = ""
    family: str = ""
    state: str = ""
    labels: tuple[str, ...] = ()  # the name of class i; the list of all models may leave them out
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelInfo:
        texts = {key: str(data.get(key) or "") for key in ("version", "task", "family", "state")}
        labels = tuple(str(label) for label in data.get("labels") or ())
        return cls(name=str(data["name"]), labels=labels, raw=dict(data), **texts)


_BY_CODE = {kind.code: kind for kind in errors.subclasses()}
_BY_STATUS: dict[int, type[errors.VisionpoolError]] = {
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
_NO_SERVER = "is this the address of a visionpool server, and is no proxy in the way?"
_HINTS = {401: "pass api_key=... to the client", 403: "is the api_key the right one?"}


def read_prediction(answer: Answer, pictures: int) -> Prediction:
    """The answer to a request of so many `pictures`. Raises ServiceError where it does not make sense."""
    data = _read_json(answer)
    try:
        prediction = Prediction(
            model=str(data["model"]),
            version=str(data.get("version", "")),
            results=tuple(result_from_dict(item) for item in data["results"]),
            timings_ms=dict(data.get("timings_ms") or {}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(error) from error
    given = len(prediction.results)
    if given != pictures:
        raise errors.ServiceError(f"the server gave {given} results for {pictures} pictures")
    return prediction


def read_models(answer: Answer) -> list[ModelInfo]:
    """The answer to `GET /v1/models`. Raises ServiceError where it does not make sense."""
    data = _read_json(answer)
    try:
        return [ModelInfo.from_dict(item) for item in data["models"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable(error) from error


def read_model(answer: Answer) -> ModelInfo:
    """The answer to `GET /v1/models/{model}`. Raises ServiceError where it does not make sense."""
    data = _read_json(answer)
    try:
        return ModelInfo.from_dict(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable(error) from error


def read_image(answer: Answer) -> bytes:
    """The bytes of an annotated picture. Raises ServiceError where the server gave something else."""
    if not answer.headers.get("content-type", "").startswith("image/"):
        raise errors.ServiceError(f"expected a picture, the server {_described(answer)}", hint=_NO_SERVER)
    return answer.body


def error_from(answer: Answer) -> errors.VisionpoolError:
    """The error that an answer other than 2xx stands for."""
    try:
        told = json.loads(answer.body)["error"]
        code, message, hint = str(told["code"]), str(told["message"]), told.get("hint")
    except (ValueError, KeyError, TypeError, AttributeError):
        code, message, hint = "", f"the server {_described(answer)}", _HINTS.get(answer.status, _NO_SERVER)
    kind = _BY_CODE.get(code) or _kind_by_status(answer.status)
    return _with_delay(kind, message, str(hint) if hint else None, answer)


def retry_after(answer: Answer) -> float | None:
    """Seconds that the server asks to wait, None where it does not (RFC 9110, 10.2.3: number or date)."""
    value = answer.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        return _seconds_until(value, answer.headers.get("date", ""))
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


def _with_delay(
    kind: type[errors.VisionpoolError], message: str, hint: str | None, answer: Answer
) -> errors.VisionpoolError:
    delay = retry_after(answer)
    if issubclass(kind, errors.QueueFull) and delay is not None:
        return kind(message, hint=hint, retry_after=delay)
    return kind(message, hint=hint)


def _kind_by_status(status: int) -> type[errors.VisionpoolError]:
    return _BY_STATUS.get(status) or (errors.RequestError if 400 <= status < 500 else errors.ServiceError)


def _read_json(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except ValueError as error:
        message = f"expected JSON, the server {_described(answer)}"
        raise errors.ServiceError(message, hint=_NO_SERVER) from error


def _unreadable(error: Exception) -> errors.ServiceError:
    message = f"the server's answer cannot be read: {type(error).__name__}: {error}"
    return errors.ServiceError(message, hint="is the client too old for this server?")


def _described(answer: Answer) -> str:
    """Such as `answered 502 (text/html): '<html>Bad Gateway</html>'`."""
    kind = answer.headers.get("content-type", "no content type").partition(";")[0]
    where = f" pointing to {answer.headers['location']}" if "location" in answer.headers else ""
    start = " ".join(answer.body[:400].decode("utf-8", "replace").split())[:120]
    text = f": {start!r}" if start and (kind.startswith("text/") or kind.endswith("json")) else ""
    return f"answered {answer.status} ({kind}){where}{text}"
