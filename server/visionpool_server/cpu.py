"""Which of the machine's cores this process and its threads run on.

Affinity is a thread's own on Linux, and is inherited by the threads that it starts: what a native library starts on a
pinned thread stays on the same cores. Elsewhere threads run where the system puts them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import ceil
from pathlib import Path

from visionpool.errors import InvalidModel

from visionpool_server.cpu_quota import cpu_quota

log = logging.getLogger(__name__)

_DEVICES = Path("/sys/bus/pci/devices")
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_ADDRESS = re.compile(r"[0-9a-f]*([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
_EXAMPLE = "numbers and ranges, as 0-3,8; numactl --hardware shows which there are"


def cpu_count() -> int:
    """How many cores the calling thread may keep busy, at least 1: those that it may run on (on a thread that is not pinned,
    the process's), or as many as a container's quota of CPU time is worth, rounded up, where that is less."""
    cores = len(usable_cores()) or os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, ceil(quota)))


def usable_cores() -> frozenset[int]:
    """The numbers of the cores that the calling thread may run on; none where the system does not tell."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def parse_cores(said: str) -> frozenset[int]:
    """The numbers in a list as Linux writes it: 0-3,8. Raises InvalidModel for anything else, and for no core at all."""
    cores: set[int] = set()
    for part in said.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise InvalidModel(f"cores: {said!r} is no list of cores", hint=f"write {_EXAMPLE}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InvalidModel(f"cores: {part.strip()} in {said!r} ends before it begins", hint=f"write {_EXAMPLE}")
        cores.update(range(first, last + 1))
    return frozenset(cores)


def cores_near(pci_bus: str, devices: Path = _DEVICES) -> frozenset[int] | None:
    """The usable cores on the NUMA node of a PCI device, by its address as CUDA or NVML write it (0000:3B:00.0); None where
    the system does not tell, or this process may run on none of them. `devices`: sysfs's folder of them."""
    address = _ADDRESS.fullmatch(pci_bus.lower())  # NVML writes eight digits of the domain, sysfs four
    try:
        told = (devices / address[1] / "local_cpulist").read_text(encoding="ascii") if address else ""
        near = parse_cores(told) & usable_cores()
    except (OSError, UnicodeDecodeError, InvalidModel):
        return None
    return near or None


def pin(cores: frozenset[int]) -> bool:
    """Keeps the calling thread on `cores`; False, and a line in the log, where that cannot be done."""
    try:
        os.sched_setaffinity(0, cores)
    except (AttributeError, OSError) as error:
        why = "this system cannot" if isinstance(error, AttributeError) else error.strerror
        _tell_once(_written(cores), why or str(error))
        return False
    return True


@contextmanager
def pinned(cores: frozenset[int] | None) -> Iterator[None]:
    """Keeps the calling thread on `cores` meanwhile, and with it the threads that start; None changes nothing."""
    before = usable_cores()
    if cores is None or not pin(cores):
        yield
        return
    try:
        yield
    finally:
        pin(before)


@cache
def _tell_once(cores: str, why: str) -> None:
    """Each of a group's workers would say the same."""
    log.warning("threads are not kept on the cores %s: %s", cores, why)


def _written(cores: frozenset[int]) -> str:
    return ",".join(map(str, sorted(cores)))
