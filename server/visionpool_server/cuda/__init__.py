"""NVIDIA GPUs: one seam to the driver with two implementations, what is held on a device, and our kernels.

    driver.py      the calls that are made, and which package makes them (cuda-bindings, pycuda)
    gpu.py         a device, its streams, events, memory, kernels and graphs, and who frees them
    pictures.py    pictures of any size to a batch of a model's numbers, by one kernel (kernels/)
    monitor.py     what the devices are doing, by nvidia-ml

Nothing here knows of models or of runtimes.
"""
