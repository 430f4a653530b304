"""The processes that benchmarks start: real servers, and what they are compared with. All are stopped in the end."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 40


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens, as host:port."""

    http: str
    grpc: str


@contextmanager
def process(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m MODULE ARGUMENTS`, with pipes to its stdin and from its stdout."""
    command = [sys.executable, "-m", module, *arguments]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(STOP_SECONDS)
        for pipe in (started.stdin, started.stdout):
            if pipe:
                pipe.close()


def said(started: subprocess.Popen[str], pattern: str) -> str:
    """The first group of the first line that matches. Raises RuntimeError where the process ends without one."""
    assert started.stdout is not None
    for line in started.stdout:
        if found := re.search(pattern, line):
            return found[1]
    raise RuntimeError(f"{started.args!r} ended with {started.wait()} before it said {pattern!r}")


@contextmanager
def visionpool(model: Path) -> Iterator[Addresses]:
    """`visionpool serve` with default settings, ready."""
    ports = ("--http-port", "0", "--grpc-port", "0")
    with process("visionpool", "serve", str(model), *ports, "--log-level", "warning") as server:
        yield Addresses(http=said(server, r"ready at http://(\S+)"), grpc=said(server, r"gRPC +(\S+)"))


@contextmanager
def bare(kind: str, *options: str) -> Iterator[str]:
    """A server of benchmarks.bare, ready; its host:port."""
    with process("benchmarks.bare", kind, *options) as server:
        yield said(server, r"ready at (\S+)")
