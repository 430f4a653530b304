"""The cores of the CPU on which the threads of a group of workers stay."""

from __future__ import annotations

import logging

from visionpool.errors import InvalidModel

from visionpool_server.backends.choice import cuda_ordinal
from visionpool_server.cpu import cores_near, parse_cores, usable_cores
from visionpool_server.cuda.driver import open_driver
from visionpool_server.models.groups import NEAR, WorkerGroup

log = logging.getLogger(__name__)


def cores_of(group: WorkerGroup) -> frozenset[int] | None:
    """Their numbers; None: the system chooses. Raises InvalidModel for what this process may not run on, NoDriver."""
    if group.cores is None:
        return None
    if group.cores == NEAR:
        return _near(group.device)
    cores, usable = parse_cores(group.cores), usable_cores()
    if usable and (missing := sorted(cores - usable)):
        raise InvalidModel(
            f"cores: {group.cores!r} names {missing[0]}, on which this process may not run",
            hint=f"it may on {_ranges(usable)}",
        )
    return cores


def _near(device: str) -> frozenset[int] | None:
    ordinal, driver = cuda_ordinal(device), open_driver()
    if ordinal is None or ordinal >= driver.device_count():
        return None  # loading the engine says so, and what there is
    cores = cores_near(driver.properties(ordinal).bus)
    if cores is None:
        log.warning("cores: %s has no effect: the system does not tell which are near %s", NEAR, device)
    return cores


def _ranges(cores: frozenset[int]) -> str:
    """As Linux writes them: 0-3,8."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and runs[-1][1] == core - 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
