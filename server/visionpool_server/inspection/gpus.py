"""What is known of this machine's NVIDIA GPUs without loading anything: a line a GPU, for a report's notes."""

from __future__ import annotations

from visionpool.errors import BackendUnavailable

from visionpool_server.cuda.driver import open_driver
from visionpool_server.cuda.errors import CudaError
from visionpool_server.cuda.monitor import GpuUse, Monitor, buses


def notes_on_gpus() -> tuple[str, ...]:
    """Why there is none, where there is none."""
    try:
        driver = open_driver()
        found = buses(driver)
        names = {device: driver.properties(ordinal).name for ordinal, device in enumerate(found)}
    except (BackendUnavailable, CudaError) as error:
        return (f"this machine's NVIDIA GPUs are not known: {error}",)
    if not found:
        return ("this machine has a driver of NVIDIA's, and no GPU",)
    monitor = Monitor(found)
    try:
        uses = {use.device: use for use in monitor.read()}
    finally:
        monitor.close()
    return tuple(f"{device} is {name}{_doing(uses.get(device))}" for device, name in names.items())


def _doing(use: GpuUse | None) -> str:
    if use is None:
        return ""
    said = ""
    if use.memory_used is not None and use.memory_total is not None:
        said += f": {use.memory_used / 2**30:.1f} of {use.memory_total / 2**30:.1f} GiB in use"
    if use.utilization is not None:
        said += f"{',' if said else ':'} busy {use.utilization:.0%} of the time"
    return said
