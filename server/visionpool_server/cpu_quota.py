"""How much of a machine's CPU time a container's limit leaves: the quota of control groups, as Docker and Kubernetes set it.

Source: the Linux kernel's documentation, admin-guide/cgroup-v2 (cpu.max) and scheduler/sched-bwc (cpu.cfs_quota_us).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MOUNT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_quota(mount: Path = _MOUNT, own: Path = _OWN) -> float | None:
    """Cores' worth of time that this process may use, the least of its group's limit and those around it; None where there is
    no limit, or the system does not tell. `mount`: where control groups are mounted; `own`: the process's groups."""
    quotas = [quota for folder in _folders(mount, own) if (quota := _of_group(folder)) is not None]
    return min(quotas, default=None)


def _folders(mount: Path, own: Path) -> Iterator[Path]:
    """Of the process's group and those around it, in version 2 (the line `0::PATH`) and version 1 (`N:cpu,cpuacct:PATH`).
    Inside a container the path may be the host's, and nothing is there: the container's group is then the mounted one."""
    lines: list[str] = []
    with suppress(OSError, UnicodeDecodeError):
        lines = own.read_text(encoding="utf-8").splitlines()
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers if controllers else mount
        group = root / path.strip("/")
        yield group
        while group != root and root in group.parents:
            group = group.parent
            yield group


def _of_group(folder: Path) -> float | None:
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        microseconds = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return None if microseconds < 0 else microseconds / period_us
    return None
