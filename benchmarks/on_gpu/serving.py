"""A real server asked over HTTP and KServe, against what the runtime does without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.on_gpu.ask import Answered, ask, http_request, kserve_grpc, kserve_http
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.models import INPUT, OUTPUT, tensors
from benchmarks.on_gpu.report import Report, ratio
from benchmarks.processes import Addresses

_WARM_UP = 0.5  # seconds, of each way at its highest concurrency

Requests = Mapping[str, tuple[str, Path]]  # what it is called -> http or grpc, and the file with the request


def pictures_request(machine: Machine, model: str) -> Requests:
    path = machine.models.folder / f"{model}-picture.http"
    headers = {"Content-Type": "image/jpeg"}
    path.write_bytes(http_request(f"/v1/models/{model}/predict", machine.models.jpeg(machine.picture), headers))
    return {"pictures over HTTP": ("http", path)}


def tensor_requests(machine: Machine, model: str) -> Requests:
    """One picture as a float32 tensor of the ResNet."""
    folder, one = machine.models.folder, tensors(1)
    paths = {kind: folder / f"{model}-tensor.{kind}" for kind in ("http", "grpc")}
    paths["http"].write_bytes(kserve_http(model, INPUT, one, OUTPUT))
    paths["grpc"].write_bytes(kserve_grpc(model, INPUT, one))
    return {
        "tensors, KServe over HTTP": ("http", paths["http"]),
        "tensors, KServe over gRPC": ("grpc", paths["grpc"]),
    }


def begin_table(report: Report, reference: str) -> None:
    report.table("", "concurrency", "pictures /s", "p50 ms", "p99 ms", f"ratio to {reference}", "errors")


def measure(
    machine: Machine, report: Report, server: Addresses, requests: Requests, bare: float, *, title: str = ""
) -> None:
    """`bare`: pictures a second without a server."""
    for name, (kind, request) in requests.items():
        address = server.http if kind == "http" else server.grpc
        if not address:
            continue
        ask(kind, address, request, max(machine.concurrency), min(_WARM_UP, machine.seconds))
        for concurrency in machine.concurrency:
            report.check_time(machine.seconds + 2)
            found: Answered = ask(kind, address, request, concurrency, machine.seconds)
            report.row(
                *(f"{title}{name}", concurrency, found.per_second, found.p50_ms, found.p99_ms),
                *(ratio(found.per_second, bare), found.errors),
            )


def best(rates: Sequence[float]) -> float:
    return max(rates, default=0.0)
