"""A real `visionpool serve` process, model folders for the fake backend, and pictures of one colour for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

READY = re.compile(r"visionpool is ready at (https?://[^\s\"]+)")
GRPC = re.compile(r"(?:gRPC +|\"grpc\":\")([^\s\"]+:\d+)")  # as text, or in a line of JSON
START_SECONDS = 90.0
STOP_SECONDS = 40.0
COLOURS = ("red", "green", "blue")


class Server:
    """A server process: `url` and `grpc` (host:port) once it is ready, `log()` all that it has printed so far."""

    def __init__(self, arguments: tuple[object, ...], environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "visionpool", "serve", *map(str, arguments)]
        self.url = ""
        self.grpc = ""
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._lines: list[str] = []
        self._printed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._printed:
                self._lines.append(line)
                self._printed.notify_all()
        with self._printed:
            self._ended = True
            self._printed.notify_all()

    def log(self) -> str:
        with self._printed:
            return "".join(self._lines)

    def wait_for(self, pattern: str | re.Pattern[str], timeout: float = START_SECONDS) -> re.Match[str]:
        """The first match in the log; fails where the process ends, or `timeout` seconds pass, without one."""
        found: re.Match[str] | None = None

        def done() -> bool:
            nonlocal found
            found = re.search(pattern, "".join(self._lines))
            return found is not None or self._ended

        with self._printed:
            self._printed.wait_for(done, timeout)
        if found is None:
            why = f"ended with {self.process.wait(5)}" if self._ended else f"said nothing like that in {timeout:g} s"
            raise AssertionError(f"the server {why}; wanted {pattern!r}, its log:\n{self.log()}")
        return found

    def wait_until_ready(self) -> Server:
        self.url = self.wait_for(READY).group(1)
        self.grpc = self.wait_for(GRPC).group(1)
        return self

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status. One that does not stop is killed, and that is a failure."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(f"the server did not stop on {how.name}; its log:\n{self.log()}") from None
        finally:
            self._close()
        return status

    def _close(self) -> None:
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(*arguments: object, environment: Mapping[str, str] | None = None, ready: bool = True) -> Iterator[Server]:
    """`visionpool serve ARGUMENTS --http-port 0 --grpc-port 0`, stopped by SIGTERM in the end; fails unless it then exits
    with 0."""
    for port in ("--http-port", "--grpc-port"):
        if not any(str(argument).startswith(port) for argument in arguments):
            arguments = (*arguments, port, "0")
    server = Server(arguments, environment or {})
    try:
        if ready:
            server.wait_until_ready()
        yield server
    except BaseException:
        if server.process.poll() is None:
            server.process.kill()
        server.stop()
        raise
    status = server.stop()
    if status != 0:
        raise AssertionError(f"the server ended with {status}; its log:\n{server.log()}")


def write_model(folder: Path, options: Mapping[str, Any] | None = None, **more: Any) -> Path:
    """A model folder for the fake backend, whose `options` are its latency and faults; `more`: keys of model.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "family": "classification",
        "task": "classification",
        "labels": list(COLOURS),
        "input_size": [8, 8],
        "runtime": {"backend": "fake", "options": dict(options or {})},
    }
    (folder / "model.yaml").write_text(yaml.safe_dump({**content, **more}), encoding="utf-8")
    return folder


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (24, 16), kind: str = ".png") -> bytes:
    """A picture file of one RGB colour; `size`: (width, height)."""
    pixels = np.full((size[1], size[0], 3), colour[::-1], np.uint8)
    written, data = cv2.imencode(kind, pixels)
    assert written
    return data.tobytes()


def shares(colour: tuple[int, int, int]) -> dict[str, float]:
    """What the fake backend answers for a picture of this colour: label -> score."""
    return {label: value / sum(colour) for label, value in zip(COLOURS, colour, strict=True)}


def scores(answer: Mapping[str, Any], index: int = 0) -> dict[str, float]:
    """Label -> score of a classification in an answer of `predict`."""
    result = answer["results"][index]
    return dict(zip(result["labels"], result["scores"], strict=True))
