"""Replicas of one model, as processes or as containers. Which of them answered is told by the version in each answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 90.0
STOP_SECONDS = 60.0
MODEL = "colours"


@dataclass(frozen=True, slots=True)
class Ports:
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def environment(self) -> dict[str, str]:
        return {"HTTP": str(self.http), "GRPC": str(self.grpc), "METRICS": str(self.metrics)}


def free_ports() -> Ports:
    """Three ports that nobody listens on, at no address."""
    sockets = [socket.create_server(("0.0.0.0", 0)) for _ in range(3)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return Ports(*ports)


class Replica(ABC):
    """`name` is the version that its answers carry, `address` its own."""

    def __init__(self, name: str, address: str, ports: Ports) -> None:
        self.name, self.address, self.ports = name, address, ports

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self.ready():
            if self.ended() or time.monotonic() > deadline:
                raise RuntimeError(f"replica {self.name} did not start:\n{self.log()[-3000:]}")
            time.sleep(0.05)

    def ready(self) -> bool:
        """What its own health check says, as a probe asks it."""
        url = f"http://{self.address}:{self.ports.metrics}/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=2) as answered:
                return bool(answered.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    @abstractmethod
    def terminate(self) -> None:
        """Tells it to stop, and does not wait."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it without a word."""

    @abstractmethod
    def ended(self) -> bool: ...

    @abstractmethod
    def wait(self) -> int:
        """Its exit status."""

    @abstractmethod
    def log(self) -> str: ...


class ProcessReplica(Replica):
    """`visionpool serve` at an address of its own of this machine's loopback network."""

    def __init__(self, name: str, address: str, ports: Ports, models: Path, settings: Mapping[str, str]) -> None:
        super().__init__(name, address, ports)
        self._log = models / "log"
        ours = {
            "VISIONPOOL_HOST": address,
            "VISIONPOOL_HTTP_PORT": str(ports.http),
            "VISIONPOOL_GRPC_PORT": str(ports.grpc),
            "VISIONPOOL_METRICS_PORT": str(ports.metrics),
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "visionpool", "serve", str(models)],
                env={**os.environ, **ours, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> int:
        return self._process.wait(STOP_SECONDS)

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")


class ContainerReplica(Replica):
    """A container of `image`, hardened as docker/compose.yaml does it."""

    def __init__(self, name: str, image: str, models: Path, settings: Mapping[str, str]) -> None:
        given = [word for key, value in settings.items() for word in ("--env", f"{key}={value}")]
        hardened = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        self._id = docker("run", "--detach", *hardened, *given, "--volume", f"{models}:/models:ro", image)
        networks = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", self._id))
        super().__init__(name, next(iter(networks.values()))["IPAddress"], Ports())

    def terminate(self) -> None:
        docker("kill", "--signal", "TERM", self._id)

    def kill(self) -> None:
        docker("kill", self._id)

    def ended(self) -> bool:
        return docker("inspect", "--format", "{{.State.Running}}", self._id) != "true"

    def wait(self) -> int:
        return int(docker("wait", self._id))

    def log(self) -> str:
        done = subprocess.run(["docker", "logs", self._id], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def remove(self) -> None:
        docker("rm", "--force", "--volumes", self._id)


def docker(*arguments: str) -> str:
    """What the command says. Raises RuntimeError with its complaint."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=STOP_SECONDS)
    if done.returncode:
        raise RuntimeError(f"docker {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


class Fleet:
    """Starts replicas in `folder`, each with a version of its own of the model; `close()` leaves none."""

    def __init__(
        self, folder: Path, settings: Mapping[str, str], *, latency_ms: float, image: str | None = None
    ) -> None:
        self.ports = Ports() if image else free_ports()
        self._folder, self._settings, self._latency_ms, self._image = folder, settings, latency_ms, image
        self._started: list[Replica] = []

    def start(self) -> Replica:
        """One more; it is not ready yet."""
        number = len(self._started) + 1
        models = self._models(number)
        replica: Replica
        if self._image:
            replica = ContainerReplica(str(number), self._image, models, self._settings)
        else:
            # An address that nobody else on this machine is likely to use: 127.0.0.0/8 is all loopback.
            address = f"127.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}.{number}"
            replica = ProcessReplica(str(number), address, self.ports, models, self._settings)
        self._started.append(replica)
        return replica

    def _models(self, version: int) -> Path:
        """Each picture takes the fake backend `latency_ms`, two at a time: so replicas add up on a machine of two cores."""
        models = self._folder / f"replica{version}"
        folder = models / MODEL / str(version)
        folder.mkdir(parents=True)
        content = {
            "family": "classification",
            "task": "classification",
            "labels": ["red", "green", "blue"],
            "input_size": [8, 8],
            "workers": 2,
            "batching": {"max_batch_size": 1},
            "runtime": {"backend": "fake", "options": {"latency_ms": self._latency_ms}},
        }
        (folder / "model.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        models.chmod(0o755)
        return models

    def close(self) -> None:
        for replica in self._started:
            if not replica.ended():
                replica.kill()
            if isinstance(replica, ContainerReplica):
                replica.remove()
            else:
                replica.wait()
