"""A libcuda.so.1 for machines without an NVIDIA driver: how it is built, and how it is asked what was done with it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

KINDS = ("context", "stream", "event", "memory", "pinned", "module", "function", "graph", "executable")
HERE = Path(__file__).parent


def compiler() -> str | None:
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def build(folder: Path) -> None:
    """Writes libcuda.so.1 and kernels.so into `folder`."""
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", "-pthread"]
    made = {"libcuda.so.1": ("libcuda.c", ["-Wl,-soname,libcuda.so.1", "-ldl"]), "kernels.so": ("kernels.c", [])}
    for library, (source, linked) in made.items():
        command = [compiler() or "cc", *flags, "-o", str(folder / library), str(HERE / source), *linked]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class Fake:
    """The fake library of this process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._reclaimed = 0

    def fail(self, call: str, nth: int, status: int) -> None:
        """The `nth` call of that name from now on, 1 is the next one, answers `status`."""
        self._library.fake_fail(call.encode(), nth, status)

    @property
    def fault_pending(self) -> bool:
        return bool(self._library.fake_pending_fault())

    def calls(self, name: str) -> int:
        return int(self._library.fake_calls(name.encode()))

    def left(self) -> dict[str, int]:
        """What is open, what had to go with its context since the last time, how often a handle or memory was used wrongly,
        and how many contexts this thread has current."""
        kinds = {kind: self._library.fake_open(i) for i, kind in enumerate(KINDS)}
        rest = {"misuses": self._library.fake_misuses(), "current": self._library.fake_depth()}
        reclaimed = self._library.fake_reclaimed()
        rest["reclaimed"], self._reclaimed = reclaimed - self._reclaimed, reclaimed
        return {name: number for name, number in (kinds | rest).items() if number}
