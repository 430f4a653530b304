"""Inferences a second over KServe v2, as ratios to OpenVINO's own and to servers that do nothing, in the same run.

    python -m benchmarks.kserve [--only compute|trivial] [--rounds 5] [--seconds 6 | --requests 5000]

NVIDIA's perf_analyzer asks, asynchronously, on the same cores (benchmarks.perf_analyzer). All servers are there from the start
and only one is asked at a time; a round asks each in turn, and a ratio is the median over the rounds.

compute: a ResNet-50 with random weights, one (1, 3, 224, 224) float32 tensor a request, 8 under way. The reference is OpenVINO's
AsyncInferQueue in a process that does nothing else (benchmarks.openvino_async).

trivial: next to nothing to compute, one (1, 3, 32, 32) float32 tensor a request, 16 under way. Bare servers answer with
a constant (benchmarks.bare); `--parse` lets them parse the request and build the answer. Hand-written ones have OpenVINO in
the handler: they tell which of grpcio's two servers is the better one once there is work to do.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import memory, trivial
from benchmarks.perf_analyzer import Protocol, Report, analyze
from benchmarks.processes import bare, process, said, visionpool

COMPUTE_CONCURRENCY, TRIVIAL_CONCURRENCY = 8, 16
BARE_GRPC = ("aio", "aio-uvloop", "threads-2", "threads-4", "threads-16")
HAND_WRITTEN = ("aio-uvloop", "threads-2", "threads-4", "threads-16")
OURS_GRPC, OURS_HTTP = "visionpool, gRPC", "visionpool, HTTP"
BARE_HTTP = "bare ASGI app in uvicorn, HTTP"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement; `p99_ms` is None where there is no client that sees latencies."""

    per_second: float
    p99_ms: float | None = None
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """How long each measurement takes: `seconds`, or at least so many `requests`."""

    seconds: float
    requests: int | None

    def on(
        self, address: str, protocol: Protocol, model: str, shapes: Mapping[str, tuple[int, ...]], concurrency: int
    ) -> Sample:
        report: Report = analyze(
            address,
            model,
            protocol,
            shapes=shapes,
            concurrency=concurrency,
            seconds=self.seconds,
            requests=self.requests,
        )
        return Sample(report.throughput, report.p99_ms, report.errors)


Measure = Callable[[], Sample]
Samples = Mapping[str, list[Sample]]


def in_rounds(candidates: Mapping[str, Measure], rounds: int) -> Samples:
    """Each candidate once in each round, after one that does not count."""
    samples: dict[str, list[Sample]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, measure in candidates.items():
            sample = measure()
            if number:
                samples[name].append(sample)
    return samples


def compute(load: Load, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = memory.resnet50(Path(folder) / "resnet50.onnx")
        alone = stack.enter_context(process("benchmarks.openvino_async", str(model)))
        reference = f"OpenVINO alone, {said(alone, r'ready with (.+)')} under way"
        server = stack.enter_context(visionpool(model))
        ask = partial(
            load.on,
            model=model.stem,
            shapes={"image": (1, 3, memory.SIZE, memory.SIZE)},
            concurrency=COMPUTE_CONCURRENCY,
        )
        candidates: dict[str, Measure] = {
            reference: partial(_openvino, alone, load.seconds),
            OURS_GRPC: partial(ask, server.grpc, "grpc"),
            OURS_HTTP: partial(ask, server.http, "http"),
        }
        samples = in_rounds(candidates, rounds)
    _head(f"ResNet-50, {COMPUTE_CONCURRENCY} under way", rounds, "ratio to OpenVINO alone")
    for name in samples:
        _row(name, samples[name], None if name == reference else _ratios(samples[name], samples[reference]))


def _openvino(alone: subprocess.Popen[str], seconds: float) -> Sample:
    assert alone.stdin is not None
    print(seconds, file=alone.stdin, flush=True)
    return Sample(float(said(alone, r"([0-9.]+)")))


def trivially(load: Load, rounds: int, *, parse: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = trivial.write(Path(folder))
        server = stack.enter_context(visionpool(model))
        ask = partial(
            load.on,
            model=trivial.NAME,
            shapes={trivial.INPUT: trivial.SHAPE},
            concurrency=TRIVIAL_CONCURRENCY,
        )
        candidates: dict[str, Measure] = {OURS_GRPC: partial(ask, server.grpc, "grpc")}
        options = ["--parse"] if parse else []
        for kind in BARE_GRPC:
            candidates[f"bare {kind}, gRPC"] = partial(ask, stack.enter_context(bare(kind, *options)), "grpc")
        for kind in HAND_WRITTEN:
            address = stack.enter_context(bare(kind, "--infer", str(model)))
            candidates[f"hand-written {kind}, gRPC"] = partial(ask, address, "grpc")
        candidates[OURS_HTTP] = partial(ask, server.http, "http")
        candidates[BARE_HTTP] = partial(ask, stack.enter_context(bare("http", *options)), "http")
        samples = in_rounds(candidates, rounds)
    parsing = ", bare servers parse" if parse else ""
    _head(f"trivial model, {TRIVIAL_CONCURRENCY} under way{parsing}", rounds, "visionpool's ratio to it")
    for name in samples:
        ours = samples[OURS_HTTP if name.endswith("HTTP") else OURS_GRPC]
        _row(name, samples[name], None if samples[name] is ours else _ratios(ours, samples[name]))


def _ratios(ours: list[Sample], theirs: list[Sample]) -> list[float]:
    """Round by round, in ascending order."""
    return sorted(our.per_second / their.per_second for our, their in zip(ours, theirs, strict=True))


def _head(title: str, rounds: int, ratio: str) -> None:
    print(f"\n{title}, {rounds} rounds\n")
    print(f"| | inferences/s | lowest .. highest | p99 ms | {ratio} | lowest .. highest | errors |")
    print("|---|--:|--:|--:|--:|--:|--:|")


def _row(name: str, samples: list[Sample], ratios: list[float] | None) -> None:
    rates = sorted(sample.per_second for sample in samples)
    latencies = [sample.p99_ms for sample in samples if sample.p99_ms is not None]
    columns = [
        name,
        f"{statistics.median(rates):.1f}",
        f"{rates[0]:.1f} .. {rates[-1]:.1f}",
        f"{statistics.median(latencies):.1f}" if latencies else "",
        f"**{statistics.median(ratios):.3f}**" if ratios else "",
        f"{ratios[0]:.3f} .. {ratios[-1]:.3f}" if ratios else "",
        str(sum(sample.errors for sample in samples)),
    ]
    print(f"| {' | '.join(columns)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("compute", "trivial"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument(
        "--requests", type=int, help="of each measurement, at least, instead of seconds (OpenVINO: seconds)"
    )
    parser.add_argument("--parse", action="store_true", help="the bare servers parse")
    asked = parser.parse_args()
    load = Load(asked.seconds, asked.requests)
    if asked.only != "trivial":
        compute(load, asked.rounds)
    if asked.only != "compute":
        trivially(load, asked.rounds, parse=asked.parse)


if __name__ == "__main__":
    main()
