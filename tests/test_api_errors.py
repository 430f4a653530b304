"""The one table from our errors to what each transport says: complete, and never the wrong side's fault."""

from __future__ import annotations

import inspect
import json

import pytest
from visionpool import errors
from visionpool_server.api.errors import STATUS, error_response

GRPC_STATUS_CODES = {
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}  # fmt: skip
ALL = errors.subclasses()
Kind = type[errors.VisionpoolError]


def named(kind: Kind) -> str:
    return kind.__name__


def test_the_tree_has_every_error_of_its_module() -> None:
    defined = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}
    assert defined == set(ALL)


def test_every_error_has_a_status_and_nothing_else_has() -> None:
    assert set(STATUS) == set(ALL)


def test_every_error_has_a_code_of_its_own() -> None:
    assert len({kind.code for kind in ALL}) == len(ALL)


@pytest.mark.parametrize("kind", errors.subclasses(errors.RequestError), ids=named)
def test_a_callers_fault_is_a_4xx(kind: Kind) -> None:
    assert 400 <= STATUS[kind].http < 500
    assert STATUS[kind].grpc not in {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS"}


@pytest.mark.parametrize("kind", [k for k in ALL if not issubclass(k, errors.RequestError)], ids=named)
def test_our_fault_is_never_a_4xx_but_for_a_full_queue(kind: Kind) -> None:
    if kind is errors.QueueFull:
        assert STATUS[kind].http == 429
    else:
        assert 500 <= STATUS[kind].http < 600
    assert STATUS[kind].grpc not in {"INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE"}


@pytest.mark.parametrize("kind", ALL, ids=named)
def test_every_grpc_code_is_a_real_one(kind: Kind) -> None:
    assert STATUS[kind].grpc in GRPC_STATUS_CODES - {"OK"}


@pytest.mark.parametrize("kind", ALL, ids=named)
def test_every_error_becomes_a_response_of_the_one_form(kind: Kind) -> None:
    response = error_response(kind("what is wrong", hint="what to do"))
    assert response.status_code == STATUS[kind].http
    assert response.media_type == "application/json"
    said = json.loads(bytes(response.body))
    assert said == {"error": {"code": kind.code, "message": "what is wrong", "hint": "what to do"}}


@pytest.mark.parametrize(("seconds", "header"), [(0.05, "1"), (1.0, "1"), (1.2, "2"), (59.9, "60")])
def test_retry_after_is_in_whole_seconds_and_never_too_early(seconds: float, header: str) -> None:
    response = error_response(errors.QueueFull("full", retry_after=seconds))
    assert response.headers["retry-after"] == header


@pytest.mark.parametrize("kind", ALL, ids=named)
def test_only_what_passes_by_itself_says_when_to_come_back(kind: Kind) -> None:
    response = error_response(kind("what is wrong"))
    assert ("retry-after" in response.headers) == (kind in {errors.QueueFull, errors.Unavailable})
