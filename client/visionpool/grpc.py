"""The gRPC clients: `GrpcClient` blocks, `AsyncGrpcClient` awaits. What they can be asked is in `calls`; streams are here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

try:
    import grpc
    import grpc.aio

    from visionpool.frames import AsyncFeed, AsyncFrames, Feed, Frames, check_room, pictures_of
    from visionpool.grpc_transport import (
        DEFAULT_ADDRESS,
        address,
        channel_options,
        declined,
        metadata,
        methods,
        options,
        read,
        read_frame,
        refusal,
        request,
        stream_method,
    )
    from visionpool.v1 import vision_pb2 as v1
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] not in ("grpc", "google"):
        raise
    raise ImportError(
        f"the gRPC clients need grpcio and protobuf ({missing.name!r} is missing): pip install 'visionpool[grpc]'"
    ) from missing

from visionpool import operations
from visionpool.answers import Answer, Refusal
from visionpool.calls import AwaitedCalls, Calls
from visionpool.errors import InvalidOption, VisionpoolError
from visionpool.operations import Options
from visionpool.pictures import Color, Encoding, Picture, load
from visionpool.protocol import Call, Patience
from visionpool.tls import Tls

if TYPE_CHECKING:
    from visionpool.results import Result

Errors = Literal["raise", "yield"]


class GrpcClient(Calls):
    """`visionpool.Client` over gRPC: the same calls, options, results and errors; and streams. See there.

        with visionpool.GrpcClient("127.0.0.1:8001") as client:
            result = client.predict("yolov8n", "street.jpg", score_threshold=0.4)
            for result in client.stream("yolov8n", cv2.VideoCapture("street.mp4")):
                ...

    `address`: host and port, or `grpc://host:port`, or `grpcs://host:port` for TLS, with `tls` for certificates
    of your own, or gRPC's `credentials`. `dns:///host:port` asks all the servers behind a name in turn, and
    `ipv4:10.0.0.1:8001,10.0.0.2:8001` those; by TLS if there are `tls` or `credentials`. `timeout`: seconds for a call
    with all its retries and pauses; the server is told by the deadline of each attempt. `max_message_mb` bounds an answer. May be
    shared between threads.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        max_message_mb: float = 256,
        tls: Tls | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        super().__init__(Patience(timeout, retries))
        self._target, secure = _target(address, tls, credentials)
        settings = channel_options(self._target, max_message_mb)
        self._channel = (
            grpc.secure_channel(self._target, secure, settings)
            if secure
            else grpc.insecure_channel(self._target, settings)
        )
        self._metadata = metadata(api_key, headers)
        self._methods = methods(self._channel)
        self._stream = stream_method(self._channel)

    @overload
    def stream(
        self,
        model: str,
        frames: Frames,
        *,
        errors: Literal["raise"] = "raise",
        encoding: Encoding = "jpeg",
        in_flight: int = 16,
        **options: Unpack[Options],
    ) -> Generator[Result, None, None]: ...

    @overload
    def stream(
        self,
        model: str,
        frames: Frames,
        *,
        errors: Literal["yield"],
        encoding: Encoding = "jpeg",
        in_flight: int = 16,
        **options: Unpack[Options],
    ) -> Generator[Result | VisionpoolError, None, None]: ...

    def stream(
        self,
        model: str,
        frames: Frames,
        *,
        errors: Errors = "raise",
        encoding: Encoding = "jpeg",
        in_flight: int = 16,
        **options: Unpack[Options],
    ) -> Generator[Result | VisionpoolError, None, None]:
        """What `model` sees in frame after frame, in their order, each as soon as it is there.

        `frames`: a `cv2.VideoCapture`, or anything with pictures in it. They are read on another thread, while earlier
        ones are being predicted, and only until `in_flight` of them are without a result: a video is never read far
        ahead, nor a frame lost. With fewer, results of a camera lag less behind; to keep many workers busy takes more.
        The first frame goes alone, so that what is wrong with all of them is told before a second one is read.

        `errors`: a frame that fails raises its error, which ends the stream, or, with "yield", gives it in place of the
        result. `encoding`: arrays travel as JPEGs of quality 95, which changes pixels a little and needs OpenCV or
        Pillow; or "lossless", which is ten times as large. Other options as in `predict`; `timeout` is for each frame.

        Nothing is sent before the first result is asked for. Leaving early gives up what is under way; `close()` the
        generator to have that at once, before a capture is released.

        Raises as `predict` does, also what reading a frame raises; a stream that broke off is not begun again.
        """
        call = operations.frame_call(model, options, self._patience)
        feed = Feed(pictures_of(frames), _packing(call, options, encoding), check_room(in_flight))
        return self._results(feed, raising=_raising(errors))

    def _results(self, feed: Feed, *, raising: bool) -> Generator[Result | VisionpoolError, None, None]:
        stream = self._stream(feed, metadata=self._metadata)
        try:
            for message in stream:
                feed.answered()
                yield _outcome(message, raising)
            if feed.failure is not None:
                raise feed.failure
        except grpc.RpcError as error:
            raise refusal(error, self._target).error from error
        finally:
            stream.cancel()
            feed.close()

    def close(self) -> None:
        self._channel.close()

    def _exchange(self, call: Call) -> Answer | Refusal:
        sent = request(call)
        try:
            message = self._methods[call.what](sent, timeout=call.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            return declined(call, refusal(error, self._target, call.timeout))
        return read(call, message)


class AsyncGrpcClient(AwaitedCalls):
    """`GrpcClient` for asyncio: the same calls with the same meaning, awaited. See there.

        async with visionpool.AsyncGrpcClient() as client:
            async for result in client.stream("yolov8n", frames):
                ...

    Paths, files and arrays are read in a thread, so that the event loop goes on. A client belongs to the event loop of
    its first call.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        max_message_mb: float = 256,
        tls: Tls | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        super().__init__(Patience(timeout, retries))
        self._target, self._credentials = _target(address, tls, credentials)
        self._settings = channel_options(self._target, max_message_mb)
        self._metadata = metadata(api_key, headers)
        self._channel: grpc.aio.Channel | None = None
        self._methods: Mapping[str, Callable[..., Any]] = {}

    @overload
    def stream(
        self,
        model: str,
        frames: AsyncFrames,
        *,
        errors: Literal["raise"] = "raise",
        encoding: Encoding = "jpeg",
        in_flight: int = 16,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Result, None]: ...

    @overload
    def stream(
        self,
        model: str,
        frames: AsyncFrames,
        *,
        errors: Literal["yield"],
        encoding: Encoding = "jpeg",
        in_flight: int = 16,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Result | VisionpoolError, None]: ...

    def stream(
        self,
        model: str,
        frames: AsyncFrames,
        *,
        errors: Errors = "raise",
        encoding: Encoding = "jpeg",
        in_flight: int = 16,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Result | VisionpoolError, None]:
        """See `GrpcClient.stream`. `frames` may also be asynchronous. To leave early, close it: `aclosing(...)`."""
        call = operations.frame_call(model, options, self._patience)
        feed = AsyncFeed(frames, _packing(call, options, encoding), check_room(in_flight))
        return self._results(feed, raising=_raising(errors))

    async def _results(self, feed: AsyncFeed, *, raising: bool) -> AsyncGenerator[Result | VisionpoolError, None]:
        stream = stream_method(self._connected())(feed.messages(), metadata=self._metadata)
        try:
            async for message in stream:
                feed.answered()
                yield _outcome(message, raising)
            if feed.failure is not None:
                raise feed.failure
        except grpc.RpcError as error:
            raise refusal(error, self._target).error from error
        finally:
            stream.cancel()
            await feed.aclose()

    async def aclose(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    def _connected(self) -> grpc.aio.Channel:
        """The channel, made within the running event loop."""
        if self._channel is None:
            if self._credentials:
                self._channel = grpc.aio.secure_channel(self._target, self._credentials, self._settings)
            else:
                self._channel = grpc.aio.insecure_channel(self._target, self._settings)
            self._methods = methods(self._channel)
        return self._channel

    async def _exchange(self, call: Call) -> Answer | Refusal:
        sent = request(call)
        self._connected()
        try:
            message = await self._methods[call.what](sent, timeout=call.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            return declined(call, refusal(error, self._target, call.timeout))
        return read(call, message)


def _target(
    url: str, tls: Tls | None, credentials: grpc.ChannelCredentials | None
) -> tuple[str, grpc.ChannelCredentials | None]:
    """Where to, and by which credentials; None for no TLS."""
    there = address(url)
    if tls and credentials:
        raise InvalidOption("tls and credentials say the same", hint="give one of them")
    if tls:
        credentials = grpc.ssl_channel_credentials(*tls.contents())
    if there.several:
        return there.target, credentials
    if credentials and not there.secure:
        raise InvalidOption(
            f"{'tls is' if tls else 'credentials are'} of no use for {url}", hint=f"use grpcs://{there.target}"
        )
    return there.target, (credentials or grpc.ssl_channel_credentials()) if there.secure else None


def _raising(errors: str) -> bool:
    if errors not in ("raise", "yield"):
        raise InvalidOption(f"errors={errors!r} means nothing", hint="use 'raise' or 'yield'")
    return errors == "raise"


def _packing(call: Call, given: Options, encoding: Encoding) -> Callable[[Picture], v1.PredictStreamRequest]:
    """What makes a message of each frame; the first one names the model. Raises InvalidOption."""
    if encoding not in ("jpeg", "lossless"):
        raise InvalidOption(f"no frames are sent as {encoding!r}", hint="use 'jpeg' or 'lossless'")
    color: Color = given.get("color") or "bgr"
    encoded = partial(load, color=color, encoding=encoding)
    heads = iter([v1.PredictStreamRequest(model=call.model, options=options(call))])

    def pack(picture: Picture) -> v1.PredictStreamRequest:
        data = encoded(picture).data
        message = next(heads, None) or v1.PredictStreamRequest()
        message.picture = data
        return message

    return pack


def _outcome(message: bytes, raising: bool) -> Result | VisionpoolError:
    outcome = read_frame(message)
    if raising and isinstance(outcome, VisionpoolError):
        raise outcome
    return outcome
