"""What the fake NVIDIA driver's streams were told: done late, in any order that is allowed, and checked for what races.

Work has a clock: how far each stream had come, at least, when it begins. Two uses of the same bytes, one of them a write, of
which neither clock knows the other, may happen in either order on a real device: a race, whatever order was taken here.
(Lamport 1978; the check is that of FastTrack, Flanagan and Freund 2009, without its shortcuts.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.fake_cuda_memory import Access, Block, Memory, Span

Clock = dict[int, int]  # stream -> how many of its works


class Fault(Exception):
    """Raised by work on the fake device: what breaks its context, and the status that says so."""

    def __init__(self, status: str = "CUDA_ERROR_ILLEGAL_ADDRESS") -> None:
        super().__init__(status)
        self.status = status


@dataclass(eq=False)
class Work:
    """Something that a stream was told. `run` does it; `settle` is called when the host first knows that it is done."""

    name: str
    stream: int
    tick: int
    clock: Mapping[int, int]
    reads: tuple[Span, ...] = ()
    writes: tuple[Span, ...] = ()
    run: Callable[[], None] | None = None
    settle: Callable[[], None] | None = None
    after: tuple[Work, ...] = ()
    done: bool = False
    begin_ms: float = 0.0  # on a device without end, where each work takes `ms`
    ms: float = 1.0

    def follows(self, other: Work) -> bool:
        """Whether it cannot begin before `other` is done."""
        return self is not other and self.clock.get(other.stream, 0) >= other.tick

    def touches(self, span: Span) -> bool:
        return any(
            one.address < span.address + span.size and span.address < one.address + one.size
            for one in (*self.reads, *self.writes)
        )


@dataclass(eq=False)
class Line:
    """A stream: its works that are not done yet, and how far it has come."""

    handle: int
    ordinal: int
    waiting: deque[Work] = field(default_factory=deque)
    clock: Clock = field(default_factory=dict)
    tick: int = 0
    last: Work | None = None
    awaited: list[Work] = field(default_factory=list)  # of other streams, by what is told next
    captured: list[Callable[[int], None]] | None = None
    capture_failed: bool = False


class Schedule:
    """All streams' work. `report(mistake)` is called for what a program must not do. Not thread-safe."""

    def __init__(self, memory: Memory, seed: int, report: Callable[[str], None]) -> None:
        self.history: deque[Work] = deque(maxlen=20_000)
        self.broken: str | None = None  # the status of what went wrong on the device: it stays
        self._memory = memory
        self._random = Random(seed)
        self._report = report
        self._lines: dict[int, Line] = {}
        self._host: Clock = {}
        self._unsettled: list[Work] = []

    def add(self, line: Line) -> None:
        self._lines[line.handle] = line

    def remove(self, handle: int) -> None:
        del self._lines[handle]

    def line(self, handle: int) -> Line | None:
        return self._lines.get(handle)

    def lines(self) -> Iterable[Line]:
        return self._lines.values()

    def tell(
        self,
        line: Line,
        name: str,
        run: Callable[[], None] | None = None,
        *,
        reads: Sequence[Span] = (),
        writes: Sequence[Span] = (),
        settle: Callable[[], None] | None = None,
    ) -> Work:
        line.tick += 1
        _join(line.clock, self._host)
        line.clock[line.handle] = line.tick
        after = [work for work in (line.last, *line.awaited) if work is not None]
        work = Work(name, line.handle, line.tick, dict(line.clock), tuple(reads), tuple(writes), run, settle)
        work.after = tuple(after)
        work.begin_ms = max([0.0, *(one.begin_ms + one.ms for one in after)])
        work.ms = 1.0 if run else 0.0
        line.awaited.clear()
        line.last = work
        line.waiting.append(work)
        self.history.append(work)
        if settle:
            self._unsettled.append(work)
        for span, write in [*((span, False) for span in reads), *((span, True) for span in writes)]:
            self._check(work, span, write)
        return work

    def unsettled(self, span: Span) -> list[Work]:
        """Copies from or to these bytes that the host does not know to be done."""
        return [work for work in self._unsettled if work.touches(span)]

    def learn(self, clock: Mapping[int, int]) -> None:
        """The host has waited for this."""
        _join(self._host, clock)
        known = [work for work in self._unsettled if self._host.get(work.stream, 0) >= work.tick]
        self._unsettled = [work for work in self._unsettled if work not in known]
        for work in known:
            if work.settle:
                work.settle()
                work.settle = None

    def finish(self, target: Work) -> None:
        """Does what has to be done before `target` is, and, by chance, what may be done by then."""
        needed, look = set(), [target]
        while look:
            work = look.pop()
            if not work.done and work not in needed:
                needed.add(work)
                look.extend(work.after)
        while not target.done:
            heads = [line.waiting[0] for line in self._lines.values() if line.waiting]
            ready = [work for work in heads if all(one.done for one in work.after)]
            wanted = [work for work in ready if work in needed]
            self._do(self._random.choice(ready if self._random.random() < 0.5 else wanted))

    def _do(self, work: Work) -> None:
        self._lines[work.stream].waiting.popleft()
        try:
            if work.run and not self.broken:
                self._check_alive(work)
                work.run()
        except Fault as fault:
            self.broken = fault.status
        except Exception as error:
            self._report(f"{work.name} raised {error!r}")
            self.broken = "CUDA_ERROR_LAUNCH_FAILED"
        work.done, work.run, work.after = True, None, ()

    def known(self, block: Block) -> bool:
        """Whether the host knows that nothing uses the block any more."""
        return all(self._host.get(access.stream, 0) >= access.tick for access in block.accesses)

    def idle(self, line: Line) -> bool:
        """Whether the host knows that the stream has done all."""
        return self._host.get(line.handle, 0) >= line.tick

    def _check(self, work: Work, span: Span, write: bool) -> None:
        block = self._memory.around(*span)
        if block is None or not block.alive:
            self._report(f"{work.name} uses {span.size} bytes at {span.address:#x}, which are {_state(block)}")
            return
        start, end = span.address - block.address, span.address - block.address + span.size
        if write:
            block.note_written(start, end)
        elif block.kind == "device" and not block.is_written(start, end):
            self._report(f"{work.name} reads device memory that nobody wrote")
        kept = []
        for access in block.accesses:
            apart = access.end <= start or end <= access.start
            ordered = work.clock.get(access.stream, 0) >= access.tick
            if not apart and not ordered and (write or access.write):
                self._report(f"race: {work.name} and {access.name} use the same bytes, and neither waits for the other")
            covered = start <= access.start and access.end <= end and ordered
            if not (covered and (write or (not access.write and access.stream == work.stream))):
                kept.append(access)
        block.accesses = [*kept, Access(start, end, write, work.stream, work.tick, work.name)]

    def _check_alive(self, work: Work) -> None:
        for span in (*work.reads, *work.writes):
            block = self._memory.around(*span)
            if block is None or not block.alive:
                self._report(f"{work.name} ran after its memory was freed")
                raise Fault


def _state(block: Block | None) -> str:
    return "nobody's" if block is None else "freed"


def _join(clock: Clock, other: Mapping[int, int]) -> None:
    for stream, tick in other.items():
        if clock.get(stream, 0) < tick:
            clock[stream] = tick
