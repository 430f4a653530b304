"""Models on NVIDIA GPUs through TensorRT."""
