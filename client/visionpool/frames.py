"""Frames on their way into a stream: read as there is room for them, and no further ahead than that.

capture, iterable -> pictures -> Feed -> messages -> gRPC, which takes them on a thread or task of its own
                                 answered() makes room
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias

from visionpool.errors import InvalidOption, InvalidRequest
from visionpool.operations import check_several
from visionpool.pictures import Picture
from visionpool.v1 import vision_pb2 as v1

_PATIENCE = 5.0  # seconds that an ending stream waits for a frame that is just being read


class Capture(Protocol):
    """What `cv2.VideoCapture` offers."""

    def read(self) -> tuple[bool, Any]:
        """Whether there was another frame, and the frame."""


Frames: TypeAlias = Iterable[Picture] | Capture
AsyncFrames: TypeAlias = AsyncIterable[Picture] | Frames
Pack: TypeAlias = Callable[[Picture], v1.PredictStreamRequest]


def check_room(in_flight: int) -> int:
    if in_flight < 1:
        raise InvalidOption(f"{in_flight} frames in flight make no stream", hint="1 sends one after the other")
    return in_flight


def pictures_of(frames: Any) -> Iterator[Picture]:
    """The frames one by one. Raises InvalidRequest for a single picture, or a capture that is not open."""
    if not hasattr(frames, "read") or hasattr(frames, "__iter__"):
        check_several(frames, "stream")
        return iter(frames)
    if hasattr(frames, "isOpened") and not frames.isOpened():
        raise InvalidRequest("the capture is not open", hint="is the video's path or number right?")
    return _captured(frames)


def _captured(capture: Capture) -> Iterator[Picture]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame


class Feed:
    """Messages for a stream, at most `room` of them unanswered; iterated by gRPC on a thread of its own.

    The first goes alone: what is wrong with all of them is told before a second one is read. `failure` is what the
    frames raised; it ends them, and the answers to those before still come.
    """

    def __init__(self, pictures: Iterator[Picture], pack: Pack, room: int) -> None:
        self._pictures = pictures
        self._pack = pack
        self._room = threading.Semaphore(1)
        self._more = room  # as soon as the first is answered
        self._reading = threading.Lock()
        self._closed = False
        self.failure: Exception | None = None

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> v1.PredictStreamRequest:
        self._room.acquire()
        with self._reading:
            if self._closed:
                raise StopIteration
            try:
                return self._pack(next(self._pictures))
            except StopIteration:
                raise
            except Exception as error:
                self.failure = error
                raise StopIteration from None

    def answered(self) -> None:
        """Makes room for one more."""
        self._room.release(self._more)
        self._more = 1

    def close(self) -> None:
        """Ends it. On return nobody reads the frames any more, so that a capture can be released; unless they do not
        come back for 5 s."""
        self._closed = True
        self._room.release()
        if self._reading.acquire(timeout=_PATIENCE):
            self._reading.release()


class AsyncFeed:
    """`Feed` on an event loop. What blocks - captures, iterables, encoding - runs in a thread."""

    def __init__(self, frames: AsyncFrames, pack: Pack, room: int) -> None:
        self._frames = aiter(frames) if isinstance(frames, AsyncIterable) else pictures_of(frames)
        self._pack = pack
        self._room = asyncio.Semaphore(1)
        self._more = room
        self._reading: asyncio.Future[v1.PredictStreamRequest | None] | None = None
        self.failure: Exception | None = None

    async def messages(self) -> AsyncIterator[v1.PredictStreamRequest]:
        try:
            while True:
                await self._room.acquire()
                message = await self._next()
                if message is None:
                    return
                yield message
        except Exception as error:
            self.failure = error

    async def _next(self) -> v1.PredictStreamRequest | None:
        frames = self._frames
        if isinstance(frames, AsyncIterator):
            try:
                picture = await anext(frames)
            except StopAsyncIteration:
                return None
            if isinstance(picture, bytes):
                return self._pack(picture)  # nothing to encode: a thread would cost more
            frames = iter((picture,))
        self._reading = asyncio.ensure_future(asyncio.to_thread(self._read, frames))
        return await asyncio.shield(self._reading)

    def _read(self, pictures: Iterator[Picture]) -> v1.PredictStreamRequest | None:
        for picture in pictures:
            return self._pack(picture)
        return None

    def answered(self) -> None:
        """See `Feed.answered`."""
        for _ in range(self._more):
            self._room.release()
        self._more = 1

    async def aclose(self) -> None:
        """See `Feed.close`. The call must have been cancelled."""
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=_PATIENCE)
            if self._reading.done():
                self._reading.exception()  # nobody else may ask for it
