"""Inferences kept as CUDA graphs, which cost one call to repeat instead of one for each kernel.

A graph is of one shape, one profile and fixed addresses, and valid only while the trt.IExecutionContext that it was captured
from is not told anything else: each has its own, and all compute in one piece of memory, since one stream runs them in turn.
What comes for the second time is captured; a few are kept, those used last.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from visionpool.errors import InferenceFailed, InvalidRequest

from visionpool_server.backends.tensorrt.buffers import close_all
from visionpool_server.backends.tensorrt.loaded import Loaded
from visionpool_server.backends.tensorrt.ranges import Shapes
from visionpool_server.backends.tensorrt.runner import Runner
from visionpool_server.cuda.errors import CudaError
from visionpool_server.cuda.gpu import DeviceBuffer, Graph, Stream

log = logging.getLogger(__name__)

_KEPT = 16  # of both sets of buffers: eight shapes
_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class _Captured:
    runner: Runner
    graph: Graph

    def close(self) -> None:
        close_all([self.graph, self.runner])


class Graphs:
    """Of one worker. `working`: False once a capture has failed, for good."""

    def __init__(self, loaded: Loaded, memory: DeviceBuffer) -> None:
        self.working = True
        self._loaded = loaded
        self._memory = memory
        self._kept: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def run(self, profile: int, shapes: Shapes, addresses: Mapping[str, int], stream: Stream) -> bool:
        """Puts the inference on the stream if it has a graph, or gets one now; else False, and nothing is done."""
        key = (profile, tuple(shapes.items()), tuple(addresses.items()))
        if found := self._kept.get(key):
            self._kept.move_to_end(key)
            found.graph.launch(stream)
            return True
        if not self.working or not self._is_known(key):
            return False
        return self._capture(key, profile, shapes, addresses, stream)

    def _is_known(self, key: Hashable) -> bool:
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def _capture(
        self, key: Hashable, profile: int, shapes: Shapes, addresses: Mapping[str, int], stream: Stream
    ) -> bool:
        """Runs once as always, which is this inference, and once more into a graph, which is for the next ones."""
        self._make_room()
        try:
            runner = Runner(self._loaded, self._memory)
        except InferenceFailed as error:
            return self._give_up(error)
        try:
            runner.shape(profile, shapes, {}, stream)
            runner.bind(addresses)
            runner.enqueue(stream)
        except (InferenceFailed, InvalidRequest) as error:
            stream.synchronize()  # before the runner goes
            runner.close()
            return self._give_up(error)
        try:
            stream.synchronize()  # as trtexec does: what a first run leaves to be done later is done, and not captured
            with self._loaded.gpu.captured(stream) as graph:
                runner.enqueue(stream)
            self._kept[key] = _Captured(runner, graph())
        except (InferenceFailed, CudaError) as error:
            stream.synchronize()
            runner.close()
            self._give_up(error)
        return True

    def _make_room(self) -> None:
        """What goes was launched many inferences ago, of which two at most are under way."""
        if len(self._kept) >= _KEPT:
            self._kept.popitem(last=False)[1].close()

    def _give_up(self, error: Exception) -> bool:
        """False: the inference is still to be run."""
        self.working = False
        log.warning("%s: no CUDA graphs, inferences are enqueued one by one: %s", self._loaded.device, str(error))
        return False

    def close(self) -> None:
        """Nothing may be under way."""
        close_all(self._kept.values())
        self._kept.clear()
