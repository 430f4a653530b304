"""The models that a pipeline's steps are just now, and how much of them one picture may take."""

from __future__ import annotations

from typing import NamedTuple, Self

from visionpool.errors import ModelNotFound, SetupError, Unavailable

from visionpool_server.models.loader import Model
from visionpool_server.models.pipeline import check_step
from visionpool_server.models.repository import Repository

PICTURES = 8  # of one pipeline that are decoded at once; more wait as the bytes they came as
_MOST_LINES = 64  # of one picture that are cut out at once


class Steps(NamedTuple):
    detect: Model
    classify: Model | None
    read: Model

    @classmethod
    def of(cls, model: Model, models: Repository) -> Self:
        """Those that are named are looked up. Raises Unavailable."""
        assert model.pipeline is not None
        found: dict[str, Model] = {}
        for step, named in model.pipeline.steps.items():
            try:
                found[step] = named if isinstance(named, Model) else models.get(named)
                check_step(step, found[step])
            except (ModelNotFound, SetupError) as error:
                raise Unavailable(
                    f"{model.name} needs the model {named!r} to {step}: {error.message}",
                    hint=f"load {named}, or change steps in its model.yaml",
                ) from error
        return cls(found["detect"], found.get("classify"), found["read"])

    def lines_at_once(self) -> int:
        """Of one picture: all pictures together leave half of the places of a step to who asks it alone."""
        places = min(step.pool.options.max_queue_size for step in self if step)
        return min(_MOST_LINES, max(1, places // (2 * PICTURES)))
