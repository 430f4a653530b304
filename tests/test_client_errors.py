"""Both clients against a real socket that misbehaves: errors, retries, budgets, broken connections."""

from __future__ import annotations

import io
import json
import time
from email.utils import formatdate
from typing import Any

import pytest
import visionpool
from visionpool import errors, operations
from visionpool.http_answers import Response, read
from visionpool.protocol import Call, Done, Load, Patience, Pause, advance

from tests.scripted_server import (
    JPEG,
    RESULT,
    Connect,
    FakeServer,
    Reply,
    bad,
    busy,
    good,
    page,
)


@pytest.mark.parametrize("kind", errors.subclasses(), ids=lambda kind: kind.code)
def test_every_error_of_the_server_comes_back_as_its_class(
    server: FakeServer, connect: Connect, kind: type[errors.VisionpoolError]
) -> None:
    server.script = [bad(500, kind.code, hint="do this")]
    with pytest.raises(errors.VisionpoolError) as caught:
        connect(server.url).predict("m", JPEG)
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == (f"it is {kind.code}", "do this")


@pytest.mark.parametrize(("status", "kind"), [(418, errors.RequestError), (599, errors.ServiceError)])
def test_an_error_of_a_newer_server_is_judged_by_its_status(
    server: FakeServer, connect: Connect, status: int, kind: type[errors.VisionpoolError]
) -> None:
    server.script = [bad(status, "from_the_future")]
    with pytest.raises(kind, match="it is from_the_future") as caught:
        connect(server.url).predict("m", JPEG)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (502, errors.Unavailable, "no proxy in the way"),
        (503, errors.Unavailable, "no proxy in the way"),
        (500, errors.ServiceError, "no proxy in the way"),
        (413, errors.TooLarge, "no proxy in the way"),
        (404, errors.NotFound, "address of a visionpool server"),
        (401, errors.Unauthenticated, "api_key"),
        (200, errors.ServiceError, "address of a visionpool server"),
    ],
)
def test_a_page_of_a_proxy_is_an_error_that_shows_it(
    server: FakeServer, connect: Connect, status: int, kind: type[errors.VisionpoolError], hint: str
) -> None:
    server.script = [page(status)]
    with pytest.raises(kind, match=hint) as caught:
        connect(server.url).models()
    assert type(caught.value) is kind
    assert f"answered {status} (text/html): '<html> <h1>No way</h1></html>'" in caught.value.message


def test_a_redirect_is_an_error_that_says_where_to(server: FakeServer, connect: Connect) -> None:
    server.script = [page(307, Location="https://elsewhere/")]
    with pytest.raises(errors.ServiceError, match=r"answered 307 .* pointing to https://elsewhere/"):
        connect(server.url).predict("m", JPEG)


@pytest.mark.parametrize(
    "body",
    [
        {"results": [RESULT.to_dict()]},
        {"model": "m", "results": None},
        {"model": "m", "results": [{"type": "hologram"}]},
        {"model": "m", "results": [7]},
        {"model": "m", "results": []},
        [],
        {"models": [{}]},
    ],
)
def test_an_answer_that_makes_no_sense_is_a_service_error(server: FakeServer, connect: Connect, body: Any) -> None:
    server.script = [Reply(body=json.dumps(body).encode())]
    client = connect(server.url)
    with pytest.raises(errors.ServiceError):
        client.predict("m", JPEG)
    with pytest.raises(errors.ServiceError):
        client.models()
    with pytest.raises(errors.ServiceError):
        client.model("m")


def test_a_busy_server_is_asked_again_with_the_same_bytes(server: FakeServer, connect: Connect) -> None:
    server.script = [busy("0.05"), bad(503, "unavailable", Retry_After="0"), good()]
    started = time.monotonic()
    assert connect(server.url).predict("m", io.BytesIO(JPEG), timeout=20.0) == RESULT
    assert time.monotonic() - started >= 0.05
    assert [request.body for request in server.requests] == [JPEG] * 3
    left = [int(request.query["timeout_ms"][0]) for request in server.requests]
    assert left == sorted(left, reverse=True)
    assert left[0] - left[2] >= 50


def test_retries_end_with_the_last_error(server: FakeServer, connect: Connect) -> None:
    server.script = [busy("0.01"), busy("0.02"), busy("0.03")]
    with pytest.raises(errors.QueueFull, match="it is queue_full") as caught:
        connect(server.url, retries=2).predict("m", JPEG)
    assert caught.value.retry_after == 0.03
    assert len(server.requests) == 3


def test_a_wait_beyond_the_budget_is_not_begun(server: FakeServer, connect: Connect) -> None:
    server.script = [busy("120")]
    started = time.monotonic()
    with pytest.raises(errors.QueueFull) as caught:
        connect(server.url, timeout=5).predict("m", JPEG)
    assert caught.value.retry_after == 120.0
    assert time.monotonic() - started < 4
    assert len(server.requests) == 1


@pytest.mark.parametrize("reply", [bad(503, "unavailable"), bad(504, "deadline_exceeded"), bad(500, "internal_error")])
def test_other_failures_are_not_retried(server: FakeServer, connect: Connect, reply: Reply) -> None:
    server.script = [reply, good()]
    with pytest.raises(errors.ServiceError):
        connect(server.url).predict("m", JPEG)
    assert len(server.requests) == 1


@pytest.mark.parametrize("gone", [Reply(0), page(502), page(503)], ids=["it hangs up", "502", "503"])
def test_another_server_is_asked_in_place_of_one_that_is_gone(
    server: FakeServer, connect: Connect, gone: Reply
) -> None:
    server.script = [gone, good()]
    assert connect(server.url).predict("m", io.BytesIO(JPEG)) == RESULT
    assert [request.body for request in server.requests] == [JPEG] * 2


def test_a_request_with_which_two_servers_went_away_is_not_sent_to_a_third(
    server: FakeServer, connect: Connect
) -> None:
    server.script = [Reply(0), busy("0.01"), Reply(0), good()]
    with pytest.raises(errors.ConnectionFailed, match=r"broke off: .+its log tells") as caught:
        connect(server.url, retries=9).predict("m", JPEG)
    assert caught.value.sent
    assert len(server.requests) == 3


@pytest.mark.parametrize("gone", [Reply(0), page(502)], ids=["it hangs up", "502"])
def test_without_retries_a_server_that_is_gone_is_an_error_at_once(
    server: FakeServer, connect: Connect, gone: Reply
) -> None:
    server.script = [gone, good()]
    with pytest.raises((errors.ConnectionFailed, errors.Unavailable)):
        connect(server.url, retries=0).predict("m", JPEG)
    assert len(server.requests) == 1


def test_a_server_that_comes_back_in_time_is_reached() -> None:
    steps = operations.models(Patience(timeout=30.0, retries=3))
    nobody = errors.ConnectionFailed("nothing answers", sent=False)
    advance(steps, None)
    for _ in range(3):  # nothing was sent: it can be tried as often as the caller likes
        pause = advance(steps, nobody)
        assert isinstance(pause, Pause) and 0 < pause.seconds < 0.5
        assert isinstance(advance(steps, None), Call)
    assert advance(steps, []) == Done([])


def test_nothing_listening_is_said_with_the_address(connect: Connect, free_port: int) -> None:
    with pytest.raises(
        errors.ConnectionFailed, match=rf"nothing answers at http://127.0.0.1:{free_port}: .*running"
    ) as caught:
        connect(f"http://name:secret@127.0.0.1:{free_port}").predict("m", JPEG)
    assert not caught.value.sent


def test_a_name_that_does_not_resolve_is_a_failed_connection(connect: Connect) -> None:
    with pytest.raises(errors.ConnectionFailed, match=r"nothing answers at http://nowhere\.invalid"):
        connect("http://nowhere.invalid").predict("m", JPEG)


def test_a_slow_server_is_left_at_the_clients_own_limit(server: FakeServer, connect: Connect) -> None:
    server.script = [Reply(wait=10.0)]
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match="client's own limit"):
        connect(server.url).predict("m", JPEG, timeout=0.2)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({}, 1.0, 1.2),
        ({"retry-after": "2"}, 2.0, 2.4),
        ({"retry-after": "soon"}, 1.0, 1.2),
        ({"retry-after": "nan"}, 1.0, 1.2),
        ({"retry-after": "-3"}, 0.02, 0.024),
        ({"retry-after": formatdate(1000.0, usegmt=True), "date": formatdate(993.0, usegmt=True)}, 7.0, 8.4),
        ({"retry-after": formatdate(1000.0, usegmt=True)}, 0.02, 0.024),
    ],
)
def test_the_pause_is_what_the_server_asks_for(headers: dict[str, str], low: float, high: float) -> None:
    steps = operations.predict("m", JPEG, {}, Patience(timeout=30.0, retries=1))
    assert isinstance(advance(steps, None), Load)
    call = advance(steps, visionpool.pictures.load(JPEG))
    assert isinstance(call, Call)
    refusal = read(call, Response(429, headers, b""))
    pause = advance(steps, refusal)
    assert isinstance(pause, Pause)
    assert low <= pause.seconds <= high
    assert isinstance(advance(steps, None), Call)
    with pytest.raises(errors.QueueFull):
        advance(steps, refusal)
