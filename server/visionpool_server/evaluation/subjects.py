"""What is evaluated: a model or a pipeline in this process, asked through the very flow of the server, or one on a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import visionpool
from visionpool.errors import InvalidSetting, QueueFull
from visionpool.results import Result

from visionpool_server.families import Options
from visionpool_server.models.loader import Defaults
from visionpool_server.models.model import Model
from visionpool_server.pool import Pool
from visionpool_server.reading.steps import PICTURES
from visionpool_server.service import Ask, Service

_CALLS = 8  # at once, to a server
_TIMEOUT = 120.0  # seconds, for one picture with all retries
_LONGEST_PAUSE = 2.0  # seconds, before a full queue is tried again


class Subject(Protocol):
    """A model that can be asked. `accepts`: the options that mean something to it; `in_flight`: pictures that keep it busy."""

    name: str
    where: str  # "CPU f32", or the server's address
    task: str
    labels: tuple[str, ...]
    class_count: int | None
    accepts: frozenset[str]
    in_flight: int

    async def predict(self, picture: bytes, options: Options) -> Result:
        """Raises RequestError for a bad picture, ServiceError."""


class LocalSubject:
    """A model of `service`: one of a family, or a pipeline, whose steps are models there too."""

    def __init__(self, service: Service, model: Model) -> None:
        taking = model.taking_pictures
        if taking is None:
            raise InvalidSetting(
                f"{model.name} takes tensors, not pictures: there is nothing to evaluate",
                hint="say task: and family: in its model.yaml",
            )
        steps = model.pipeline.steps.values() if model.pipeline else (model,)
        pools = [(service.models.get(step) if isinstance(step, str) else step).pool for step in steps]
        self.name = model.name
        self.where = _where(pools)
        self.task = model.task
        self.labels = model.labels
        self.class_count = taking.class_count
        self.accepts = frozenset(taking.accepts)
        self.in_flight = PICTURES + 1 if model.pipeline else _room(pools[0]) + 1
        self._service, self._model = service, model

    async def predict(self, picture: bytes, options: Options) -> Result:
        while True:
            try:
                return (await self._service.predict(self._model, picture, Ask(options, _TIMEOUT))).result
            except QueueFull as full:  # where model.yaml allows a short queue
                await asyncio.sleep(min(full.retry_after, _LONGEST_PAUSE))


def _where(pools: Sequence[Pool]) -> str:
    """By which runtime, on which device, in which precision; of steps that differ all of these."""
    placements = [placement for pool in pools for placement in pool.placements]
    told = dict.fromkeys(f"{at.backend} {at.device} {at.precision}" for at in placements)
    return " + ".join(told)


def _room(pool: Pool) -> int:
    """Pictures that its workers have at once, two batches each on a GPU, and one that waits for each."""
    return sum((2 * group.engine.max_batch_size + 1) * group.count for group in pool.groups)


class ServedSubject:
    """The blocking client, on threads of its own: reading an answer of many objects would hold up an event loop."""

    def __init__(self, client: visionpool.Client, url: str, name: str) -> None:
        info = client.model(name)
        self.name = info.name
        self.where = url
        self.task = info.task
        self.labels = info.labels
        self.class_count: int | None = None
        self.accepts = frozenset(info.raw.get("options", ()))
        self.in_flight = _CALLS
        self._client = client
        self._threads = ThreadPoolExecutor(_CALLS, "evaluate")

    async def predict(self, picture: bytes, options: Options) -> Result:
        given: dict[str, Any] = {**options.given(), "timeout": _TIMEOUT}
        ask = partial(self._client.predict, self.name, picture, **given)
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


@contextmanager
def open_model(model: str | Path, defaults: Defaults, *, max_pixels: int = 50_000_000) -> Iterator[Subject]:
    """A model file or folder, or an embedded demo model by its name, loaded here. Raises SetupError."""
    from visionpool_server.app import DEMO_MODELS, offline

    path = Path(model)
    if not path.exists() and (DEMO_MODELS / model).is_dir():
        path = DEMO_MODELS / model
    with offline([path], defaults, max_pixels=max_pixels) as service:
        yield LocalSubject(service, _only(list(service.models), path))


def _only(loaded: Sequence[Model], path: Path) -> Model:
    """The one model there, or the one pipeline where all others are steps of it. Raises InvalidSetting."""
    whole = [model for model in loaded if not model.part_of]
    named = [step for model in whole if model.pipeline for step in model.pipeline.steps.values()]
    steps = {step for step in named if isinstance(step, str)}
    left = [model for model in whole if model.name not in steps]
    if len(left) != 1:
        names = ", ".join(model.name for model in whole)
        raise InvalidSetting(f"{path} holds several models: {names}", hint="name one of them")
    return left[0]


@contextmanager
def open_served(url: str, model: str) -> Iterator[Subject]:
    """A model that a visionpool server serves. Raises ConnectionFailed, ModelNotFound."""
    with visionpool.Client(url, timeout=_TIMEOUT) as client:
        subject = ServedSubject(client, url, model)
        try:
            yield subject
        finally:
            subject.close()
