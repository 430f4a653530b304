"""Where the time of a picture that is read goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from visionpool_server.batching import Job
from visionpool_server.statistics import Stages


@dataclass(slots=True)
class Times:
    """Seconds in each stage: of lines that are read side by side, the slowest."""

    decode_s: float = 0.0
    prepare_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    finish_s: float = 0.0

    def stages(self) -> Stages:
        return Stages(self.queue_s, self.decode_s + self.prepare_s, self.infer_s, self.finish_s)

    def in_milliseconds(self) -> dict[str, float]:
        return {name.removesuffix("_s"): seconds * 1e3 for name, seconds in asdict(self).items()}

    def add(self, job: Job) -> None:
        self.prepare_s += job.decode_s + job.prepare_s
        self.queue_s += job.queue_s
        self.infer_s += job.infer_s
        self.finish_s += job.finish_s

    def add_slowest(self, lines: Sequence[Times]) -> None:
        for stage in ("prepare_s", "queue_s", "infer_s", "finish_s"):
            setattr(self, stage, getattr(self, stage) + max((getattr(line, stage) for line in lines), default=0.0))
