"""What OpenVINO alone makes of a model: the reference of benchmarks.kserve, in a process of its own.

    python -m benchmarks.openvino_async model.onnx

prints `ready with N requests`, and then, for each number of seconds on stdin, the inferences a second over that time. The
model takes one (1, 3, H, W) float32 tensor, which lies ready; it is compiled for throughput in f32, and an AsyncInferQueue
keeps as many requests under way as OpenVINO finds best.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import openvino as ov


class Queue:
    """`measure` gives inferences a second, with `requests` of them under way."""

    def __init__(self, path: Path) -> None:
        core = ov.Core()
        model = core.read_model(path)
        model.reshape([1, *(d.get_length() for d in list(model.input(0).partial_shape)[1:])])
        properties = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(model, "CPU", properties)
        self._queue = ov.AsyncInferQueue(compiled)
        self.requests = len(self._queue)
        tensor = ov.Tensor(np.zeros(compiled.input(0).shape, np.float32))
        for request in self._queue:
            request.set_input_tensor(0, tensor)
            request.infer()

    def measure(self, seconds: float) -> float:
        for _ in range(self.requests):
            self._queue.start_async()
        count, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            self._queue.start_async()  # returns when another request is done
            count += 1
        self._queue.wait_all()
        return count / elapsed


def main() -> None:
    queue = Queue(Path(sys.argv[1]))
    print(f"ready with {queue.requests} requests", flush=True)
    for line in sys.stdin:
        print(queue.measure(float(line)), flush=True)


if __name__ == "__main__":
    main()
