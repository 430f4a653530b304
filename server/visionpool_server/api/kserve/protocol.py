"""All of KServe v2 behind one door, for both transports: what is asked, without how it travels.

Answers are the protocol's messages as tritonclient ships them; HTTP writes the same ones as JSON.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from visionpool.errors import ModelNotFound, Unavailable

from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.exchange import note_model
from visionpool_server.api.kserve import description
from visionpool_server.api.kserve.control import Control
from visionpool_server.api.kserve.inference import Inference
from visionpool_server.api.kserve.messages import InferRequest, InferResponse, InputTensor
from visionpool_server.api.kserve.shared_memory import SharedMemory
from visionpool_server.api.kserve.switches import LogSwitches, Tracing
from visionpool_server.models.loader import Model
from visionpool_server.service import Service


class Kserve:
    """`limits`: those of the transports, which hold for what is read from shared memory too. `ready()`: whether all models
    are loaded, and the server is not stopping. `close()` gives back what clients left."""

    def __init__(
        self,
        service: Service,
        control: Control,
        tracing: Tracing,
        shared_memory: SharedMemory,
        *,
        limits: BodyLimits,
        ready: Callable[[], bool],
    ) -> None:
        self.shared_memory = shared_memory
        self.control = control
        self.tracing = tracing
        self.logging = LogSwitches()
        self.ready = ready
        self._limits = limits
        self._models = service.models
        self._inference = Inference(service, shared_memory)

    def live(self) -> bool:
        return True

    def note(self, name: str, version: str) -> None:
        """A request is for this model; where it is not served, nothing is noted."""
        model = self._models.find(name)
        if model and version in ("", model.version):
            note_model(model.name, model.version)

    def encoded(self, response: InferResponse, seconds: float) -> None:
        """An answer was written as bytes in so many seconds."""
        if model := self._models.find(response.model):
            model.pool.statistics.encoded(seconds)

    def begin(self, request: InferRequest, limit: float | None = None) -> InferResponse | Awaitable[InferResponse]:
        """See `Inference.begin`. Raises ModelNotFound besides."""
        shared = _shared_bytes(request.inputs)
        return self._bounded(request, limit, shared) if shared else self._watched(request, limit)

    async def _bounded(self, request: InferRequest, limit: float | None, shared: int) -> InferResponse:
        """For inputs that no transport has counted. Raises TooLarge, QueueFull."""
        self._limits.check_bytes(shared)
        with self._limits.budget.hold() as held:
            held.take(shared)
            begun = self._watched(request, limit)
            return begun if isinstance(begun, InferResponse) else await begun

    def _watched(self, request: InferRequest, limit: float | None) -> InferResponse | Awaitable[InferResponse]:
        model = self._model(request.model, request.version)
        if self.tracing.on and self.tracing.sampled(request.model):
            return self._traced(model, request, limit)
        return self._inference.begin(model, request, limit)

    async def _traced(self, model: Model, request: InferRequest, limit: float | None) -> InferResponse:
        started = time.time_ns()
        begun = self._inference.begin(model, request, limit)
        response = begun if isinstance(begun, InferResponse) else await begun
        self.tracing.write(response.model, response.version, request.id, _timestamps(started, response))
        return response

    def server_metadata(self) -> Any:
        return description.server_metadata(shared_memory=self.shared_memory.available, tracing=self.tracing.possible)

    def model_ready(self, name: str, version: str = "") -> bool:
        """False also for a model that is not there: Triton's clients ask so whether one was unloaded; and, as there, for all
        of them once the server is stopping."""
        if not self._models.loading and not self.ready():
            return False
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
        try:
            return self._models.get(name, version or None)
        except ModelNotFound as error:
            raise _in_tritons_words(error, version) from error

    def close(self) -> None:
        self.control.close()
        self.shared_memory.close()
        self.tracing.close()
        self.logging.close()


def _in_tritons_words(error: ModelNotFound, version: str) -> ModelNotFound:
    """Programs look for these words in what Triton answers: its own examples do."""
    words = "Request for unknown model"
    if version and not version.isdecimal():
        words = f"failed to get model version from specified version string {version[:80]!r}"
    return ModelNotFound(f"{words}: {error.message}", hint=error.hint)


def _shared_bytes(inputs: Sequence[InputTensor]) -> int:
    """How much of the inputs lies in shared memory; a size that makes no sense is refused where it is read."""
    sizes = [tensor.parameters.get("shared_memory_byte_size") for tensor in inputs if tensor.data is None]
    return sum(size for size in sizes if type(size) is int and size > 0)


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
