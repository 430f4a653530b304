"""What a client does, without doing any of it: each call is a generator that asks a driver for what it needs.

    operation --Load | Call | Pause---------> driver (visionpool.calls: one that blocks, one that awaits)
    operation <--Encoded | Answer | Refusal-- driver, or the VisionpoolError that it met

So retries, budgets and errors are written once for all clients, and need no socket to be tested. What a `Call` and its
answer look like on the wire is the transports' affair: `transport` and `http_answers`, `grpc_transport`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from visionpool import errors
from visionpool.answers import SOON, Answer, Refusal
from visionpool.pictures import Color, Encoded, Picture

T = TypeVar("T")
_SERVERS_TO_BREAK = 2  # that may go away with a request, before it counts as what brings them down


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one call may take altogether, in seconds, and how often it comes back to a server that is busy or gone."""

    timeout: float = 30.0
    retries: int = 3

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise errors.InvalidOption(f"a timeout of {self.timeout} s is no time", hint="it must be above 0")
        if self.retries < 0:
            raise errors.InvalidOption(f"{self.retries} retries make no sense", hint="0 turns them off")


@dataclass(frozen=True, slots=True)
class Load:
    """Asks for `pictures.load(picture, color=color)`: it reads files, so it is the driver's."""

    picture: Picture
    color: Color


@dataclass(frozen=True, slots=True)
class Call:
    """Asks for one exchange with the server, `what`, within `timeout` seconds.

    `options` are those that the server reads: numbers, and `classes` as a tuple of texts.
    """

    what: Literal["predict", "annotate", "models", "model", "live", "ready"]
    model: str = ""
    pictures: tuple[Encoded, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    picture_type: Literal["jpeg", "png"] = "jpeg"  # what `annotate` gives
    timeout: float = 30.0
    tell_timeout: bool = False  # whether the server is told of `timeout`

    def told(self) -> dict[str, Any]:
        """The options, with the time that is left where the server is to know. It refuses a `timeout_ms` of 0."""
        timeout = {"timeout_ms": max(1, round(self.timeout * 1000))} if self.tell_timeout else {}
        return {**self.options, **timeout}


@dataclass(frozen=True, slots=True)
class Pause:
    """Asks to be resumed after `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The operation is over, and this is what it gives."""

    value: T


Command: TypeAlias = Load | Call | Pause
Reply: TypeAlias = Encoded | Answer | Refusal | errors.VisionpoolError | None
Steps: TypeAlias = Generator[Command, Reply, T]


def advance(steps: Steps[T], reply: Reply) -> Command | Done[T]:
    """Hands `reply` to the operation (None at first), gives what it asks for next, raises what it raises."""
    try:
        return steps.throw(reply) if isinstance(reply, Exception) else steps.send(reply)
    except StopIteration as stop:
        return Done(stop.value)


def ask(call: Call, patience: Patience, kind: type[T]) -> Steps[T]:
    """The good answer to `call`, a `kind`. A busy server is asked again when it says, one that is gone soon, while
    `patience` lasts: no call changes anything, so that it may run twice."""
    deadline = time.monotonic() + patience.timeout
    broken = 0  # so many servers went away with this request
    for attempt in count():
        answer = yield from _attempt(replace(call, timeout=bounded(deadline, patience.timeout)))
        if not isinstance(answer, Refusal):
            assert isinstance(answer, kind)
            return answer
        broken += answer.broke
        pause = _pause_before_retry(answer, attempt, broken)
        if pause is None or attempt >= patience.retries or time.monotonic() + pause >= deadline:
            raise answer.error
        yield Pause(pause)
    raise AssertionError("count() never ends")


def _attempt(call: Call) -> Steps[Reply]:
    """What one exchange gives. A failed connection is a refusal: another server may have taken the place of that one."""
    try:
        return (yield call)
    except errors.ConnectionFailed as error:
        return Refusal(error, SOON, broke=error.sent)


def _pause_before_retry(refusal: Refusal, attempt: int, broken: int) -> float | None:
    """Seconds to wait before asking again, None where it is of no use.

    A request with which two servers went away is not sent to a third: it may be what brings them down.
    """
    if refusal.retry_after is None or broken >= _SERVERS_TO_BREAK:
        return None
    seconds: float = max(refusal.retry_after, 0.02 * 2.0**attempt)
    # Never earlier than asked, and not all at once: who was turned away together would return together.
    return seconds * random.uniform(1.0, 1.2)  # noqa: S311 - spreads load, protects nothing


def bounded(deadline: float, limit: float) -> float:
    """Seconds until `deadline`, at most `limit`, and never none: an HTTP library takes 0 for a mistake."""
    return max(min(deadline - time.monotonic(), limit), 0.001)
