"""Docker Compose: this machine's own, or else Debian's (sid), unpacked beside the daemon's images and not installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.docker_daemon import ROOT, Docker

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FILE = ROOT / "docker/compose.yaml"
Settings = Mapping[str, object]  # variables of the file, and their values


class Compose:
    """`compose.run(("cpu",), "up")`: docker/compose.yaml with these profiles."""

    def __init__(self, command: tuple[str, ...], docker: Docker) -> None:
        self._command = command
        self._docker = docker

    def run(self, profiles: tuple[str, ...], *arguments: str, settings: Settings | None = None) -> str:
        chosen = [part for profile in profiles for part in ("--profile", profile)]
        done = subprocess.run(
            [*self._command, "--file", FILE, *chosen, *arguments],
            env={**self._docker.environment, **{name: str(value) for name, value in (settings or {}).items()}},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def config(self, *profiles: str, settings: Settings | None = None) -> Any:
        """What Compose makes of the file."""
        return json.loads(self.run(profiles, "config", "--format", "json", settings=settings))

    @contextmanager
    def up(self, *profiles: str, services: tuple[str, ...] = (), settings: Settings) -> Iterator[None]:
        """Started, and all healthy; removed with their volumes in the end."""
        try:
            self.run(profiles, "up", "--detach", "--wait", "--no-build", *services, settings=settings)
            yield
        except AssertionError as error:
            error.add_note(self.run(profiles, "logs", settings=settings)[-5000:])
            raise
        finally:
            self.run(profiles, "down", "--volumes", settings=settings)


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
