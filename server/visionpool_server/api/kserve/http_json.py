"""JSON as the routes of KServe v2 read and write it: checked by hand, and protobuf messages in Triton's form."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from visionpool.errors import InvalidRequest

from visionpool_server.api.kserve.messages import NO_PARAMETERS, Parameters

T = TypeVar("T")
_SCALARS = {bool, int, float, str}
_NAMES: dict[type, str] = {
    **{dict: "an object", list: "a list", str: "a string"},
    **{bool: "a boolean", int: "an integer", float: "a number", type(None): "null"},
}
_NOT_NUMBERS = (b"NaN", b"Infinity")


def loads_object(data: bytes | memoryview) -> dict[str, Any]:
    """A JSON object. Raises InvalidRequest."""
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}", hint=_hint(bytes(data))) from error
    if type(said) is not dict:
        raise InvalidRequest(f"the body is {kind_of(said)} of JSON, and has to be an object")
    return said


def typed(said: Mapping[str, Any], key: str, kind: type[T], where: str) -> T | None:
    """The value of `key`; None where it is absent or null. Raises InvalidRequest for one of another type."""
    value = said.get(key)
    if value is None:
        return None
    if type(value) is not kind:
        raise InvalidRequest(f"{where}: {key} is {kind_of(value)}, and has to be {_NAMES[kind]}")
    return value


def parameters_of(said: Mapping[str, Any], where: str) -> Parameters:
    """Raises InvalidRequest for what is no object, or holds more than strings, numbers and booleans."""
    parameters = typed(said, "parameters", dict, where)
    if not parameters:
        return NO_PARAMETERS
    for name, value in parameters.items():
        if type(value) not in _SCALARS:
            raise InvalidRequest(
                f"{where}: parameter {name[:80]!r} is {kind_of(value)}", hint="use strings, numbers and booleans"
            )
    return parameters


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    return _NAMES[type(value)]


def plain(message: Message, *, complete: bool = False) -> dict[str, Any]:
    """A message as Triton writes it in JSON: the proto's names, 64-bit integers as numbers, enumerations by name.

    Scalars, lists and maps are there even where they are empty; `complete`: messages too.
    """
    return {
        field.name: _value(field, getattr(message, field.name), complete)
        for field in message.DESCRIPTOR.fields
        if complete or not field.has_presence or message.HasField(field.name)
    }


def _value(field: FieldDescriptor, value: Any, complete: bool) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        inner = kind.fields_by_name["value"]
        return {str(key): _single(inner, value[key], complete) for key in value}
    if field.is_repeated:
        return [_single(field, one, complete) for one in value]
    return _single(field, value, complete)


def _single(field: FieldDescriptor, value: Any, complete: bool) -> Any:
    if field.message_type is not None:
        return plain(value, complete=complete)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _hint(data: bytes) -> str | None:
    if any(word in data for word in _NOT_NUMBERS):
        return "JSON has neither NaN nor Infinity: send them as binary data"
    return None
