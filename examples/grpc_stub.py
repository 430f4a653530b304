"""Asks with nothing but grpcio and the generated stub, as it would be done from any language with gRPC:

    python examples/grpc_stub.py [PICTURE] [--address HOST:PORT] [--model NAME]

Needs grpcio and the code generated from protos/visionpool/v1/vision.proto; in a clone: pip install '.[grpc]' brings both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import grpc
from visionpool.v1 import vision_pb2, vision_pb2_grpc

PICTURE = Path(__file__).parent / "shapes.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a detector sees in a picture, by the plain gRPC stub.")
    parser.add_argument("picture", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--address", default="127.0.0.1:8001")
    parser.add_argument("--model", default="shapes")
    args = parser.parse_args()

    request = vision_pb2.PredictRequest(
        model=args.model,
        pictures=[args.picture.read_bytes()],
        options=vision_pb2.PredictOptions(score_threshold=0.5),
    )
    with grpc.insecure_channel(args.address) as channel:
        stub = vision_pb2_grpc.VisionStub(channel)
        try:
            response = stub.Predict(request, timeout=10)  # seconds; the server gives up with the caller
        except grpc.RpcError as error:
            for key, value in error.trailing_metadata():
                if key == "visionpool-error-bin":  # the same for programs: code, message, hint
                    print(json.loads(value))
            raise SystemExit(f"{error.code().name}: {error.details()}") from error
    for result in response.results:
        found = result.detection
        for label, score, box in zip(found.labels, found.scores, found.boxes, strict=True):
            print(f"{label:10} {score:.2f}  {box.xmin:.0f}, {box.ymin:.0f}, {box.xmax:.0f}, {box.ymax:.0f}")


if __name__ == "__main__":
    main()
