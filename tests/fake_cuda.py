"""A stand-in for the NVIDIA driver, which does as little as it may, as late as it may, and notes every mistake.

    driver = FakeDriver(devices=2, seed=3)          # seed: in which of the allowed orders things happen
    gpu = Gpu(driver, 0)
    driver.fail("upload", at=3)                     # the third from now on raises CudaError
    driver.kernel("add", run, touches)              # what a kernel's name does: see `launch`
    driver.enqueue(stream, function, reads=[Span(address, size)], writes=[...])   # what a runtime would launch
    driver.assert_clean()                           # nothing held, nothing under way, no mistake made

Memory is RAM with real addresses. What streams are told is done when the host waits, not before, and copies to the host are
seen only once the host knows of them: who forgets to wait reads 0xFF. Mistakes that a real driver would let pass (races, use
after free, bytes changed under a copy, leaks) are in `mistakes`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import numpy as np
from visionpool_server.cuda.driver import Grid, Handle, Properties
from visionpool_server.cuda.errors import CudaError, NoDriver, OutOfMemory, refused

from tests.fake_cuda_memory import GARBAGE, Block, Memory, Span, copy, fill, overlap, read
from tests.fake_cuda_work import Fault, Line, Schedule, Work

__all__ = ["FakeDriver", "Fault", "Span", "Work"]

Kernel = Callable[[Grid, Grid, Sequence[np.generic]], None]
Touches = Callable[[Grid, Grid, Sequence[np.generic]], tuple[Sequence[Span], Sequence[Span]]]

_WITHOUT_CONTEXT = {"device_count", "properties", "retain", "release", "keep", "push", "pop"}
_GIVING_BACK = {"release", "pop", "free", "free_pinned", "unload_module"}  # these do it, even where they then fail
ENDING = _GIVING_BACK | {"destroy_stream", "destroy_event", "destroy_graph"}


@dataclass(eq=False)
class _Context:
    ordinal: int


@dataclass(eq=False)
class _Event:
    ordinal: int
    timing: bool
    work: Work | None = None
    alive: bool = True


@dataclass(eq=False)
class _Module:
    image: bytes
    alive: bool = True


@dataclass(eq=False)
class _Function:
    module: _Module
    name: str


@dataclass(eq=False)
class _Graph:
    told: list[Callable[[int], None]]
    alive: bool = True


@dataclass
class _Failure:
    call: str
    left: int
    status: str
    sticky: bool
    among: frozenset[str] = field(default_factory=frozenset)


class FakeDriver:
    """`calls`: how often each was made. `failed`: the calls that were made to fail. `kept`: the devices of `keep`.

    `graphs` False: as pycuda has none.
    """

    name = "fake"

    def __init__(
        self, *, devices: int = 1, graphs: bool = True, seed: int = 0, memory: int = 1 << 33, there: bool = True
    ) -> None:
        self.graphs = graphs
        self.mistakes: list[str] = []
        self.calls: Counter[str] = Counter()
        self.failed: list[str] = []
        self.kept: set[int] = set()
        self._devices = devices
        self._there = there
        self._capacity = memory
        self._blocks = Memory()
        self._schedule = Schedule(self._blocks, seed, self.mistakes.append)
        self._contexts = [_Context(ordinal) for ordinal in range(devices)]
        self._retained = [0] * devices
        self._current = threading.local()
        self._pushed: Counter[int] = Counter()
        self._events: list[_Event] = []
        self._modules: list[_Module] = []
        self._graphs: list[_Graph] = []
        self._kernels: dict[str, tuple[Kernel, Touches | None]] = {}
        self._failures: list[_Failure] = []
        self._handles = count(0x5000, 16)
        self._lock = threading.RLock()

    # What tests ask for.

    def fail(self, call: str, at: int = 1, status: str = "CUDA_ERROR_UNKNOWN", *, sticky: bool = False) -> None:
        """The `at`th such call from now on raises; "*" counts all but those that free. `sticky`: so does all that follows."""
        self._failures.append(_Failure(call, at, status, sticky))

    def forgive(self) -> None:
        """No call fails any more that was to."""
        self._failures.clear()

    def kernel(self, name: str, run: Kernel, touches: Touches | None = None) -> None:
        """What launches of the kernel of this name do: `run(grid, block, arguments)`. `touches`: of the same, which bytes
        it reads and writes; without, races are not seen."""
        self._kernels[name] = (run, touches)

    def enqueue(
        self,
        stream: int,
        function: Callable[[], None],
        *,
        reads: Sequence[Span] = (),
        writes: Sequence[Span] = (),
        name: str = "work",
    ) -> None:
        """Tells a stream to call a function, which uses these bytes of the device. It may raise Fault."""
        with self._lock, self._call("enqueue"):
            self._line(stream)
            self._tell(stream, name, function, reads=reads, writes=writes)

    def run_pending(self, stream: int) -> None:
        """Does what the stream was told, without the host knowing: what a runtime that waits inside of a call does."""
        with self._lock:
            self._finish(self._line(stream).last)

    def whole(self, address: int) -> Span:
        """The block around an address."""
        block = self._blocks.around(address)
        assert block is not None, f"{address:#x} is nobody's"
        return Span(block.address, block.size)

    def note_written(self, span: Span) -> None:
        """That a runtime has filled device memory by means of its own."""
        block = self._blocks.around(*span)
        assert block is not None, "it is nobody's"
        block.note_written(span.address - block.address, span.address - block.address + span.size)

    def room(self, address: int) -> int:
        """How many bytes there are from an address to the end of its block; 0 where it is in none, or a freed one."""
        block = self._blocks.around(address)
        return block.address + block.size - address if block and block.alive else 0

    def is_pinned(self, address: int) -> bool:
        block = self._blocks.around(address)
        return block is not None and block.kind == "pinned"

    @property
    def history(self) -> list[Work]:
        """What streams were told so far, the last 20,000 of it."""
        with self._lock:
            return list(self._schedule.history)

    def held(self) -> Counter[str]:
        """How many of each kind are there."""
        with self._lock:
            kinds: Counter[str] = Counter(block.kind for block in self._blocks.alive())
            kinds["stream"] = len(list(self._schedule.lines()))
            for kind, things in (("event", self._events), ("module", self._modules), ("graph", self._graphs)):
                kinds[kind] = sum(thing.alive for thing in things)
            kinds["context"] = sum(self._retained)
            return +kinds

    def bytes_held(self, kind: Literal["device", "pinned"] = "device") -> int:
        with self._lock:
            return sum(block.size for block in self._blocks.alive() if block.kind == kind)

    def assert_no_mistakes(self) -> None:
        with self._lock:
            wrong = [
                *self.mistakes,
                *(f"somebody wrote past {b.kind} memory" for b in self._blocks.all() if not b.whole()),
            ]
        assert not wrong, "\n".join(wrong[:20])

    def assert_clean(self) -> None:
        """At the end of all: no mistake was made, and nothing is left."""
        self.assert_no_mistakes()
        assert not self.held(), f"left behind: {dict(self.held())}"
        assert not +self._pushed, "contexts are still pushed on some thread"

    # The calls, as in cuda/driver.py.

    def device_count(self) -> int:
        with self._lock, self._call("device_count"):
            if not self._there:
                raise NoDriver("no NVIDIA driver was found")
            return self._devices

    def properties(self, ordinal: int) -> Properties:
        with self._lock, self._call("properties"):
            self._require(0 <= ordinal < self._devices, "properties", "CUDA_ERROR_INVALID_DEVICE")
            return Properties(f"Fake {ordinal}", (9, 0), self._capacity, 132, f"0000:{ordinal:02x}:00.0")

    def retain(self, ordinal: int) -> Handle:
        with self._lock, self._call("retain"):
            self._require(0 <= ordinal < self._devices, "retain", "CUDA_ERROR_INVALID_DEVICE")
            self._retained[ordinal] += 1
            return self._contexts[ordinal]

    def release(self, ordinal: int) -> None:
        with self._lock, self._call("release"):
            self._require(self._retained[ordinal] > 0, "release", "CUDA_ERROR_INVALID_CONTEXT")
            self._retained[ordinal] -= 1

    def keep(self, ordinal: int) -> None:
        with self._lock, self._call("keep"):
            self._require(0 <= ordinal < self._devices, "keep", "CUDA_ERROR_INVALID_DEVICE")
            self.kept.add(ordinal)

    def push(self, context: Handle) -> None:
        with self._lock, self._call("push"):
            known = isinstance(context, _Context) and self._retained[context.ordinal] > 0
            self._require(known, "push", "CUDA_ERROR_INVALID_CONTEXT")
            self._stack().append(context)
            self._pushed[threading.get_ident()] += 1

    def pop(self) -> None:
        with self._lock, self._call("pop"):
            self._require(bool(self._stack()), "pop", "CUDA_ERROR_INVALID_CONTEXT")
            self._stack().pop()
            self._pushed[threading.get_ident()] -= 1

    def memory(self) -> tuple[int, int]:
        with self._lock, self._call("memory"):
            return self._capacity - self.bytes_held(), self._capacity

    def allocate(self, size: int) -> int:
        with self._lock, self._call("allocate"):
            return self._allocate("allocate", size, "device")

    def free(self, address: int) -> None:
        with self._lock, self._call("free"):
            self._free("free", address, "device")

    def allocate_pinned(self, size: int) -> int:
        with self._lock, self._call("allocate_pinned"):
            return self._allocate("allocate_pinned", size, "pinned")

    def free_pinned(self, address: int) -> None:
        with self._lock, self._call("free_pinned"):
            self._free("free_pinned", address, "pinned")

    def create_stream(self) -> int:
        with self._lock, self._call("create_stream"):
            handle = next(self._handles)
            self._schedule.add(Line(handle, self._ordinal()))
            return handle

    def destroy_stream(self, stream: int) -> None:
        with self._lock, self._call("destroy_stream"):
            line = self._line(stream)
            if not self._schedule.idle(line) and not self._schedule.broken:
                self.mistakes.append("destroy_stream: nobody waited for what the stream was told")
                self._finish(line.last)
            self._schedule.remove(stream)

    def synchronize(self, stream: int) -> None:
        with self._lock, self._call("synchronize"):
            line = self._line(stream)
            self._not_captured(line, "synchronize")
            self._finish(line.last)
            self._schedule.learn(line.clock)
            self._check_broken("synchronize")

    def create_event(self, *, timing: bool = False) -> Handle:
        with self._lock, self._call("create_event"):
            self._events.append(event := _Event(self._ordinal(), timing))
            return event

    def destroy_event(self, event: Handle) -> None:
        with self._lock, self._call("destroy_event"):
            self._event(event, "destroy_event").alive = False
            self._events.remove(event)

    def record(self, event: Handle, stream: int) -> None:
        with self._lock, self._call("record"):
            known, line = self._event(event, "record"), self._line(stream)
            self._require(line.captured is None, "record", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
            known.work = self._schedule.tell(line, "record")

    def wait(self, stream: int, event: Handle) -> None:
        with self._lock, self._call("wait"):
            known, line = self._event(event, "wait"), self._line(stream)
            if line.captured is not None:
                line.capture_failed = True
                self._require(False, "wait", "CUDA_ERROR_STREAM_CAPTURE_ISOLATION")
            if known.work is not None:
                line.awaited.append(known.work)
                for stream_, tick in known.work.clock.items():
                    line.clock[stream_] = max(line.clock.get(stream_, 0), tick)
                self._schedule.tell(line, "wait")

    def synchronize_event(self, event: Handle) -> None:
        with self._lock, self._call("synchronize_event"):
            known = self._event(event, "synchronize_event")
            if known.work is not None:
                self._finish(known.work)
                self._schedule.learn(known.work.clock)
            self._check_broken("synchronize_event")

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        """On a device where each work takes a millisecond, and as many run at once as may."""
        with self._lock, self._call("elapsed_ms"):
            begin, finish = self._event(start, "elapsed_ms"), self._event(end, "elapsed_ms")
            timed = begin.timing and finish.timing and begin.work and finish.work
            self._require(bool(timed), "elapsed_ms", "CUDA_ERROR_INVALID_HANDLE")
            assert begin.work and finish.work
            if not (begin.work.done and finish.work.done):
                raise CudaError("elapsed_ms", "CUDA_ERROR_NOT_READY")
            return finish.work.begin_ms - begin.work.begin_ms

    def upload(self, device: int, host: int, size: int, stream: int) -> None:
        with self._lock, self._call("upload"):
            self._spans("upload", device, host, size, stream)
            self._or_capture(stream, lambda where: self._upload(device, host, size, where))

    def download(self, host: int, device: int, size: int, stream: int) -> None:
        with self._lock, self._call("download"):
            self._spans("download", device, host, size, stream)
            self._or_capture(stream, lambda where: self._download(host, device, size, where))

    def load_module(self, image: bytes) -> Handle:
        with self._lock, self._call("load_module"):
            self._modules.append(module := _Module(bytes(image)))
            return module

    def unload_module(self, module: Handle) -> None:
        with self._lock, self._call("unload_module"):
            self._require(module in self._modules, "unload_module", "CUDA_ERROR_INVALID_HANDLE")
            self._modules.remove(module)
            module.alive = False

    def function(self, module: Handle, name: str) -> Handle:
        with self._lock, self._call("function"):
            self._require(module in self._modules, "function", "CUDA_ERROR_INVALID_HANDLE")
            if name not in self._kernels:
                raise CudaError("function", "CUDA_ERROR_NOT_FOUND")
            return _Function(module, name)

    def launch(self, function: Handle, grid: Grid, block: Grid, arguments: Sequence[np.generic], stream: int) -> None:
        with self._lock, self._call("launch"):
            known = isinstance(function, _Function) and function.module.alive
            self._require(known, "launch", "CUDA_ERROR_INVALID_HANDLE")
            sane = all(side >= 1 for side in (*grid, *block)) and int(np.prod(block)) <= 1024
            self._require(sane, "launch", "CUDA_ERROR_INVALID_VALUE")
            self._require(all(isinstance(one, np.generic) for one in arguments), "launch", "CUDA_ERROR_INVALID_VALUE")
            self._line(stream)
            run, touches = self._kernels[function.name]
            said = tuple(arguments)
            reads, writes = touches(grid, block, said) if touches else ((), ())
            self._tell(stream, function.name, lambda: run(grid, block, said), reads=reads, writes=writes)

    def begin_capture(self, stream: int) -> None:
        with self._lock, self._call("begin_capture"):
            line = self._line(stream)
            self._require(self.graphs and line.captured is None, "begin_capture", "CUDA_ERROR_ILLEGAL_STATE")
            line.captured, line.capture_failed = [], False
            self._current.capturing = line

    def end_capture(self, stream: int) -> Handle:
        with self._lock, self._call("end_capture"):
            line = self._line(stream)
            self._require(line.captured is not None, "end_capture", "CUDA_ERROR_ILLEGAL_STATE")
            told, line.captured, self._current.capturing = line.captured or [], None, None
            if line.capture_failed:
                raise CudaError("end_capture", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
            self._graphs.append(graph := _Graph(told))
            return graph

    def launch_graph(self, graph: Handle, stream: int) -> None:
        with self._lock, self._call("launch_graph"):
            self._require(graph in self._graphs, "launch_graph", "CUDA_ERROR_INVALID_HANDLE")
            self._not_captured(self._line(stream), "launch_graph")
            for tell in graph.told:
                tell(stream)

    def destroy_graph(self, graph: Handle) -> None:
        with self._lock, self._call("destroy_graph"):
            self._require(graph in self._graphs, "destroy_graph", "CUDA_ERROR_INVALID_HANDLE")
            self._graphs.remove(graph)
            graph.alive = False

    # How they do it.

    @contextmanager
    def _call(self, name: str) -> Any:
        self.calls[name] += 1
        if name not in _WITHOUT_CONTEXT:
            self._require(bool(self._stack()), name, "CUDA_ERROR_INVALID_CONTEXT")
        status = self._struck(name)
        broken = self._schedule.broken if name not in _WITHOUT_CONTEXT else None
        if (status or broken) and name == "end_capture" and (line := getattr(self._current, "capturing", None)):
            line.captured, self._current.capturing = None, None  # it is over, whatever became of it
        if (status or broken) and name not in ENDING:
            raise refused(name, status or broken or "")
        yield
        if status or broken:
            raise refused(name, status or broken or "")

    def _struck(self, name: str) -> str | None:
        for failure in list(self._failures):
            if failure.call == name or (failure.call == "*" and name not in ENDING):
                failure.left -= 1
                if failure.left == 0:
                    self._failures.remove(failure)
                    self.failed.append(name)
                    if failure.sticky:
                        self._schedule.broken = failure.status
                    return failure.status
        return None

    def _require(self, right: bool, call: str, status: str) -> None:
        """A call that cannot be right is a mistake, even where somebody catches what it raises."""
        if not right:
            self.mistakes.append(f"{call}: {status}")
            raise CudaError(call, status)

    def _check_broken(self, call: str) -> None:
        if self._schedule.broken:
            raise CudaError(call, self._schedule.broken)

    def _stack(self) -> list[_Context]:
        if not hasattr(self._current, "stack"):
            self._current.stack = []
        stack: list[_Context] = self._current.stack
        return stack

    def _ordinal(self) -> int:
        return self._stack()[-1].ordinal

    def _line(self, stream: int) -> Line:
        line = self._schedule.line(stream)
        if line is None or line.ordinal != self._ordinal():
            self._require(False, "a stream", "CUDA_ERROR_INVALID_HANDLE")
        assert line is not None
        return line

    def _event(self, event: Handle, call: str) -> _Event:
        known = isinstance(event, _Event) and event.alive and event.ordinal == self._ordinal()
        self._require(known, call, "CUDA_ERROR_INVALID_HANDLE")
        assert isinstance(event, _Event)
        return event

    def _allocate(self, call: str, size: int, kind: Literal["device", "pinned"]) -> int:
        self._require(size > 0, call, "CUDA_ERROR_INVALID_VALUE")
        self._not_capturing(call)
        if kind == "device" and self.bytes_held() + size > self._capacity:
            raise OutOfMemory(call, "CUDA_ERROR_OUT_OF_MEMORY")
        return self._blocks.allocate(size, kind, self._ordinal())

    def _free(self, call: str, address: int, kind: str) -> None:
        block = self._blocks.at(address)
        right = block is not None and block.alive and block.kind == kind and block.ordinal == self._ordinal()
        self._require(right, call, "CUDA_ERROR_INVALID_VALUE")
        self._not_capturing(call)
        assert block is not None
        if not self._schedule.known(block) and not self._schedule.broken:
            self.mistakes.append(f"{call}: nobody waited for what uses this memory")
        self._blocks.free(block)

    def _not_capturing(self, call: str) -> None:
        line = getattr(self._current, "capturing", None)
        if line is not None:
            line.capture_failed = True
            raise CudaError(call, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    def _not_captured(self, line: Line, call: str) -> None:
        if line.captured is not None:
            line.capture_failed = True
            raise CudaError(call, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    def _finish(self, work: Work | None) -> None:
        if work is not None:
            self._schedule.finish(work)

    def _spans(self, call: str, device: int, host: int, size: int, stream: int) -> None:
        self._line(stream)
        self._require(size > 0, call, "CUDA_ERROR_INVALID_VALUE")
        for address, kind in ((device, "device"), (host, "pinned")):
            block: Block | None = self._blocks.around(address, size)
            right = block is not None and block.alive and block.kind == kind and block.ordinal == self._ordinal()
            self._require(right, f"{call} ({kind} side)", "CUDA_ERROR_INVALID_VALUE")

    def _or_capture(self, stream: int, tell: Callable[[int], None]) -> None:
        captured = self._line(stream).captured
        if captured is None:
            tell(stream)
        else:
            captured.append(tell)

    def _tell(
        self,
        stream: int,
        name: str,
        run: Callable[[], None],
        *,
        reads: Sequence[Span],
        writes: Sequence[Span],
    ) -> None:
        def tell(where: int) -> None:
            self._schedule.tell(self._line(where), name, run, reads=reads, writes=writes)

        self._or_capture(stream, tell)

    def _upload(self, device: int, host: int, size: int, stream: int) -> None:
        source = Span(host, size)
        steady = not any(overlap(source, span) for work in self._schedule.unsettled(source) for span in work.writes)
        before = read(host, size) if steady else None

        def run() -> None:
            for work in self._schedule.unsettled(source):  # what came down into it is there by now
                if work.done and work.settle and work.writes and not self.is_device(work.writes[0]):
                    work.settle()
                    work.settle = None
            copy(device, host, size)

        def settle() -> None:
            if self._schedule.broken or before is None or not self.room(host):
                return
            if read(host, size) != before:
                self.mistakes.append("upload: the host's bytes were changed before the copy was known to be done")

        self._schedule.tell(
            self._line(stream), "upload", run, reads=[source], writes=[Span(device, size)], settle=settle
        )

    def _download(self, host: int, device: int, size: int, stream: int) -> None:
        target = Span(host, size)
        quiet = not self._schedule.unsettled(target)
        if quiet:
            fill(host, GARBAGE, size)
        came: list[bytes] = []

        def settle() -> None:
            if self._schedule.broken or not self.room(host):
                return
            if quiet and any(byte != GARBAGE for byte in set(read(host, size))):
                self.mistakes.append("download: the host wrote where a copy was under way")
            if came:
                copy(host, np.frombuffer(came[0], np.uint8).ctypes.data, size)

        self._schedule.tell(
            self._line(stream),
            "download",
            lambda: came.append(read(device, size)),
            reads=[Span(device, size)],
            writes=[target],
            settle=settle,
        )

    def is_device(self, span: Span) -> bool:
        block = self._blocks.around(span.address)
        return block is not None and block.kind == "device"
