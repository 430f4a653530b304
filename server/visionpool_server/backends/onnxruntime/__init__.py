"""ONNX files through ONNX Runtime: the CPU, or an NVIDIA GPU where `onnxruntime-gpu` is installed.

`session` opens a file and says what it holds, `batches` whether requests can be joined, `backend` loads and tries. `context` is
what a worker uses: one session holds the weights, and its `run` is safe from many threads.
"""

from visionpool_server.backends.onnxruntime.backend import OnnxRuntimeBackend

__all__ = ["OnnxRuntimeBackend"]
