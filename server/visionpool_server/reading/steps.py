"""The models that a pipeline's steps are just now, and how much of them one picture may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from visionpool.errors import ModelNotFound, SetupError, Unavailable

from visionpool_server.models.loader import Model
from visionpool_server.models.pipeline import check_step
from visionpool_server.models.repository import Repository

PICTURES = 8  # of one pipeline that are decoded at once; more wait as the bytes they came as
_MOST_LINES = 64  # of one picture that are cut out at once


class Steps(NamedTuple):
    """Those that are named are looked up each time: a picture that is being read outlives a model that is loaded anew."""

    model: Model  # the pipeline
    models: Repository

    def classifies(self) -> bool:
        return "classify" in self._named()

    def now(self, step: str) -> Model:
        """The model that does the step. Raises Unavailable."""
        named = self._named()[step]
        if isinstance(named, Model):
            return named
        try:
            found = self.models.get(named)
            check_step(step, found)
        except (ModelNotFound, SetupError) as error:
            raise Unavailable(
                f"{self.model.name} needs the model {named!r} to {step}: {error.message}",
                hint=f"load {named}, or change steps in its model.yaml",
            ) from error
        return found

    def lines_at_once(self) -> int:
        """Of one picture: all pictures together leave half of the places of a step to who asks it alone. Raises Unavailable
        where a step is missing."""
        places = min(self.now(step).pool.options.max_queue_size for step in self._named())
        return min(_MOST_LINES, max(1, places // (2 * PICTURES)))

    def _named(self) -> Mapping[str, Model | str]:
        assert self.model.pipeline is not None
        return self.model.pipeline.steps
