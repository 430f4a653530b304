"""What a call gives, whatever carried it: values, or the server's refusal as the error that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from visionpool import errors
from visionpool.results import Result


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


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture that the server made."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a health check says yes, and its words."""

    good: bool
    said: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server's no. `retry_after`: seconds after which the same request may succeed, None where that is of no use.
    `broke`: it was no answer, a server went away while it may have had the request."""

    error: errors.VisionpoolError
    retry_after: float | None = None
    broke: bool = False


Answer: TypeAlias = Prediction | Picture | list[ModelInfo] | ModelInfo | Health

SOON = 0.05  # seconds after which another server may answer in place of one that is gone

_BY_CODE = {kind.code: kind for kind in errors.subclasses()}


def error_from(
    code: str,
    message: str,
    hint: str | None,
    *,
    retry_after: float | None = None,
    otherwise: type[errors.VisionpoolError] = errors.ServiceError,
) -> errors.VisionpoolError:
    """The error that the server raised, by its `code`; of the class `otherwise` where this version does not know it."""
    kind = _BY_CODE.get(code, otherwise)
    if issubclass(kind, errors.QueueFull) and retry_after is not None:
        return kind(message, hint=hint, retry_after=retry_after)
    return kind(message, hint=hint)


def unreadable(error: Exception) -> errors.ServiceError:
    """For an answer that does not make sense."""
    message = f"the server's answer cannot be read: {type(error).__name__}: {error}"
    return errors.ServiceError(message, hint="is the client too old for this server?")


def check_count(given: int, pictures: int) -> None:
    """Raises ServiceError where there are not as many results as pictures."""
    if given != pictures:
        raise errors.ServiceError(f"the server gave {given} results for {pictures} pictures")
