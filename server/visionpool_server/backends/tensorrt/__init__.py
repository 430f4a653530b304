"""Models on NVIDIA GPUs through TensorRT: ONNX files, built into engines, and engines built before.

    read      onnx_file (a leaf above), plans                     what a file holds
    build     network -> profiles, settings -> builder -> plans   ONNX to a plan, kept for the next time
    run       engine, context                                     one engine, a context and a stream a worker

`api` knows in what the two TensorRTs differ, `log` what they complain of, `messages` what to do about it. Nothing of TensorRT's
runtime is touched before CUDA has been asked for its devices: without a driver it would end the process.
"""

from visionpool_server.backends.tensorrt.backend import TensorRtBackend

__all__ = ["TensorRtBackend"]
