"""Docker Compose: this machine's own, or else Debian's (sid), unpacked beside the daemon's images and not installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.docker_daemon import ROOT, Docker

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FILE = ROOT / "docker/compose.yaml"


class Compose:
    """`compose.run("up", profiles=("cpu",))` for docker/compose.yaml; `settings`: what its variables are to be."""

    def __init__(self, command: tuple[str, ...], docker: Docker | None) -> None:
        self._command = command
        self._docker = docker

    def run(self, *arguments: object, profiles: tuple[str, ...], timeout: float = 180, **settings: object) -> str:
        chosen = [part for profile in profiles for part in ("--profile", profile)]
        environment = self._docker.environment if self._docker else {"PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [*self._command, "--file", FILE, *chosen, *map(str, arguments)],
            env={**environment, **{name: str(value) for name, value in settings.items()}},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def config(self, *profiles: str, **settings: object) -> Any:
        return json.loads(self.run("config", "--format", "json", profiles=profiles, **settings))

    @contextmanager
    def up(self, *profiles: str, services: tuple[str, ...] = (), **settings: object) -> Iterator[Any]:
        """`docker compose up`, and all healthy; what the file says with these settings. Removed with volumes in the end."""
        try:
            self.run("up", "--detach", "--wait", "--no-build", *services, profiles=profiles, **settings)
            yield self.config(*profiles, **settings)
        except BaseException:
            print(self.run("logs", profiles=profiles, **settings)[-5000:])  # noqa: T201  pytest shows it with the failure
            raise
        finally:
            self.run("down", "--volumes", profiles=profiles, **settings)


def command(folder: Path) -> tuple[str, ...]:
    """Skips with the reason where there is no Compose and none can be had."""
    for found in (("docker", "compose"), ("docker-compose",)):
        version = (
            subprocess.run([*found, "version"], capture_output=True, check=False) if shutil.which(found[0]) else None
        )
        if version and version.returncode == 0 and b" v1" not in version.stdout:
            return found
    binary = folder / "compose/usr/libexec/docker/cli-plugins/docker-compose"
    if not binary.exists():
        _unpack(folder)
    return (str(binary),)


def _unpack(folder: Path) -> None:
    """By an apt with sources and state of its own."""
    if not shutil.which("apt-get") or not KEYRING.exists():
        pytest.skip("there is no Docker Compose 2 here, and no apt to take Debian's with")
    state = folder / "apt"
    (state / "lists/partial").mkdir(parents=True, exist_ok=True)
    (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian sid main\n")
    options = [
        f"Dir::Etc::SourceList={state}/sources.list",
        "Dir::Etc::SourceParts=/dev/null",
        f"Dir::State::Lists={state}/lists",
    ]
    apt = ["apt-get", *(part for option in (*options, f"Dir::Cache={state}") for part in ("--option", option))]
    for arguments in (["update"], ["download", "docker-compose"]):
        done = subprocess.run([*apt, *arguments], cwd=state, capture_output=True, text=True, timeout=200, check=False)
        if done.returncode != 0:
            pytest.skip(f"Docker Compose 2 cannot be had from Debian: {done.stderr[-300:]}")
    (package,) = state.glob("docker-compose_*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, folder / "compose"], check=True)
    shutil.rmtree(state)
