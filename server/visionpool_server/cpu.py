"""How much CPU this process may use."""

from __future__ import annotations

import os


def cpu_count() -> int:
    """The cores that this process may run on, at least 1 (a container's limit by CPU set counts, a quota does not)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
