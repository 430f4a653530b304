"""The pool in this process, kept busy by callers who ask again as soon as they are answered."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

from visionpool.errors import VisionpoolError
from visionpool_server.batching import Job, Tensors
from visionpool_server.pool import Pool

WAITING = 3  # full batches, for each worker


def busy(pool: Pool, question: Tensors, full: int, seconds: float) -> float:
    """Answers a second, where each is followed by the same question at once. `full`: rows of a batch."""
    done = [0]
    failures: list[BaseException] = []
    lock, over = threading.Lock(), threading.Event()
    left = threading.Semaphore(0)

    def ask() -> None:
        job = Job(question, len)
        job.future.add_done_callback(answered)
        pool.submit(job)

    def answered(future: Future[Any]) -> None:
        error = future.exception()
        with lock:
            done[0] += 1
            if error:
                failures.append(error)
        try:
            if over.is_set() or error:
                left.release()
            else:
                ask()
        except VisionpoolError as refusal:
            failures.append(refusal)
            left.release()

    asking = WAITING * full * pool.slots
    for _ in range(asking):
        ask()
    time.sleep(min(0.3, seconds / 4))  # until batches are full
    before, started = done[0], time.perf_counter()
    time.sleep(seconds)
    rate = (done[0] - before) / (time.perf_counter() - started)
    over.set()
    for _ in range(asking):
        left.acquire()
    if failures:
        raise failures[0]
    return rate
