"""A real Prometheus (Debian's package `prometheus`) that scrapes one address every second, and what it answers to queries."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

MISSING = "prometheus and promtool are missing: apt-get install prometheus"
installed = all(map(shutil.which, ("prometheus", "promtool")))
_READY = re.compile(r"Server is ready to receive web requests|err=")
_START, _WAIT = 20.0, 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer.get("data")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query that have a number: NaN is what 0 requests in 0 seconds make."""
        found = self.ask("query", query=expression)["result"]
        return [series for series in found if series["value"][1] != "NaN"]

    def until(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + _WAIT
        while not holds():
            assert time.monotonic() < end, f"in {_WAIT:g} s there was no {what}"
            time.sleep(0.2)  # it is told of nothing: its answers change with each scrape


@contextmanager
def prometheus(folder: Path, target: str, rules: Path) -> Iterator[Prometheus]:
    """Scrapes `target` (host:port) and evaluates `rules` each second, and ends with the context. `folder`: for what it keeps."""
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": "visionpool",
                "static_configs": [{"targets": [target], "labels": {"namespace": "vision"}}],
            }
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    address = f"127.0.0.1:{_free_port()}"
    arguments = {
        "config.file": folder / "prometheus.yaml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": address,
        "log.format": "logfmt",
    }
    log = folder / "prometheus.log"
    with log.open("wb") as printed:
        process = subprocess.Popen(
            ["prometheus", *(f"--{name}={value}" for name, value in arguments.items())],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for_start(process, log)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait_for_start(process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START
    while not _READY.search(text := log.read_text(encoding="utf-8")):
        assert process.poll() is None and time.monotonic() < end, f"Prometheus does not start:\n{text}"
        time.sleep(0.05)
    assert "err=" not in text, text


def _free_port() -> int:
    """It takes no 0 and tells none: the port is free a moment before."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
