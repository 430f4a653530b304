"""Streams of requests and answers: many at work at once, answered in their order, no more read than there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Answer]], limit: int
) -> AsyncGenerator[Answer, None]:
    """The answers to `requests`, in their order; at most `limit` of them are at work, and none is read before there is room.

    Left early, it cancels what is at work. What `answer` or `requests` raise ends it.
    """
    room = asyncio.Semaphore(limit)
    begun: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
    at_work: set[asyncio.Task[Answer]] = set()

    async def read() -> None:
        try:
            while True:
                await room.acquire()
                try:
                    request = await anext(requests)
                except StopAsyncIteration:
                    return
                task = asyncio.ensure_future(answer(request))
                at_work.add(task)
                begun.put_nowait(task)
        finally:
            begun.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while task := await begun.get():
            yield await task
            at_work.discard(task)
            room.release()
        await reader  # raises what ended it early
    finally:
        reader.cancel()
        for task in at_work:
            task.cancel()
