"""The calls of all clients, written once: `Calls` blocks, `AwaitedCalls` awaits. Both only carry out what `operations`
asks for; what differs between transports is how one exchange is done."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack

import anyio
import anyio.to_thread

from visionpool import errors, operations, pictures
from visionpool.answers import Answer, ModelInfo, Prediction, Refusal
from visionpool.operations import Options
from visionpool.pictures import Encoded, Picture
from visionpool.protocol import Call, Command, Done, Load, Patience, Pause, Steps, advance
from visionpool.results import Result

T = TypeVar("T")


class Calls(ABC):
    """What a client that blocks can be asked. A client over some transport adds how one exchange is done."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    @abstractmethod
    def _exchange(self, call: Call) -> Answer | Refusal:
        """One exchange with the server. Raises ConnectionFailed, DeadlineExceeded, ServiceError."""

    def predict(self, model: str, picture: Picture, **options: Unpack[Options]) -> Result:
        """What `model` sees in `picture`: a DetectionResult, ClassifyResult, ..., by the model's task.

        Options: `score_threshold`, `iou_threshold`, `top_k`, `classes`, `max_detections`, `compact`,
        `score_map`, `color`, `timeout`.
        """
        return self._run(operations.predict(model, picture, options, self._patience))

    def predict_many(self, model: str, pictures: Iterable[Picture], **options: Unpack[Options]) -> list[Result]:
        """One result per picture, in their order, by one request, which fails where one of them does."""
        return self._run(operations.predict_many(model, pictures, options, self._patience))

    def predict_full(self, model: str, pictures: Picture | Sequence[Picture], **options: Unpack[Options]) -> Prediction:
        """All that the server answers: the results with the model's version and the time each stage took."""
        return self._run(operations.predict_full(model, pictures, options, self._patience))

    def annotate(
        self,
        model: str,
        picture: Picture,
        *,
        format: Literal["jpeg", "png"] = "jpeg",  # noqa: A002 - what Pillow's save() calls it
        **options: Unpack[Options],
    ) -> bytes:
        """The picture with the results drawn into it, as the bytes of a JPEG or PNG file."""
        return self._run(operations.annotate(model, picture, format, options, self._patience))

    def models(self) -> list[ModelInfo]:
        """The models that are served."""
        return self._run(operations.models(self._patience))

    def model(self, name: str) -> ModelInfo:
        """One model, with its labels. Raises ModelNotFound."""
        return self._run(operations.model(name, self._patience))

    def live(self) -> bool:
        """Whether the server answers at all."""
        return self._run(operations.healthy("live", self._patience))

    def ready(self) -> bool:
        """Whether the server takes requests: all its models are loaded and warm."""
        return self._run(operations.healthy("ready", self._patience))

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Returns once the server is ready. Raises DeadlineExceeded, with the reason, after `timeout` s."""
        self._run(operations.wait_ready(timeout))

    @abstractmethod
    def close(self) -> None:
        """Closes the connections; `with` does it by itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        command = advance(steps, None)
        while not isinstance(command, Done):
            try:
                reply = self._perform(command)
            except errors.VisionpoolError as error:
                command = advance(steps, error)
            else:
                command = advance(steps, reply)
        return command.value

    def _perform(self, command: Command) -> Encoded | Answer | Refusal | None:
        match command:
            case Load(picture, color):
                return pictures.load(picture, color=color)
            case Pause(seconds):
                time.sleep(seconds)
            case Call():
                return self._exchange(command)
        return None


class AwaitedCalls(ABC):
    """`Calls`, awaited: the same calls with the same meaning. Paths, files and arrays are read in a thread."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    @abstractmethod
    async def _exchange(self, call: Call) -> Answer | Refusal:
        """See `Calls._exchange`."""

    async def predict(self, model: str, picture: Picture, **options: Unpack[Options]) -> Result:
        """See `Calls.predict`."""
        return await self._run(operations.predict(model, picture, options, self._patience))

    async def predict_many(self, model: str, pictures: Iterable[Picture], **options: Unpack[Options]) -> list[Result]:
        """See `Calls.predict_many`."""
        return await self._run(operations.predict_many(model, pictures, options, self._patience))

    async def predict_full(
        self, model: str, pictures: Picture | Sequence[Picture], **options: Unpack[Options]
    ) -> Prediction:
        """See `Calls.predict_full`."""
        return await self._run(operations.predict_full(model, pictures, options, self._patience))

    async def annotate(
        self,
        model: str,
        picture: Picture,
        *,
        format: Literal["jpeg", "png"] = "jpeg",  # noqa: A002 - what Pillow's save() calls it
        **options: Unpack[Options],
    ) -> bytes:
        """See `Calls.annotate`."""
        return await self._run(operations.annotate(model, picture, format, options, self._patience))

    async def models(self) -> list[ModelInfo]:
        """See `Calls.models`."""
        return await self._run(operations.models(self._patience))

    async def model(self, name: str) -> ModelInfo:
        """See `Calls.model`."""
        return await self._run(operations.model(name, self._patience))

    async def live(self) -> bool:
        """See `Calls.live`."""
        return await self._run(operations.healthy("live", self._patience))

    async def ready(self) -> bool:
        """See `Calls.ready`."""
        return await self._run(operations.healthy("ready", self._patience))

    async def wait_ready(self, timeout: float = 60.0) -> None:  # noqa: ASYNC109 - as in Calls
        """See `Calls.wait_ready`."""
        await self._run(operations.wait_ready(timeout))

    @abstractmethod
    async def aclose(self) -> None:
        """See `Calls.close`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, steps: Steps[T]) -> T:
        command = advance(steps, None)
        while not isinstance(command, Done):
            try:
                reply = await self._perform(command)
            except errors.VisionpoolError as error:
                command = advance(steps, error)
            else:
                command = advance(steps, reply)
        return command.value

    async def _perform(self, command: Command) -> Encoded | Answer | Refusal | None:
        match command:
            case Load(bytes() as picture, color):
                return pictures.load(picture, color=color)  # nothing to read: a thread would cost more
            case Load(picture, color):
                return await anyio.to_thread.run_sync(partial(pictures.load, picture, color=color))
            case Pause(seconds):
                await anyio.sleep(seconds)
            case Call():
                return await self._exchange(command)
        return None
