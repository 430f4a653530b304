"""What all contexts of one engine share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from visionpool_server.backends import ImageInput
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.ranges import Ranges
from visionpool_server.backends.tensorrt.tensors import Tensor
from visionpool_server.cuda.gpu import Gpu


@dataclass(slots=True)
class Loaded:
    """`engine`: a trt.ICudaEngine, which holds the weights. `graphs`: whether to replay inferences as CUDA graphs."""

    api: Api
    engine: Any  # trt.ICudaEngine
    gpu: Gpu
    tensors: tuple[Tensor, ...]
    ranges: Ranges
    image: ImageInput | None
    graphs: bool
    inputs: tuple[Tensor, ...] = field(init=False)  # of the `tensors`, as are the outputs
    outputs: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = tuple(tensor for tensor in self.tensors if tensor.is_input)
        self.outputs = tuple(tensor for tensor in self.tensors if not tensor.is_input)

    def close(self) -> None:
        """Lets go of the engine, whoever still knows of this."""
        self.engine = None

    @property
    def device(self) -> str:
        return f"cuda:{self.gpu.ordinal}"
