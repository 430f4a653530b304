"""What a model sees in each frame of a video, as it comes.

    python examples/video.py street.mp4    # a file
    python examples/video.py 0             # the first camera
    python examples/video.py pictures/     # a folder of pictures

Needs the client and OpenCV; in a clone: pip install '.[grpc]' opencv-python
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import cv2
import visionpool


def frames(source: str) -> cv2.VideoCapture | list[Path]:
    if source.isdecimal():
        return cv2.VideoCapture(int(source))
    if Path(source).is_dir():
        return sorted(path for path in Path(source).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return cv2.VideoCapture(source)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a model sees in each frame of a video.")
    parser.add_argument("source", help="a video file, the number of a camera, or a folder of pictures")
    parser.add_argument("--address", default="127.0.0.1:8001")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--in-flight", type=int, default=16, help="frames under way at once; fewer lag less behind")
    args = parser.parse_args()

    started, number = time.monotonic(), 0
    with visionpool.GrpcClient(args.address) as client:
        try:
            results = client.stream(args.model, frames(args.source), errors="yield", in_flight=args.in_flight)
            for number, result in enumerate(results, 1):
                print(f"frame {number}: {told(result)}", flush=True)
        except visionpool.VisionpoolError as error:  # of all frames: no such model, no server, no video
            raise SystemExit(f"{error.code}: {error}") from error
    print(f"{number} frames, {number / (time.monotonic() - started):.1f} a second")


def told(result: visionpool.Result | visionpool.VisionpoolError) -> str:
    if isinstance(result, visionpool.VisionpoolError):  # of this frame alone: the stream goes on
        return f"{result.code}: {result}"
    if isinstance(result, (visionpool.DetectionResult, visionpool.ClassifyResult)):
        return ", ".join(f"{count} {label}" for label, count in Counter(result.labels).items()) or "nothing"
    return result.to_json()


if __name__ == "__main__":
    main()
