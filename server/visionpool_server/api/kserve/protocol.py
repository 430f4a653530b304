"""All of KServe v2 behind one door, for both transports: what is asked, without how it travels.

Answers are the protocol's messages as tritonclient ships them; HTTP writes the same ones as JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from visionpool.errors import ModelNotFound, Unavailable

from visionpool_server.api.kserve import description
from visionpool_server.api.kserve.control import Control
from visionpool_server.api.kserve.inference import Inference
from visionpool_server.api.kserve.messages import InferRequest, InferResponse
from visionpool_server.api.kserve.shared_memory import SharedMemory
from visionpool_server.api.kserve.switches import LogSwitches, Tracing
from visionpool_server.models.loader import Model
from visionpool_server.service import Service


class Kserve:
    """`ready()`: whether all models are loaded, and the server is not stopping. `close()` gives back what clients left."""

    def __init__(self, service: Service, control: Control, tracing: Tracing, ready: Callable[[], bool]) -> None:
        self.shared_memory = SharedMemory()
        self.control = control
        self.tracing = tracing
        self.logging = LogSwitches()
        self.ready = ready
        self._models = service.models
        self._inference = Inference(service, self.shared_memory)

    def live(self) -> bool:
        return True

    async def infer(self, request: InferRequest, limit: float | None = None) -> InferResponse:
        """See `Inference.infer`."""
        if not (self.tracing.on and self.tracing.sampled(request.model)):
            return await self._inference.infer(request, limit)
        started = time.time_ns()
        response = await self._inference.infer(request, limit)
        self.tracing.write(response.model, response.version, request.id, _timestamps(started, response))
        return response

    def server_metadata(self) -> Any:
        return description.server_metadata(tracing=self.tracing.possible)

    def model_ready(self, name: str, version: str = "") -> bool:
        """False also for a model that is not there: Triton's clients ask so whether one was unloaded."""
        try:
            self._model(name, version)
        except (ModelNotFound, Unavailable):
            return False
        return True

    def model_metadata(self, name: str, version: str = "") -> Any:
        """Raises ModelNotFound."""
        return description.model_metadata(self._model(name, version))

    def model_properties(self, name: str, version: str = "") -> Mapping[str, str]:
        """What the metadata have no field for. Raises ModelNotFound."""
        return description.model_properties(self._model(name, version))

    def model_config(self, name: str, version: str = "") -> Any:
        """Raises ModelNotFound."""
        return description.model_config(self._model(name, version))

    def model_statistics(self, name: str = "", version: str = "") -> Any:
        """Of all models where none is named. Raises ModelNotFound."""
        models: Sequence[Model] = [self._model(name, version)] if name else list(self._models)
        return description.statistics(models)

    def _model(self, name: str, version: str) -> Model:
        return self._models.get(name, version or None)

    def close(self) -> None:
        self.control.close()
        self.shared_memory.close()
        self.tracing.close()
        self.logging.close()


def _timestamps(started: int, response: InferResponse) -> list[tuple[str, int]]:
    """When each stage of a request began, in nanoseconds of the clock, under Triton's names."""
    stages = response.stages
    queued = started + round(stages.queue * 1e9)
    prepared = queued + round(stages.compute_input * 1e9)
    inferred = prepared + round(stages.compute_infer * 1e9)
    finished = inferred + round(stages.compute_output * 1e9)
    return [
        ("REQUEST_START", started),
        ("QUEUE_START", started),
        ("COMPUTE_START", queued),
        ("COMPUTE_INPUT_END", prepared),
        ("COMPUTE_OUTPUT_START", inferred),
        ("COMPUTE_END", finished),
        ("REQUEST_END", max(finished, time.time_ns())),
    ]
