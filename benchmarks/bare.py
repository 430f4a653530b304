"""Servers that answer the trivial model's requests with a constant: what the transport alone can do.

    python -m benchmarks.bare aio|aio-uvloop|threads-4|http [--parse | --infer trivial.onnx] [--port 0]

| | |
|---|---|
| aio | grpcio's asyncio server on asyncio's own loop |
| aio-uvloop | the same on uvloop |
| threads-N | grpcio's other server, with a pool of N threads |
| http | an ASGI app in uvicorn, with httptools and uvloop |

They answer what perf_analyzer asks, and print `ready at HOST:PORT`. Of a request they read nothing but its id, which
clients want back; with `--parse` they parse it, view its tensor as an array, and build the answer anew. With `--infer` (gRPC
only) OpenVINO really answers: the server that one writes by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from pathlib import Path

import uvloop

from benchmarks import bare_grpc, bare_http


def serve(kind: str, port: int, *, parse: bool, model: Path | None = None) -> None:
    """Serves until the process is ended."""
    if kind == "http":
        bare_http.serve(bare_http.parsed if parse else bare_http.constant, port, _ready)
        return
    infer = bare_grpc.inferring(model) if model else bare_grpc.parsed if parse else bare_grpc.constant
    if kind.startswith("threads-"):
        bare_grpc.serve_threads(infer, port, int(kind.removeprefix("threads-")), _ready)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if kind == "aio-uvloop" else None) as runner:
        runner.run(bare_grpc.serve_aio(infer, port, _ready))


def _ready(port: int) -> None:
    print(f"ready at 127.0.0.1:{port}", flush=True)


def _kind(text: str) -> str:
    if not re.fullmatch(r"aio|aio-uvloop|threads-[1-9]\d*|http", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of aio, aio-uvloop, threads-N, http")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", type=_kind, metavar="aio|aio-uvloop|threads-N|http")
    parser.add_argument("--parse", action="store_true")
    parser.add_argument("--infer", type=Path, metavar="MODEL")
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    serve(asked.kind, asked.port, parse=asked.parse, model=asked.infer)


if __name__ == "__main__":
    main()
