"""Models loaded, reloaded and unloaded while the server runs (Triton's model repository extension).

A load starts the new model first and only then puts it in the place of the old one, which answers what it still has. Both happen
on threads: the event loop goes on serving.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2 as pb
from visionpool.errors import (
    InternalError,
    InvalidModel,
    InvalidRequest,
    ModelNotFound,
    SetupError,
    Unimplemented,
    VisionpoolError,
)

from visionpool_server.api.kserve.catalog import Catalog
from visionpool_server.models.loader import Defaults, Model, load_model
from visionpool_server.models.repository import Repository

log = logging.getLogger(__name__)

_DRAIN = 30.0  # seconds that requests in flight get on a model that goes
LOADING, UNLOADING = "LOADING", "UNLOADING"


@dataclass(frozen=True, slots=True)
class _Work:
    """What is being done to a model just now; `state`: LOADING or UNLOADING."""

    state: str
    task: asyncio.Task[None]


class Control:
    """`explicit`: whether clients may load and unload. `paths`: where the models lie. `close()` ends its threads."""

    def __init__(self, models: Repository, paths: Sequence[Path], defaults: Defaults, *, explicit: bool) -> None:
        self._models = models
        self._catalog = Catalog(paths)
        self._defaults = defaults
        self._explicit = explicit
        self._work: dict[str, _Work] = {}
        self._reasons: dict[str, str] = {}  # why a model of this name is not there
        self._loads = ThreadPoolExecutor(1, "load")  # runtimes do not bear that two threads use them first at once
        self._retirements = ThreadPoolExecutor(4, "retire")

    async def index(self, ready: bool = False) -> Any:
        """Every model that is served or lies in the paths, with its state; `ready`: only those that are served."""
        response = pb.RepositoryIndexResponse()
        served = {model.name: model for model in self._models}
        for name, model in served.items():
            response.models.add(name=name, version=model.version, state="READY")
        if ready:
            return response
        listing = await asyncio.to_thread(self._catalog.scan)
        for name in sorted((listing.models.keys() | self._reasons.keys() | self._work.keys()) - served.keys()):
            files = listing.models.get(name)
            state, reason = self._state(name)
            response.models.add(name=name, version=files[0].version if files else "", state=state, reason=reason)
        return response

    async def load(self, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Loads a model, anew where it is loaded already, from what its files say now; returns once it is served.

        Raises ModelNotFound and SetupError with "failed to load" in their message, and what was served goes on; InvalidRequest,
        Unimplemented.
        """
        self._check_allowed("loaded")
        for key in parameters or {}:
            if key == "config" or key.startswith("file:"):
                raise Unimplemented(
                    f"failed to load {name!r}: the parameter {key[:80]!r} is not taken",
                    hint="change the model's files instead",
                )
            raise InvalidRequest(f"failed to load {name!r}: unknown parameter {key[:80]!r}", hint="leave it out")
        await self._alone(name, LOADING, self._load)

    async def unload(self, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Refuses new requests for a model at once, lets it answer those that it has, and frees its memory.

        Raises ModelNotFound for a name that was never loaded, InvalidRequest. No model has dependents.
        """
        self._check_allowed("unloaded")
        for key in parameters or {}:
            if key != "unload_dependents":
                raise InvalidRequest(f"unknown parameter {key[:80]!r}", hint="leave it out")
        await self._alone(name, UNLOADING, self._unload)

    def close(self) -> None:
        """What is under way goes on, what has not begun does not begin."""
        for threads in (self._loads, self._retirements):
            threads.shutdown(wait=False, cancel_futures=True)

    def _check_allowed(self, what: str) -> None:
        if not self._explicit:
            raise InvalidRequest(
                f"models are not {what} by clients on this server", hint="start it with --model-control-mode explicit"
            )

    async def _alone(self, name: str, state: str, work: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        """Does `work`, one at a time for each name; who asks for the same meanwhile shares it.

        What was under way before is not shared: it may have read the files before they were changed. A caller that goes away
        does not end the work.
        """
        if name in self._work:
            await asyncio.wait([self._work[name].task])
        while name in self._work and self._work[name].state != state:
            await asyncio.wait([self._work[name].task])
        if name not in self._work:
            task = asyncio.create_task(work(name))
            self._work[name] = _Work(state, task)
            task.add_done_callback(lambda done: self._done(name, done))
        await asyncio.shield(self._work[name].task)

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        del self._work[name]
        if not task.cancelled() and (error := task.exception()):
            log.warning("%s", error)

    async def _load(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            model = await loop.run_in_executor(self._loads, self._loaded, name)
            old = self._take_in(
                model
            )  # here, where no request can be between finding a model and taking its place there
        except VisionpoolError as error:
            if not isinstance(error, ModelNotFound):
                self._reasons[name] = error.message
            message = error.message.removeprefix(f"{name}: ")
            raise type(error)(f"failed to load {name!r}: {message}", hint=error.hint) from error
        except Exception as error:
            log.exception("failed to load %r", name)
            self._reasons[name] = "the server's log has the reason"
            raise InternalError(f"failed to load {name!r}", hint="the server's log has the reason") from error
        self._reasons.pop(name, None)
        log.info("loaded %s, version %s", name, model.version)
        if old:
            await loop.run_in_executor(self._retirements, retire, old)

    def _loaded(self, name: str) -> Model:
        model = load_model(self._catalog.find(name), self._defaults)
        if model.name == name:
            return model
        model.close()
        raise InvalidModel(f"its files were changed meanwhile, and call it {model.name!r}")

    def _take_in(self, model: Model) -> Model | None:
        try:
            return self._models.replace(model)
        except SetupError:
            model.close()
            raise

    async def _unload(self, name: str) -> None:
        try:
            model = self._models.remove(name)
        except ModelNotFound:
            if name not in self._reasons:
                raise
            return  # it is not there already
        self._reasons[name] = "unloaded"
        await asyncio.get_running_loop().run_in_executor(self._retirements, retire, model)
        log.info("unloaded %s", name)

    def _state(self, name: str) -> tuple[str, str]:
        if name in self._work:
            return self._work[name].state, ""
        if self._models.loading:
            return LOADING, ""
        return "UNAVAILABLE", self._reasons.get(name, "not loaded")


def check_repository(name: str) -> None:
    """Raises Unimplemented for a request that names one of several repositories."""
    if name:
        raise Unimplemented(
            f"repository {name[:80]!r} cannot be chosen: the models are all in one",
            hint="leave the name of the repository out",
        )


def retire(model: Model) -> None:
    """Closes a model that gets no new requests, once it has answered those that it has."""
    until = time.monotonic() + _DRAIN
    for each in (model, *model.parts):
        for pool in (each.pool, each.tensors.loaded if each.tensors else None):
            if pool and not pool.drain(until - time.monotonic()):
                log.warning("%s did not answer all of its requests within %g s", each.name, _DRAIN)
    model.close()
