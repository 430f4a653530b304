"""A balancer in front of replicas: HAProxy, with the very file that users are given."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.balanced.fleet import Ports, free_ports

CONFIGURATION = Path(__file__).parents[2] / "examples" / "haproxy" / "haproxy.cfg"
NEEDED = "HAProxy is not installed (Debian: haproxy)"
_STOP_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Balancer:
    """`http` is its URL, `grpc` host and port; `log` is what it has written."""

    http: str
    grpc: str
    log: Path = field(repr=False)

    def changes(self) -> list[str]:
        """Servers that came and went, in its words."""
        return re.findall(r"Server (\S+ is (?:UP|DOWN|going DOWN|MAINT)[^.]*)", self.log.read_text("utf-8", "replace"))


def installed() -> str | None:
    """Where HAProxy is; Debian keeps it where only root looks."""
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def haproxy(folder: Path, replicas: str, dns: str, theirs: Ports) -> Iterator[Balancer]:
    """HAProxy for all that `replicas`, a name, stands for, as `dns` (host:port) says. It listens on 127.0.0.1."""
    program = installed()
    if not program:
        raise RuntimeError(NEEDED)
    ours, log = free_ports(), folder / "haproxy.log"
    text = CONFIGURATION.read_text("utf-8")
    # The ports of the replicas and its own are the same variables, and free ones differ here.
    text = text.replace('"${LISTEN}:${HTTP}"', f'"127.0.0.1:{ours.http}"')
    text = text.replace('"${LISTEN}:${GRPC}"', f'"127.0.0.1:{ours.grpc}"')
    (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
    environment = {**os.environ, "REPLICAS": replicas, "DNS": dns, **theirs.environment()}
    with log.open("wb") as written:
        command = [program, "-db", "-f", str(folder / "haproxy.cfg")]
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=written, stderr=written)
    try:
        _wait_for(ours.http, process, log)
        yield Balancer(f"http://127.0.0.1:{ours.http}", f"127.0.0.1:{ours.grpc}", log)
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it listens: a connection that is refused is tried again, a few milliseconds later."""
    for _ in range(2000):
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        try:
            process.wait(0.005)
        except subprocess.TimeoutExpired:
            continue
        break
    raise RuntimeError(f"HAProxy did not start:\n{log.read_text('utf-8', 'replace')[-2000:]}")
