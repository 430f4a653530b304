"""A running container of visionpool, confined as docs/deploy.md says, and what it answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from tests.deploy.docker_daemon import Docker

CONFINED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp")
START_SECONDS = 60.0


class Container:
    """`ports`: 8000, 8001 and 8002 of the container as HOST:PORT, where they are published."""

    def __init__(self, docker: Docker, name: str) -> None:
        self._docker = docker
        self.name = name

    def exec(self, *command: object) -> str:
        return self._docker.run("exec", self.name, *command)

    def python(self, program: str) -> str:
        """What a program prints that runs inside."""
        done = self._docker.process("exec", "--interactive", self.name, "python3", "-", stdin=program)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def inspect(self) -> Any:
        return json.loads(self._docker.run("inspect", self.name))[0]

    def port(self, inside: int) -> str:
        return self._docker.run("port", self.name, inside).splitlines()[0]

    def log(self) -> str:
        done = self._docker.process("logs", self.name)
        return done.stdout + done.stderr

    def wait(self, health: str = "healthy") -> Container:
        """Until Docker calls it that. Docker has no event that could be awaited without a stream of all of them."""
        end = time.monotonic() + START_SECONDS
        while True:
            state = self.inspect()["State"]
            if state["Health"]["Status"] == health:
                return self
            assert state["Running"], f"it ended with {state['ExitCode']}:\n{self.log()}"
            assert time.monotonic() < end, f"not {health} in {START_SECONDS:g} s: {state}\n{self.log()}"
            time.sleep(0.2)

    def stop(self, seconds: int = 30) -> int:
        """`docker stop`; the exit status: 137 where it had to be killed."""
        self._docker.run("stop", "--time", seconds, self.name)
        return int(self.inspect()["State"]["ExitCode"])


@contextmanager
def running(docker: Docker, image: str, *options: object, serve: tuple[object, ...] = ()) -> Iterator[Container]:
    """`docker run OPTIONS IMAGE serve ...`, confined; removed with its volumes in the end."""
    name = f"visionpool-test-{uuid4().hex[:8]}"
    arguments = ("serve", *serve) if serve else ()
    docker.run("run", "--detach", "--name", name, *CONFINED, "--health-interval", "1s", *options, image, *arguments)
    try:
        yield Container(docker, name)
    finally:
        docker.run("rm", "--force", "--volumes", name)
