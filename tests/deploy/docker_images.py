"""The images that the tests run, made without a registry: bases by debootstrap, under the names that the public ones have."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest

from tests.deploy.docker_daemon import ROOT, Docker

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
PROMETHEUS = "prom/prometheus:v3.5.0"
_NOT_IN_SLIM = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
)


def base(docker: Docker) -> str:
    """debian:bookworm-slim. The archive that it is imported from stays in the daemon's folder."""
    name = "debian:bookworm-slim"
    if not docker.run("images", "--quiet", name):
        archive = docker.folder / "bookworm.tar"
        if not archive.exists():
            _debootstrap("bookworm", archive)
        docker.run("import", archive, name)
    return name


def _debootstrap(release: str, archive: Path) -> None:
    if not shutil.which("debootstrap"):
        pytest.skip("debootstrap is not installed: there is nothing to make the base image of")
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", release, folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
        if done.returncode != 0:
            pytest.skip(f"debootstrap cannot reach a mirror of Debian: {done.stdout[-300:]}{done.stderr[-300:]}")
        for path in _NOT_IN_SLIM:
            shutil.rmtree(Path(folder, path), ignore_errors=True)
            Path(folder, path).mkdir()
        unfinished = archive.with_suffix(".unfinished")
        subprocess.run(["tar", "-C", folder, "-cf", unfinished, "."], check=True, timeout=120)
        unfinished.rename(archive)


def visionpool(docker: Docker, target: str = "cpu") -> str:
    """The image of this checkout, by the name that Compose and the chart expect."""
    base(docker)
    name = f"visionpool:{VERSION}-{target}"
    with tempfile.TemporaryDirectory() as folder:
        docker.run(
            *("build", "--network", "host", "--file", ROOT / "docker/Dockerfile", "--target", target, "--tag", name),
            *_pip_settings(Path(folder)),
            ROOT,
            timeout=500,
        )
    return name


def _pip_settings(folder: Path) -> list[str]:
    """Secrets of the build: where this machine's pip looks for packages, and whom it trusts."""
    listed = subprocess.run(["pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False)
    index = os.environ.get("PIP_INDEX_URL") or listed.stdout.strip()
    lines = ["[global]", *([f"index-url = {index}"] if index else [])]
    secrets = []
    if authorities := os.environ.get("PIP_CERT"):
        secrets += ["--secret", f"id=ca,src={authorities}"]
        lines.append("cert = /run/secrets/ca")
    (folder / "pip.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [*secrets, "--secret", f"id=pip,src={folder}/pip.conf"]


def prometheus(docker: Docker) -> str:
    """Debian's Prometheus under the public image's name, with the paths, the user and the entry point of that one."""
    lines = [
        f"FROM {base(docker)}",
        "RUN apt-get update && apt-get install --yes --no-install-recommends prometheus wget && rm -rf /var/lib/apt/lists/*"
        " && install --directory --owner 65534 --group 65534 /prometheus",
        "USER 65534:65534",
        "VOLUME /prometheus",
        "EXPOSE 9090",
        'ENTRYPOINT ["/usr/bin/prometheus"]',
    ]
    done = docker.process(
        *("build", "--network", "host", "--tag", PROMETHEUS, "-"), stdin="\n".join(lines), timeout=300
    )
    assert done.returncode == 0, done.stderr
    return PROMETHEUS
