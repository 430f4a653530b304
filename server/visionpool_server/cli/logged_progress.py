"""What `visionpool serve` says while it starts, as lines of the log: where those are JSON, nothing else is printed."""

from __future__ import annotations

import logging

from visionpool.errors import VisionpoolError

from visionpool_server.api.answers import steps_of
from visionpool_server.logs import START
from visionpool_server.models.loader import Model

log = logging.getLogger(START)


class LoggedProgress:
    """A line for each model, and one when all are there."""

    def loaded(self, model: Model) -> None:
        for one in (*model.parts, model):
            log.info("model %s is loaded", one.name, extra=_told(one))

    def ready(self, url: str, grpc_address: str, metrics_url: str) -> None:
        told = {"url": url, "grpc": grpc_address, **({"metrics": metrics_url} if metrics_url else {})}
        log.info("visionpool is ready at %s", url, extra=told)


def report_failure(error: VisionpoolError) -> None:
    """Why the server did not start."""
    log.critical(error.message, extra={"code": error.code, "hint": error.hint})


def _told(model: Model) -> dict[str, object]:
    placements = [
        {
            "backend": placement.backend,
            "device": placement.device,
            "precision": placement.precision,
            "workers": group.count,
        }
        for group, placement in zip(model.pool.groups, model.pool.placements, strict=True)
    ]
    advice = [said for said in (model.advice, *(one.advice for one in model.pool.placements)) if said]
    told = {
        "model": model.name,
        "version": model.version,
        "task": model.task,
        "family": model.family_name,
        "source": model.source,
        "placements": placements,
        "steps": list(steps_of(model).values()) if model.pipeline else [],
        "advice": advice,
    }
    return {name: value for name, value in told.items() if value}
