"""Replicas behind HAProxy, with the configuration that users are given, and behind nginx: told to stop, killed and added while
clients of every kind ask. `python -m benchmarks.replicas` does the same at length, and prints what it measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection

import pytest

from benchmarks.balanced.balancer import installed
from benchmarks.balanced.callers import PATIENT, PLAIN
from benchmarks.balanced.fleet import Replica
from benchmarks.balanced.load import Outcome
from benchmarks.balanced.stage import Stage, stage
from tests.deploy.docker_daemon import Docker

BOUND = 60.0  # seconds that anything here may take at most
# HAProxy 2.6 cuts the end off an answer now and then, where a server closes a connection for its age.
CUT_OFF = "UNKNOWN: Stream removed"
THROUGH_BALANCER = tuple(way for way in (*PATIENT, *PLAIN) if "dns" not in way)


@pytest.fixture(params=["processes", "containers"])
def image(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What the replicas are made of; None: processes."""
    needs("haproxy")
    if request.param == "processes":
        return None
    docker: Docker = request.getfixturevalue("docker")
    monkeypatch.setenv("DOCKER_HOST", docker.environment["DOCKER_HOST"])
    built: str = request.getfixturevalue("cpu_image")
    return built


def needs(balancer: str) -> None:
    if not installed(balancer):
        pytest.skip(f"{balancer} is not installed (Debian's package of that name)")


def until(done: Callable[[], bool]) -> None:
    """Requests go on all the time; there is no event for what becomes of all of them."""
    end = time.monotonic() + BOUND
    while not done():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


@contextmanager
def asked_once(replica: Replica) -> Iterator[HTTPConnection]:
    """A connection that has had an answer, and is not used."""
    with closing(HTTPConnection(replica.address, replica.ports.http, timeout=10)) as connection:
        connection.request("GET", "/health/live")
        connection.getresponse().read()
        yield connection


def all_are_asked(on: Stage, ways: Sequence[str] = (*PATIENT, *PLAIN)) -> None:
    """Until each way to ask has had an answer from each replica that is there now, and one more."""
    since = time.monotonic()
    wanted = {(way, replica.name) for way in ways for replica in on.up}
    until(lambda: wanted <= {(one.way, one.replica) for one in on.load.answered(since)})


def failed(on: Stage, ways: Sequence[str], since: float = 0.0) -> list[Outcome]:
    return [one for one in list(on.load.outcomes) if one.error and one.way in ways and one.done >= since]


def test_replicas_come_and_go_and_no_request_of_our_clients_fails(image: str | None) -> None:
    with stage(each=2, latency_ms=20, image=image) as on, asked_once(on.up[0]) as idle:
        all_are_asked(on)
        on.grow(2)
        all_are_asked(on)
        assert not failed(on, PATIENT)

        stopped = time.monotonic()
        on.stop()
        all_are_asked(on)
        assert on.statuses == [0]
        assert not [one for one in failed(on, PLAIN, stopped) if CUT_OFF not in str(one.error)]

        on.kill()
        all_are_asked(on)
        on.grow(1)
        all_are_asked(on, THROUGH_BALANCER)
        idle.request("GET", "/health/live")  # long after the first: balancers keep connections, too
        assert idle.getresponse().status == 200
    assert not failed(on, PATIENT)
    assert not [one for one in failed(on, PLAIN) if "WrongAnswer" in str(one.error)]


def test_nginx_sends_what_a_killed_replica_had_to_another() -> None:
    needs("nginx")
    with stage(each=2, latency_ms=20, behind="nginx") as on:
        all_are_asked(on, THROUGH_BALANCER)
        on.kill()
        all_are_asked(on, THROUGH_BALANCER)
        stopped = time.monotonic()
        on.stop()
        all_are_asked(on, THROUGH_BALANCER)
    assert on.statuses == [0]
    assert not failed(on, (*PATIENT, "httpx"))
    assert not failed(on, ("grpcio",), stopped)
