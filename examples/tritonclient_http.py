"""Asks with Triton's HTTP client: python examples/tritonclient_http.py [PICTURE] [--url HOST:PORT] [--model NAME]

Needs: pip install 'tritonclient[http]'
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

PICTURE = Path(__file__).parent / "shapes.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a model sees in a picture, over KServe v2 and HTTP.")
    parser.add_argument("picture", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--url", default="127.0.0.1:8000", help="without http://, as tritonclient wants it")
    parser.add_argument("--model", default="shapes")
    args = parser.parse_args()

    client = InferenceServerClient(args.url.removeprefix("http://"))
    metadata = client.get_model_metadata(args.model)
    name = metadata["inputs"][0]["name"]

    # The encoded picture as it is, the result as JSON: the server decodes, prepares and finishes.
    picture = InferInput(name, [1], "BYTES")
    picture.set_data_from_numpy(np.array([args.picture.read_bytes()], object))
    answer = client.infer(args.model, [picture], outputs=[InferRequestedOutput("result")])
    found = json.loads(answer.as_numpy("result")[0])
    for label, score in zip(found["labels"], found["scores"], strict=True):
        print(f"{label:10} {score:.2f}")

    # The model's own tensors: the caller prepares and finishes. Free dimensions (-1) are taken as 1 here.
    shape = [max(1, size) for size in metadata["inputs"][0]["shape"]]
    tensor = InferInput(name, shape, "FP32")
    tensor.set_data_from_numpy(np.full(shape, 0.5, np.float32))
    answer = client.infer(args.model, [tensor])
    for output in answer.get_response()["outputs"]:
        print(f"{output['name']}: {output['datatype']} {output['shape']}")
    client.close()


if __name__ == "__main__":
    main()
