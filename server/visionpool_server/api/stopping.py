"""How far the server is with stopping: what signals begin, what the listeners bring about, and what everything that serves sees.

serving -> signal: `begun`, not ready any more, but all is served -> (drain delay) -> listeners closed -> `refusing`: what is
asked now is not done -> what is in flight finishes -> (grace period) -> `cut`: what is left is ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

log = logging.getLogger(__name__)

_AT_ONCE = 1.0  # seconds after a second signal in which what is open is still closed in order


class Stopping:
    """`ask()` may be called from anywhere, signal handlers too: the first call begins, the second one hurries."""

    def __init__(self) -> None:
        self.begun = False
        self.refusing = False
        self.cut = False
        self._in_a_hurry = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()
        self._last_resort = threading.Event()

    def bind(self) -> None:
        """To the running event loop, on which all waits are."""
        self._loop = asyncio.get_running_loop()
        if self.begun:
            self._asked.set()
        if self._in_a_hurry:
            self._hurried.set()

    def ask(self) -> None:
        if not self.begun:
            self.begun = True
            self._tell(self._asked)
        elif not self._in_a_hurry:  # only once: a handler may be interrupted by the next signal
            self._in_a_hurry = True
            self._last_resort.set()
            self._tell(self._hurried)

    def _tell(self, event: asyncio.Event) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed: the rest is done without it
                self._loop.call_soon_threadsafe(event.set)

    async def asked(self) -> None:
        await self._asked.wait()

    async def pause(self, seconds: float) -> None:
        """So long, or until somebody is in a hurry."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), seconds)

    async def hurried(self) -> None:
        await self._hurried.wait()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for it. A second one of either kind ends the process very soon, whatever hangs."""
        threading.Thread(target=self._wait_for_hurry, name="hurry", daemon=True).start()

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.ask()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait_for_hurry(self) -> None:
        self._last_resort.wait()
        time.sleep(_AT_ONCE)
        leave()


def leave_within(seconds: float) -> None:
    """Ends the process after so many seconds, unless it has ended by itself: native code that hangs, or loads a model for
    minutes, cannot be interrupted, and must not make a stop look like a crash."""
    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def leave() -> NoReturn:
    """Ends the process now, with the status of an orderly stop."""
    log.warning("stopped without waiting for all that was under way")
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)
