"""What a model has done so far: counts and durations, as Triton's statistics extension wants them, and what /metrics adds.

Times of a `Snapshot` are cumulative nanoseconds: per request (success, fail, queue and the stages of its slowest part), and per
executed batch. Beside them stands how long each stage took, each time (`Spreads`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Literal, NamedTuple, Protocol

from visionpool_server.histogram import Histogram, Spread

Stage = Literal["decode", "prepare", "queue", "infer", "finish", "encode"]
Spreads = Mapping[Stage, Spread]
STAGES: tuple[Stage, ...] = ("decode", "prepare", "queue", "infer", "finish", "encode")


@dataclass(frozen=True, slots=True)
class Duration:
    """So many times, so many nanoseconds altogether."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """All executions of one batch size."""

    size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`last_inference`: milliseconds since the epoch, 0 before the first. `inference_count` counts pictures or rows,
    `execution_count` the batches that they ran in."""

    last_inference: int
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    batches: tuple[BatchStatistics, ...]


class Stages(NamedTuple):
    """Where the time of one request went, in seconds."""

    queue: float = 0.0
    compute_input: float = 0.0
    compute_infer: float = 0.0
    compute_output: float = 0.0


class Timed(Protocol):
    """What took its time on the way of one picture, or of some rows of tensors, in seconds."""

    decode_s: float
    prepare_s: float
    queue_s: float
    finish_s: float


class Statistics:
    """Counters that many threads add to. Kept as plain lists: this runs for every request."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._last = 0.0
        self._inferences = 0
        self._success = [0, 0.0]
        self._fail = [0, 0.0]
        self._stages = [0.0, 0.0, 0.0, 0.0]
        self._batches: dict[int, list[float]] = {}  # size -> executions, seconds of input, infer, output
        self._decode, self._prepare, self._queue = Histogram(), Histogram(), Histogram()
        self._infer, self._finish, self._encode = Histogram(), Histogram(), Histogram()

    def succeeded(self, seconds: float, stages: Stages) -> None:
        """A request was answered, after `seconds` altogether."""
        with self._lock:
            self._count_success(seconds, stages)

    def answered_alone(self, size: int, seconds: float, stages: Stages) -> None:
        """`executed`, `finished` and `succeeded` at once, for a request that was a batch of its own."""
        with self._lock:
            self._count(size, stages.compute_input, stages.compute_infer)
            self._batches[size][3] += stages.compute_output
            self._finish.observe(stages.compute_output)
            self._count_success(seconds, stages)

    def failed(self, seconds: float) -> None:
        """A request got an error, after `seconds`."""
        with self._lock:
            self._fail[0] += 1
            self._fail[1] += seconds

    def executed(self, size: int, compute_input: float, compute_infer: float, parts: Iterable[Timed] = ()) -> None:
        """A batch of `size` pictures or rows, which came in these `parts`, ran. Told before its answers leave, so that who
        got one finds it counted."""
        with self._lock:
            self._count(size, compute_input, compute_infer)
            for part in parts:
                self._queue.observe(part.queue_s)
                if part.decode_s:  # neither tensors nor raw pixels are
                    self._decode.observe(part.decode_s)
                if part.prepare_s:
                    self._prepare.observe(part.prepare_s)

    def _count(self, size: int, compute_input: float, compute_infer: float) -> None:
        self._last = time.time()
        self._inferences += size
        batch = self._batches.get(size)
        if batch is None:
            batch = self._batches[size] = [0, 0.0, 0.0, 0.0]
        batch[0] += 1
        batch[1] += compute_input
        batch[2] += compute_infer
        self._infer.observe(compute_infer)

    def _count_success(self, seconds: float, stages: Stages) -> None:
        self._success[0] += 1
        self._success[1] += seconds
        total = self._stages
        total[0] += stages.queue
        total[1] += stages.compute_input
        total[2] += stages.compute_infer
        total[3] += stages.compute_output

    def finished(self, size: int, compute_output: float, parts: Iterable[Timed] = ()) -> None:
        """The answers of a batch of `size` that was executed are made."""
        with self._lock:
            self._batches[size][3] += compute_output
            for part in parts:
                if part.finish_s:  # it has one
                    self._finish.observe(part.finish_s)

    def encoded(self, seconds: float) -> None:
        """The answer to a request was written as bytes: drawn, or put into JSON or a message."""
        with self._lock:
            self._encode.observe(seconds)

    def spreads(self) -> Spreads:
        """How long each stage took: infer of a batch, encode of a request, the others of a picture or a part of a batch."""
        kept = (self._decode, self._prepare, self._queue, self._infer, self._finish, self._encode)
        with self._lock:
            return {stage: histogram.spread() for stage, histogram in zip(STAGES, kept, strict=True)}

    def snapshot(self) -> Snapshot:
        with self._lock:
            done, seconds = int(self._success[0]), self._success[1]
            queue, given, infer, taken = (_duration(done, total) for total in self._stages)
            batches = tuple(_batch(size, *self._batches[size]) for size in sorted(self._batches))
            return Snapshot(
                last_inference=int(self._last * 1000),
                inference_count=self._inferences,
                execution_count=sum(batch.compute_infer.count for batch in batches),
                success=_duration(done, seconds),
                fail=_duration(int(self._fail[0]), self._fail[1]),
                queue=queue,
                compute_input=given,
                compute_infer=infer,
                compute_output=taken,
                batches=batches,
            )


def _batch(size: int, count: float, given: float, infer: float, taken: float) -> BatchStatistics:
    return BatchStatistics(size, *(_duration(int(count), seconds) for seconds in (given, infer, taken)))


def _duration(count: int, seconds: float) -> Duration:
    return Duration(count, round(seconds * 1e9))
