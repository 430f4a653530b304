"""NVIDIA's perf_analyzer against a KServe server, and what it reports.

    python -m benchmarks.perf_analyzer [--seconds 3] [--concurrency 16]

prints a table for the trivial model on `visionpool serve` with default settings: HTTP and gRPC, synchronous, asynchronous,
and asynchronous with tensors in shared memory. A case that fails says why, and makes the exit status 1. The program itself is
downloaded once (benchmarks.perf_analyzer_download).
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks import trivial
from benchmarks.perf_analyzer_download import program
from benchmarks.processes import Addresses, visionpool

Protocol = Literal["grpc", "http"]
Mode = Literal["sync", "async"]
Memory = Literal["none", "system"]

WINDOWS = 3  # the fewest by which it can call a measurement stable; what it reports is all of them together
ANY = "1000000"  # percent by which windows may differ: our spread is that over the rounds
OUTPUT_BYTES = 65536
DEADLINE = 300  # seconds


@dataclass(frozen=True, slots=True)
class ServerSide:
    """The server's own statistics of the measured time; the times are means in microseconds of a request."""

    inferences: int
    queue: float
    compute_input: float
    compute_infer: float
    compute_output: float


@dataclass(frozen=True, slots=True)
class Report:
    """Inferences a second, and latencies in milliseconds as the client saw them. `server`: None where it keeps no statistics.

    `errors` are those that the server counted since before the warm-up. perf_analyzer stops at the first it sees, which
    raises, but does not look again after its last window.
    """

    throughput: float
    requests: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    errors: int
    server: ServerSide | None


def analyze(
    address: str,
    model: str,
    protocol: Protocol,
    *,
    shapes: Mapping[str, Sequence[int]],
    concurrency: int = 16,
    mode: Mode = "async",
    shared_memory: Memory = "none",
    seconds: float = 3.0,
    requests: int | None = None,
) -> Report:
    """Asks `model` at host:port for about `seconds`, or for at least so many `requests`, with tensors of zeros in `shapes`.

    Raises RuntimeError with what perf_analyzer said where it fails, as it does where requests do.
    """
    found = program()
    command = [str(found.path), "-m", model, "-u", address, "-i", protocol, "--input-data", "zero", "-v"]
    command += ["-a" if mode == "async" else "--sync", "--concurrency-range", str(concurrency)]
    command += ["-r", str(WINDOWS), "-s", ANY, *_windows(seconds, requests), *_memory(shared_memory)]
    for name, shape in shapes.items():
        command += ["--shape", f"{name}:{','.join(map(str, shape))}"]
    failures = _failures(address, model, protocol)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "report.csv"
        command += ["-f", str(table), "--verbose-csv"]
        done = subprocess.run(
            command, env=found.environment(), capture_output=True, text=True, check=False, timeout=DEADLINE
        )
        if done.returncode or not table.exists():
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return _report(table, done.stdout, _failures(address, model, protocol) - failures)


def _windows(seconds: float, requests: int | None) -> list[str]:
    if requests is None:
        return ["--measurement-mode", "time_windows", "-p", str(round(seconds * 1000 / WINDOWS))]
    return ["--measurement-mode", "count_windows", "--measurement-request-count", str(-(-requests // WINDOWS))]


def _memory(kind: Memory) -> list[str]:
    return [] if kind == "none" else ["--shared-memory", kind, "--output-shared-memory-size", str(OUTPUT_BYTES)]


def _failures(address: str, model: str, protocol: Protocol) -> int:
    """How many requests the server has failed so far."""
    statistics: dict[str, Any]
    if protocol == "grpc":
        from tritonclient.grpc import InferenceServerClient

        with InferenceServerClient(address) as client:
            statistics = client.get_inference_statistics(model, as_json=True)
    else:
        from tritonclient.http import InferenceServerClient as HttpClient

        with HttpClient(address) as http_client:
            statistics = http_client.get_inference_statistics(model)
    [said] = statistics["model_stats"]
    return int(said.get("inference_stats", {}).get("fail", {}).get("count", 0))


def _report(table: Path, printed: str, errors: int) -> Report:
    with table.open(newline="") as file:
        [row] = csv.DictReader(file)
    return Report(
        throughput=float(row["Inferences/Second"]),
        requests=_counted("Request count", printed),
        mean_ms=float(row["Avg latency"]) / 1000,
        p50_ms=float(row["p50 latency"]) / 1000,
        p99_ms=float(row["p99 latency"]) / 1000,
        errors=errors,
        server=_server_side(row, printed) if "Server Queue" in row else None,
    )


def _server_side(row: Mapping[str, str], printed: str) -> ServerSide:
    parts = ("Queue", "Compute Input", "Compute Infer", "Compute Output")
    return ServerSide(_counted("Inference count", printed), *(float(row[f"Server {part}"]) for part in parts))


def _counted(what: str, printed: str) -> int:
    """A number that it prints, and has not in its CSV."""
    found = re.search(rf"^\s*{what}: (\d+)$", printed, re.MULTILINE)
    if not found:
        raise RuntimeError(f"perf_analyzer did not say {what!r}:\n{printed}")
    return int(found[1])


CASES: list[tuple[Protocol, Mode, Memory]] = [
    ("http", "sync", "none"),
    ("http", "async", "none"),
    ("http", "async", "system"),
    ("grpc", "sync", "none"),
    ("grpc", "async", "none"),
    ("grpc", "async", "system"),
]


def measure(server: Addresses, seconds: float, concurrency: int) -> bool:
    """Prints the table; whether all cases went well."""
    print("| | | shared memory | inferences/s | p99 ms | queue µs | input µs | infer µs | output µs | ", end="")
    print("requests | inferences by the server | errors |\n|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    well = True
    for protocol, mode, memory in CASES:
        address = server.grpc if protocol == "grpc" else server.http
        ask = partial(analyze, address, trivial.NAME, protocol, mode=mode, shared_memory=memory)
        try:
            report = ask(shapes={trivial.INPUT: trivial.SHAPE}, concurrency=concurrency, seconds=seconds)
            columns = _columns(report, concurrency)
        except RuntimeError as error:
            columns, well = f"failed: {str(error).rstrip().splitlines()[-1]}", False
        print(f"| {protocol} | {mode} | {memory} | {columns} |", flush=True)
    return well


def _columns(report: Report, concurrency: int) -> str:
    server = report.server
    assert server is not None
    times = (server.queue, server.compute_input, server.compute_infer, server.compute_output)
    columns = [f"{report.throughput:.0f}", f"{report.p99_ms:.1f}", *(f"{value:.0f}" for value in times)]
    counted = f"{server.inferences}{'' if _same(server.inferences, report.requests, concurrency) else ' **differs**'}"
    return " | ".join([*columns, str(report.requests), counted, str(report.errors)])


def _same(inferences: int, requests: int, concurrency: int) -> bool:
    """The two sides are not counted at the same moments: what is under way at both ends of a window may differ, and what is
    answered while the statistics are fetched."""
    return abs(inferences - requests) <= max(2 * concurrency * WINDOWS, 0.05 * requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--concurrency", type=int, default=16)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, visionpool(trivial.write(Path(folder))) as server:
        well = measure(server, asked.seconds, asked.concurrency)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
