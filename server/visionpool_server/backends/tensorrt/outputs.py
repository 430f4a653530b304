"""Memory for outputs whose size only the numbers tell: TensorRT asks for it in the middle of an inference."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.buffers import Slot


class Allocator(Protocol):
    """A trt.IOutputAllocator. `shape`: of the last inference, once it was put on its stream."""

    shape: tuple[int, ...] | None

    def expect(self, slot: Slot) -> None:
        """Before each inference: it gives the device memory of `slot`, which grows where it has to."""

    def raise_refusal(self) -> None:
        """Why there was no memory, where there was none."""


def allocator(api: Api) -> Allocator:
    """For one output of one trt.IExecutionContext, whichever set of buffers is filled: it is asked before `enqueue` returns."""
    made: Allocator = _class(api.trt)()
    return made


@cache
def _class(trt: Any) -> Any:
    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc]  # its base is found at run time
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self._slot: Slot | None = None

        def expect(self, slot: Slot) -> None:
            self._slot = slot
            self.shape: tuple[int, ...] | None = None
            self._error: Exception | None = None

        def raise_refusal(self) -> None:
            if self._error is not None:
                raise self._taken() from None

        def _taken(self) -> Exception:
            """Kept no longer: with its traceback it would keep what it was raised for."""
            error, self._error = self._error, None
            assert error is not None
            return error.with_traceback(None)

        def reallocate_output_async(
            self,
            tensor_name: str,  # noqa: ARG002  TensorRT's signature
            memory: int,  # noqa: ARG002
            size: int,
            alignment: int,  # noqa: ARG002  memory of the driver's is aligned to 256
            stream: int,  # noqa: ARG002
        ) -> int:
            try:
                assert self._slot is not None
                return self._slot.device(size).address
            except Exception as error:
                self._error = error.with_traceback(None)
                return 0

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            """As TensorRT asks where there is no stream to order it by."""
            return self.reallocate_output_async(tensor_name, memory, size, alignment, 0)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:  # noqa: ARG002
            self.shape = tuple(shape)

    return OutputAllocator
