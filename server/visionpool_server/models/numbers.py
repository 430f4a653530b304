"""Numbers as people write them into YAML: `1/255` is a string there."""

from __future__ import annotations

import re
from typing import Any

from visionpool.errors import InvalidModel

_QUOTIENT = re.compile(r"^\s*([0-9.eE+-]+)\s*/\s*([0-9.eE+-]+)\s*$")


def number(value: Any) -> float:
    """A number, or a string such as `1.0/255.0`. Raises InvalidModel for anything else: nothing is evaluated."""
    try:
        if isinstance(value, (int, float)):
            return float(value)
        if quotient := _QUOTIENT.match(value):
            return float(quotient[1]) / float(quotient[2])
        return float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise InvalidModel(f"{shown(value)} is not a number, nor a quotient of two") from error


def shown(value: Any) -> str:
    """A value for a message: short, and never the whole of a nested one."""
    short = isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < 10**18)
    return repr(value)[:80] if short else f"a {type(value).__name__}"
