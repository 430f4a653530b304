"""Where the time of a picture that is read goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from visionpool_server.batching import Job
from visionpool_server.statistics import Stages


@dataclass(slots=True)
class Times:
    """Seconds in each stage: of lines that are read side by side, the slowest."""

    decode: float = 0.0
    prepare: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    finish: float = 0.0

    def stages(self) -> Stages:
        return Stages(self.queue, self.decode + self.prepare, self.infer, self.finish)

    def in_milliseconds(self) -> dict[str, float]:
        return {name: seconds * 1e3 for name, seconds in asdict(self).items()}

    def add(self, job: Job) -> None:
        self.prepare += job.decode_s + job.prepare_s
        self.queue += job.queue_s
        self.infer += job.infer_s
        self.finish += job.finish_s

    def add_slowest(self, lines: Sequence[Times]) -> None:
        for stage in ("prepare", "queue", "infer", "finish"):
            setattr(self, stage, getattr(self, stage) + max((getattr(line, stage) for line in lines), default=0.0))
