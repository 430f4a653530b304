"""The name of a request, in every line of the log that it causes and in its answer; and that of the trace it belongs to."""

from __future__ import annotations

import re
from random import Random

HEADER = "x-request-id"  # as HTTP's header and in gRPC's metadata
TRACE_HEADER = "traceparent"

_GIVEN = re.compile(r"[A-Za-z0-9._~:/+=@,-]{1,128}")  # nothing that could end a line, a field or a header
_TRACE = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.DOTALL)
_random = Random()  # noqa: S311  a name has to be unlike others, not secret; asking the system for each costs tenfold


def request_id(given: str | None = None) -> str:
    """The caller's own where it may be one, else a new one: 32 hexadecimal digits."""
    if given and _GIVEN.fullmatch(given):
        return given
    return f"{_random.getrandbits(128):032x}"


def trace_id(traceparent: str) -> str:
    """The trace of a `traceparent` header (W3C Trace Context, 3.2); "" for one that is not valid."""
    found = _TRACE.fullmatch(traceparent)
    if found is None or (found[1] == "00" and found[4]):
        return ""
    return found[2] if found[2].strip("0") and found[3].strip("0") else ""
