"""The HTTP clients: `Client` blocks, `AsyncClient` awaits. Both only carry out what `operations` asks for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack

import anyio
import anyio.to_thread
import httpx

from visionpool import errors, operations, pictures
from visionpool.answers import Answer, ModelInfo, Prediction
from visionpool.operations import Options
from visionpool.pictures import Encoded, Picture
from visionpool.protocol import Call, Command, Done, Load, Patience, Pause, Steps, advance
from visionpool.results import Result
from visionpool.transport import DEFAULT_URL, answer, request, settings, translated

T = TypeVar("T")


class Client:
    """Talks to a visionpool server, and may be shared between threads.

        with visionpool.Client("http://127.0.0.1:8000") as client:
            result = client.predict("yolov8n", "street.jpg", score_threshold=0.4)
            if isinstance(result, visionpool.DetectionResult):
                for label, score, box in zip(result.labels, result.scores, result.boxes):
                    print(label, score, box)  # person 0.91 (xmin, ymin, xmax, ymax), in pixels

    A picture is a path, the bytes of an encoded picture, a file opened with "rb", a Pillow image, or an array
    of uint8 pixels: (H, W, 3) in the order blue, green, red as `cv2.imread` gives them (else `color="rgb"`),
    (H, W), (H, W, 1) or (H, W, 4). Arrays travel without loss, and so are large: far from the server, send
    the bytes of a JPEG.

    `timeout`: seconds for a call with all its retries and pauses; within one attempt it is httpx's, for connecting, and
    for each wait for a next piece of the answer. `retries`: how often a call comes back
    when the server is busy (429, or 503 with Retry-After), no sooner than it asks. `api_key` is sent as a
    bearer token. `transport` is httpx's, for certificates, proxies and tests.

    Every call raises a subclass of `VisionpoolError`: what the server answered (RequestError, ServiceError),
    ConnectionFailed where nothing answers, DeadlineExceeded after `timeout`; and OSError for a picture's file that
    cannot be read.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._patience = Patience(timeout, retries)
        self._http = httpx.Client(transport=transport, **settings(url, api_key, headers))

    def predict(self, model: str, picture: Picture, **options: Unpack[Options]) -> Result:
        """What `model` sees in `picture`: a DetectionResult, ClassifyResult, ..., by the model's task.

        Options: `score_threshold`, `iou_threshold`, `top_k`, `classes`, `max_detections`, `color`, `timeout`.
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
        return self._run(operations.healthy("/health/live", self._patience))

    def ready(self) -> bool:
        """Whether the server takes requests: all its models are loaded and warm."""
        return self._run(operations.healthy("/health/ready", self._patience))

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Returns once the server is ready. Raises DeadlineExceeded, with the reason, after `timeout` s."""
        self._run(operations.wait_ready(timeout))

    def close(self) -> None:
        """Closes the connections; `with Client(...)` does it by itself."""
        self._http.close()

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

    def _perform(self, command: Command) -> Encoded | Answer | None:
        match command:
            case Load(picture, color):
                return pictures.load(picture, color=color)
            case Pause(seconds):
                time.sleep(seconds)
            case Call():
                with translated(self._http, command):
                    return answer(self._http.send(request(self._http, command)))
        return None


class AsyncClient:
    """`Client` for asyncio and trio: the same calls with the same meaning, awaited. See there.

        async with visionpool.AsyncClient() as client:
            results = await asyncio.gather(*(client.predict("yolov8n", path) for path in paths))

    Paths, files and arrays are read in a thread, so that the event loop goes on.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._patience = Patience(timeout, retries)
        self._http = httpx.AsyncClient(transport=transport, **settings(url, api_key, headers))

    async def predict(self, model: str, picture: Picture, **options: Unpack[Options]) -> Result:
        """See `Client.predict`."""
        return await self._run(operations.predict(model, picture, options, self._patience))

    async def predict_many(self, model: str, pictures: Iterable[Picture], **options: Unpack[Options]) -> list[Result]:
        """See `Client.predict_many`."""
        return await self._run(operations.predict_many(model, pictures, options, self._patience))

    async def predict_full(
        self, model: str, pictures: Picture | Sequence[Picture], **options: Unpack[Options]
    ) -> Prediction:
        """See `Client.predict_full`."""
        return await self._run(operations.predict_full(model, pictures, options, self._patience))

    async def annotate(
        self,
        model: str,
        picture: Picture,
        *,
        format: Literal["jpeg", "png"] = "jpeg",  # noqa: A002 - what Pillow's save() calls it
        **options: Unpack[Options],
    ) -> bytes:
        """See `Client.annotate`."""
        return await self._run(operations.annotate(model, picture, format, options, self._patience))

    async def models(self) -> list[ModelInfo]:
        """See `Client.models`."""
        return await self._run(operations.models(self._patience))

    async def model(self, name: str) -> ModelInfo:
        """See `Client.model`."""
        return await self._run(operations.model(name, self._patience))

    async def live(self) -> bool:
        """See `Client.live`."""
        return await self._run(operations.healthy("/health/live", self._patience))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        return await self._run(operations.healthy("/health/ready", self._patience))

    async def wait_ready(self, timeout: float = 60.0) -> None:  # noqa: ASYNC109 - as in Client
        """See `Client.wait_ready`."""
        await self._run(operations.wait_ready(timeout))

    async def aclose(self) -> None:
        """See `Client.close`."""
        await self._http.aclose()

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

    async def _perform(self, command: Command) -> Encoded | Answer | None:
        match command:
            case Load(bytes() as picture, color):
                return pictures.load(picture, color=color)  # nothing to read: a thread would cost more
            case Load(picture, color):
                return await anyio.to_thread.run_sync(partial(pictures.load, picture, color=color))
            case Pause(seconds):
                await anyio.sleep(seconds)
            case Call():
                with translated(self._http, command):
                    return answer(await self._http.send(request(self._http, command)))
        return None
