"""A balancer in front of replicas: HAProxy or nginx, each with the file that users are given."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.balanced.fleet import Ports, free_ports

EXAMPLES = Path(__file__).parents[2] / "examples"
_STOP_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Balancer:
    """`http` is its URL, `grpc` host and port; `log` is what it has written."""

    http: str
    grpc: str
    log: Path = field(repr=False)


def installed(program: str) -> str | None:
    """Where it is; Debian keeps both where only root looks."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def haproxy(folder: Path, replicas: str, dns: str, theirs: Ports) -> Iterator[Balancer]:
    """HAProxy for all that `replicas`, a name, stands for, as `dns` (host:port) says. It listens on 127.0.0.1."""
    ours = free_ports()
    text = (EXAMPLES / "haproxy" / "haproxy.cfg").read_text("utf-8")
    # The ports of the replicas and its own are the same variables, and free ones differ here.
    text = text.replace('"${LISTEN}:${HTTP}"', f'"127.0.0.1:{ours.http}"')
    text = text.replace('"${LISTEN}:${GRPC}"', f'"127.0.0.1:{ours.grpc}"')
    (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
    environment = {"REPLICAS": replicas, "DNS": dns, **theirs.environment()}
    with _running(("haproxy", "-db", "-f", str(folder / "haproxy.cfg")), environment, folder, ours) as balancer:
        yield balancer


@contextmanager
def nginx(folder: Path, replicas: Sequence[str], theirs: Ports) -> Iterator[Balancer]:
    """nginx for three replicas, by their addresses."""
    ours = free_ports()
    text = (EXAMPLES / "nginx" / "nginx.conf").read_text("utf-8")
    for number, address in enumerate(replicas, 1):
        text = text.replace(f"visionpool-{number}:8000", f"{address}:{theirs.http}")
        text = text.replace(f"visionpool-{number}:8001", f"{address}:{theirs.grpc}")
    text = text.replace("listen 8000", f"listen 127.0.0.1:{ours.http}")
    text = text.replace("listen 8001", f"listen 127.0.0.1:{ours.grpc}")
    kept = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")  # where larger bodies go: not everybody's to write
    text = text.replace("http {", "http {" + "".join(f" {name}_temp_path {folder}/{name};" for name in kept), 1)
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    command = (
        "nginx",
        "-c",
        str(folder / "nginx.conf"),
        "-g",
        f"daemon off; pid {folder}/nginx.pid; error_log stderr;",
    )
    with _running(command, {}, folder, ours) as balancer:
        yield balancer


@contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str], folder: Path, ports: Ports) -> Iterator[Balancer]:
    name, log = command[0], folder / f"{command[0]}.log"
    program = installed(name)
    if not program:
        raise RuntimeError(f"{name} is not installed")
    with log.open("wb") as written:
        process = subprocess.Popen(
            [program, *command[1:]],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
        )
    try:
        _wait_for(ports.http, process, log)
        yield Balancer(f"http://127.0.0.1:{ports.http}", f"127.0.0.1:{ports.grpc}", log)
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
    raise RuntimeError(f"{log.stem} did not start:\n{log.read_text('utf-8', 'replace')[-2000:]}")
