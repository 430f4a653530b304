"""Load on a server, by processes that cost little: requests made beforehand, sent again as soon as they are answered.

    python -m benchmarks.on_gpu.ask http|grpc HOST:PORT REQUEST --concurrency 8 --seconds 2

REQUEST: a file with the bytes of a whole HTTP request, or of an inference.ModelInferRequest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import Caller

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_MOST_PROCESSES = 4
_GRACE = 60  # seconds, beyond those that are measured


@dataclass(frozen=True, slots=True)
class Answered:
    """Latencies in milliseconds."""

    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def ask(kind: str, address: str, request: Path, concurrency: int, seconds: float) -> Answered:
    """By up to four processes. Raises RuntimeError where one fails, or nothing was answered."""
    count = min(concurrency, _MOST_PROCESSES)
    shares = [concurrency // count + (index < concurrency % count) for index in range(count)]
    command = [sys.executable, "-m", "benchmarks.on_gpu.ask", kind, address, str(request), "--seconds", str(seconds)]
    started = [
        subprocess.Popen(
            [*command, "--concurrency", str(share)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for share in shares
    ]
    said = [_said(process, seconds) for process in started]
    took = np.sort([value for one in said for value in one["seconds"]]) * 1e3
    if not len(took):
        raise RuntimeError(f"{address} answered nothing")
    rate = sum(len(one["seconds"]) / one["elapsed"] for one in said)
    errors = sum(one["errors"] for one in said)
    return Answered(rate, float(np.percentile(took, 50)), float(np.percentile(took, 99)), errors)


def _said(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    try:
        out, errors = process.communicate(timeout=seconds + _GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise RuntimeError(errors.decode(errors="replace")[-500:])
    found: dict[str, Any] = json.loads(out)
    return found


def http_request(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def kserve_http(model: str, name: str, array: NDArray[Any], output: str) -> bytes:
    """With the tensor, and the answer's, as bytes behind the JSON."""
    said = {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": "FP32",
                "parameters": {"binary_data_size": array.nbytes},
            }
        ],
        "outputs": [{"name": output, "parameters": {"binary_data": True}}],
    }
    head = json.dumps(said).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return http_request(f"/v2/models/{model}/infer", head + array.tobytes(), headers)


def kserve_grpc(model: str, name: str, array: NDArray[Any]) -> bytes:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype="FP32", shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    return bytes(request.SerializeToString())


async def _http(address: str, request: bytes, concurrency: int, seconds: float) -> Sequence[Caller]:
    host, _, port = address.rpartition(":")
    loop, until = asyncio.get_running_loop(), time.perf_counter() + seconds
    callers, events = [], []
    for _ in range(concurrency):
        done = asyncio.Event()
        _, caller = await loop.create_connection(lambda d=done: Caller(request, d, until), host, int(port))  # type: ignore[misc]
        callers.append(caller)
        events.append(done)
    await asyncio.gather(*(event.wait() for event in events))
    return callers


@dataclass
class _Called:
    seconds: list[float]
    errors: int = 0


async def _grpc(address: str, request: bytes, concurrency: int, seconds: float) -> Sequence[_Called]:
    import grpc

    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        infer: Any = channel.unary_unary(_INFER)  # bytes in, bytes out
        until = time.perf_counter() + seconds

        async def call() -> _Called:
            found = _Called([])
            while (sent := time.perf_counter()) < until:
                try:
                    await infer(request)
                except grpc.aio.AioRpcError:
                    found.errors += 1
                found.seconds.append(time.perf_counter() - sent)
            return found

        return await asyncio.gather(*(call() for _ in range(concurrency)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("http", "grpc"))
    parser.add_argument("address")
    parser.add_argument("request", type=Path)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2)
    asked = parser.parse_args()
    calling: Any = _http if asked.kind == "http" else _grpc
    started = time.perf_counter()
    found = asyncio.run(calling(asked.address, asked.request.read_bytes(), asked.concurrency, asked.seconds))
    json.dump(
        {
            "seconds": [value for one in found for value in one.seconds],
            "errors": sum(one.errors for one in found),
            "elapsed": time.perf_counter() - started,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
