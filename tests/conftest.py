"""Fixtures for all tests: the shared pictures and models, and real server processes."""

from __future__ import annotations

import gc
import locale
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests import scripted_server
from tests.ort_sessions import keep_sessions_from_spinning
from tests.real_server import Server, serving, write_model
from tests.scripted_server import Connect, FakeServer

keep_sessions_from_spinning()


def pytest_collection_finish() -> None:
    """What thousands of tests and their modules are made of stays; each model that is closed has the rest collected, and
    would look at all of it again."""
    gc.collect()
    gc.freeze()


class Serve(Protocol):
    """`serve("models/", "--workers", 2)`: a real server, ready; stopped, and its exit status checked, by the fixture."""

    def __call__(self, *arguments: object, environment: dict[str, str] | None = None, ready: bool = True) -> Server: ...


@pytest.fixture(autouse=True)
def _process_left_as_it_was() -> Iterator[None]:
    """No test, and no library that it calls, may leave the log or the locale another for the tests that follow; what
    servers and libraries of whole modules did to the log is undone before each."""
    _restore_log()
    before = _process_state()
    yield
    assert _process_state() == before


def _restore_log() -> None:
    logging.disable(logging.NOTSET)  # which also forgets what loggers remember of their levels
    logging.root.setLevel(logging.WARNING)
    for handler in logging.root.handlers:
        handler.filters.clear()
        handler.setLevel(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("visionpool_server") and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.filters.clear()
            logger.setLevel(logging.NOTSET)


def _process_state() -> dict[str, object]:
    ours = logging.getLogger("visionpool_server")
    loggers = [logger for name, logger in logging.root.manager.loggerDict.items() if name.startswith(ours.name)]
    return {
        "encoding": locale.getpreferredencoding(False),
        "logging.disable": logging.root.manager.disable,
        "level": (ours.level, ours.propagate, ours.filters[:]),
        "disabled": [logger.name for logger in loggers if isinstance(logger, logging.Logger) and logger.disabled],
    }


@pytest.fixture(scope="session")
def testdata() -> Path:
    """Shared real pictures and models, where this machine has them."""
    said = os.environ.get("VISIONPOOL_TESTDATA")
    if not said:
        pytest.skip("VISIONPOOL_TESTDATA does not say where the real pictures and models are")
    folder = Path(said)
    if not folder.is_dir():
        pytest.fail(f"VISIONPOOL_TESTDATA={said} is not a folder")
    return folder


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts real `visionpool serve ... --http-port 0 --grpc-port 0` processes; all are stopped in the end, and
    must exit with 0."""
    with ExitStack() as stack:

        def start(*arguments: object, environment: dict[str, str] | None = None, ready: bool = True) -> Server:
            return stack.enter_context(serving(*arguments, environment=environment, ready=ready))

        yield start


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for tests that only ask: the fake model `colours`, its labels red, green and blue."""
    with serving(write_model(tmp_path_factory.mktemp("shared") / "colours")) as server:
        yield server


@pytest.fixture(scope="session")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with tight limits (1 MiB and 1.5 s for a body, a million pixels) and models that misbehave:

    `colours` is good; `narrow` takes 0.4 s and has two places, `late` gives up before it answers, `failing` fails on
    pictures of pure red (250, 0, 0).
    """
    folder = tmp_path_factory.mktemp("strict")
    narrow = {"workers": 1, "batching": {"max_batch_size": 1, "max_queue_size": 1}}
    write_model(folder / "colours")
    write_model(folder / "narrow", {"latency_ms": 400}, **narrow)
    write_model(folder / "late", {"latency_ms": 1000}, batching={"timeout_ms": 100})
    write_model(folder / "failing", {"fail": [250, 0, 0]})
    limits = ("--max-body-mb", 1, "--body-timeout", 1.5, "--max-pixels", 1_000_000)
    with serving(folder, *limits) as server:
        yield server


@pytest.fixture(scope="session")
def demo_server() -> Iterator[Server]:
    """A server started without arguments: the embedded demo models."""
    with serving() as server:
        yield server


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that answers by a script, for the clients' tests."""
    with scripted_server.serving() as fake:
        yield fake


@pytest.fixture(params=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Both clients, asked in the same way."""
    with scripted_server.connecting(request.param) as make:
        yield make


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
