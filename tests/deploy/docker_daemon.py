"""A Docker daemon for the tests, started by scripts/docker-daemon and asked by the docker command."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/docker-daemon"
WANTED = "VISIONPOOL_TEST_DOCKER"


class Docker:
    """`docker.run("ps", "--all")`: what the command prints; AssertionError with all of it where it fails."""

    def __init__(self, command: str, environment: Mapping[str, str], folder: Path) -> None:
        self.command = command
        self.environment = dict(environment)
        self.folder = folder  # of the daemon

    def run(self, *arguments: object, check: bool = True, timeout: float = 120, **more: str) -> str:
        """`more`: variables of the environment."""
        done = self.process(*arguments, timeout=timeout, **more)
        if check and done.returncode != 0:
            raise AssertionError(f"docker {arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout.strip()

    def process(
        self, *arguments: object, timeout: float = 120, stdin: str | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.command, *map(str, arguments)],
            env={**self.environment, **more},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def restart(self) -> None:
        """The daemon; containers go on."""
        _script("restart", self.folder)


@contextmanager
def daemon(folder: Path) -> Iterator[Docker]:
    """Started where it does not run yet, and then stopped by the last of the tests' processes that use it. Skips with the
    reason where Docker cannot be had."""
    if os.environ.get(WANTED) != "1":
        pytest.skip(f"{WANTED}=1 has these tests start a Docker daemon of their own; it is not set")
    command = _command()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        if subprocess.run([SCRIPT, "status", folder], check=False).returncode != 0:
            (folder / "of-tests").touch()
        host = _script("start", folder).rpartition("=")[2]
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield Docker(command, {**os.environ, "DOCKER_HOST": host, "DOCKER_BUILDKIT": "1"}, folder)
        finally:
            _stop_unless_used(users.fileno(), folder)


def _stop_unless_used(users: int, folder: Path) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another process has it
    if (folder / "of-tests").exists():
        _script("stop", folder)
        (folder / "of-tests").unlink()


def _script(action: str, folder: Path) -> str:
    done = subprocess.run(
        [SCRIPT, action, folder], capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0 and action == "start":
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _command() -> str:
    """A docker that can build: since 23 it needs a plugin for that, before it did not."""
    found = [path for path in (shutil.which("docker"), "/usr/bin/docker") if path and Path(path).exists()]
    for path in found:
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        major = int(version.partition("version ")[2].partition(".")[0])
        buildx = subprocess.run([path, "buildx", "version"], capture_output=True, check=False)
        if major < 23 or buildx.returncode == 0:
            return path
    pytest.skip(f"no docker command that can build images (found: {found}): install docker.io, or docker-buildx")
