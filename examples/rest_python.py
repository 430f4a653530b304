"""Asks a running server over HTTP: python examples/rest_python.py [PICTURE] [--url URL] [--model NAME]

Needs the client alone; in a clone: pip install .
"""

from __future__ import annotations

import argparse
from pathlib import Path

import visionpool

PICTURE = Path(__file__).parent / "shapes.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a model sees in a picture, over HTTP.")
    parser.add_argument("picture", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="shapes")
    args = parser.parse_args()

    with visionpool.Client(args.url, timeout=10) as client:
        client.wait_ready()
        print("models:", ", ".join(model.name for model in client.models()))
        try:
            result = client.predict(args.model, args.picture)
        except visionpool.VisionpoolError as error:  # ModelNotFound, InvalidImage, QueueFull, ...
            raise SystemExit(f"{error.code}: {error}") from error
        show(result)


def show(result: visionpool.Result) -> None:
    match result:
        case visionpool.DetectionResult():
            for label, score, box in zip(result.labels, result.scores, result.boxes, strict=True):
                print(f"{label:10} {score:.2f}  {', '.join(f'{value:.0f}' for value in box)}")
        case visionpool.ClassifyResult():
            for label, score in zip(result.labels, result.scores, strict=True):
                print(f"{label:10} {score:.2f}")
        case _:
            print(result.to_json())


if __name__ == "__main__":
    main()
