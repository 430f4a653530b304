"""Asks a running server over gRPC: python examples/grpc_python.py [PICTURE] [--address HOST:PORT] [--model NAME]

Needs the client alone; in a clone: pip install '.[grpc]'
"""

from __future__ import annotations

import argparse
from pathlib import Path

import visionpool

PICTURE = Path(__file__).parent / "shapes.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a model sees in a picture, over gRPC.")
    parser.add_argument("picture", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--address", default="127.0.0.1:8001", help="host:port, or grpcs://host:port for TLS")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--save", type=Path, help="where to write the picture with the results drawn in")
    args = parser.parse_args()

    with visionpool.GrpcClient(args.address, timeout=10) as client:
        client.wait_ready()
        try:
            full = client.predict_full(args.model, args.picture)
        except visionpool.VisionpoolError as error:  # the same errors as over HTTP
            raise SystemExit(f"{error.code}: {error}") from error
        result = full.results[0]
        if isinstance(result, (visionpool.DetectionResult, visionpool.ClassifyResult)):
            for label, score in zip(result.labels, result.scores, strict=True):
                print(f"{label:10} {score:.2f}")
        print(
            f"{full.model} {full.version}:", ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in full.timings_ms.items())
        )
        if args.save:
            args.save.write_bytes(client.annotate(args.model, args.picture))
            print(f"drawn into {args.save}")


if __name__ == "__main__":
    main()
