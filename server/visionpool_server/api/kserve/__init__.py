"""KServe v2, the Open Inference Protocol, with Triton's extensions: one implementation under two transports."""
