"""Fixtures for what runs in containers: the daemon, the images. `VISIONPOOL_TEST_DOCKER=1 pytest tests/deploy` uses them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy import docker_images
from tests.deploy.docker_container import Container, running
from tests.deploy.docker_daemon import Docker, daemon


@pytest.fixture(scope="session")
def docker() -> Iterator[Docker]:
    """A Docker daemon; its images and build cache stay, from one run to the next, below XDG_CACHE_HOME."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with daemon(cache / "visionpool/docker") as started:
        yield started


@pytest.fixture(scope="session")
def cpu_image(docker: Docker) -> str:
    return docker_images.visionpool(docker, "cpu")


@pytest.fixture(scope="module")
def container(docker: Docker, cpu_image: str) -> Iterator[Container]:
    """One for tests that only ask: the demo models, all ports on 127.0.0.1."""
    ports = [option for port in (8000, 8001, 8002) for option in ("--publish", f"127.0.0.1::{port}")]
    with running(docker, cpu_image, *ports) as started:
        yield started.wait()
