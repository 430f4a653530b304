"""One request and its answer, as those see it who count and log them: what each transport and handler adds, in one place.

A transport makes an `Exchange` when a request comes, puts it into `current`, and has it observed once, when it has ended;
handlers on the way write into it what only they know (`note_model`, `note_error`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

Transport = Literal["http", "grpc"]


@dataclass(slots=True)
class Exchange:
    """`id`: the caller's own (X-Request-ID) or one of ours. `call`: the method and path, or gRPC's full method name.
    `model`: one that is served, else "". `outcome`: "ok", or the code of an error in visionpool.errors. `status`: HTTP's
    number, or the name of gRPC's code. `caller`: the name of the API key, where it has one."""

    id: str
    transport: Transport
    call: str
    peer: str = ""
    model: str = ""
    version: str = ""
    outcome: str = "ok"
    status: int | str = ""
    caller: str = ""
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0  # once it has ended


Observer = Callable[[Exchange], None]
"""Is told of each exchange once, on the event loop, when it has ended: never slow, raises nothing."""

current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def note_model(name: str, version: str = "") -> None:
    """The request is for this model, which is served: names that callers invent must not get here."""
    if exchange := current.get():
        exchange.model, exchange.version = name, version


def note_error(code: str) -> None:
    """It ends with this error."""
    if exchange := current.get():
        exchange.outcome = code
