"""NVIDIA GPUs: one seam to the driver with two implementations, what is held on a device, and our kernels.

    driver.py      the calls that are made, and which package makes them (cuda-bindings, pycuda)
    gpu.py         a device, its streams, events, memory, kernels and graphs, and who frees them
    pictures.py    pictures of any size to a batch of a model's numbers, by one kernel (kernels/)
    sources.py     what of a decoded picture is copied for that
    compiler.py    CUDA C++ to PTX and cubins, for the project's build, for tests and for kernels of your own
    monitor.py     what the devices are doing, by nvidia-ml

Nothing here knows of models or of runtimes.
"""
