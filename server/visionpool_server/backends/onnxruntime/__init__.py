"""ONNX files through ONNX Runtime: the CPU, or an NVIDIA GPU where `onnxruntime-gpu` is installed.

`provider` says what runs where, `session` opens a file, `engine` loads it and runs it once, `batches` tells whether requests
can be joined. What a worker uses is `context` on the CPU, `device_context` on a GPU, with a batch's memory in `slot`. One session
holds the weights, and its `run` is safe from many threads.
"""

from visionpool_server.backends.onnxruntime.backend import OnnxRuntimeBackend

__all__ = ["OnnxRuntimeBackend"]
