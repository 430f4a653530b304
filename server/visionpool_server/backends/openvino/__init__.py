"""Intel CPU, GPU and NPU through OpenVINO, by any device string: CPU, GPU.1, NPU, AUTO, HETERO:GPU,CPU ...

`backend` loads: `files` reads and names tensors, `shapes` plans batches and compiles the picture's arithmetic into the graph,
`devices` compiles and places operators, `first_run` tries. `engine` is what comes of it, `context` what a worker uses.
"""

import sys

# Its usage statistics write under HOME and ask the network at import: with this it falls back to its own stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

from visionpool_server.backends.openvino.backend import OpenVinoBackend  # noqa: E402  the line above comes first
from visionpool_server.backends.openvino.files import core  # noqa: E402

__all__ = ["OpenVinoBackend", "core"]
