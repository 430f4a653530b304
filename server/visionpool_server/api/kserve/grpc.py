"""KServe v2 over gRPC: the service `inference.GRPCInferenceService` as Triton defines it, on `Kserve`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from inspect import isawaitable
from typing import Any, NamedTuple

import grpc
from tritonclient.grpc import service_pb2 as pb
from visionpool.errors import Unimplemented, VisionpoolError

from visionpool_server.api.bodies import LARGE_TEXT, swollen
from visionpool_server.api.budget import ByteBudget, Held
from visionpool_server.api.exchange import Frame, note_error
from visionpool_server.api.grpc_errors import Context, answered, unforeseen
from visionpool_server.api.grpc_messages import parsed
from visionpool_server.api.grpc_streams import in_order
from visionpool_server.api.kserve.control import check_repository
from visionpool_server.api.kserve.grpc_codec import read_parameters, read_request, write_response
from visionpool_server.api.kserve.grpc_wire import growing_bytes
from visionpool_server.api.kserve.messages import InferResponse
from visionpool_server.api.kserve.protocol import Kserve

log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_IN_FLIGHT = 64  # of one stream: enough to fill batches, and a bound on what is held
_ASKS_FINAL, _IS_FINAL = "triton_enable_empty_final_response", "triton_final_response"
_NO_CUDA = "CUDA shared memory is not served yet"


class KserveGrpc:
    """The handlers; `handlers()` binds them to the names of the protocol."""

    def __init__(self, kserve: Kserve, budget: ByteBudget) -> None:
        self._kserve = kserve
        self._budget = budget

    def handlers(self) -> grpc.GenericRpcHandler:
        plain: dict[str, Callable[[Any], Any]] = {
            "ServerLive": lambda _: pb.ServerLiveResponse(live=self._kserve.live()),
            "ServerReady": lambda _: pb.ServerReadyResponse(ready=self._kserve.ready()),
            "ModelReady": lambda q: pb.ModelReadyResponse(ready=self._kserve.model_ready(q.name, q.version)),
            "ServerMetadata": lambda _: self._kserve.server_metadata(),
            "ModelMetadata": lambda q: self._kserve.model_metadata(q.name, q.version),
            "ModelConfig": lambda q: self._kserve.model_config(q.name, q.version),
            "ModelStatistics": lambda q: self._kserve.model_statistics(q.name, q.version),
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "SystemSharedMemoryStatus": lambda q: self._kserve.shared_memory.status(q.name),
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
            "CudaSharedMemoryStatus": lambda _: pb.CudaSharedMemoryStatusResponse(),
            "CudaSharedMemoryRegister": _refuse_cuda,
            "CudaSharedMemoryUnregister": lambda _: pb.CudaSharedMemoryUnregisterResponse(),
            "TraceSetting": lambda q: self._kserve.tracing.update(q.model_name, _trace_values(q)),
            "LogSettings": lambda q: self._kserve.logging.update(read_parameters(q.settings)),
        }
        methods: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(_unary(name, call, self._budget)) for name, call in plain.items()
        }
        methods["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._infer)
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    @answered
    async def _infer(self, raw: bytes, context: Context) -> bytes:
        answer = pb.ModelInferResponse()
        with self._budget.hold() as held:
            await self._inferred(_Opened.of(raw), held, context, answer)
        return answer.SerializeToString()  # type: ignore[no-any-return]  # untyped messages

    async def _inferred(self, opened: _Opened, held: Held, context: Context, answer: Any) -> None:
        """Fills in `answer`, a `ModelInferResponse`."""
        self._kserve.note(opened.message.model_name, opened.message.model_version)
        held.take(opened.size)
        if opened.growing:
            held.take(swollen(opened.growing, self._budget))
            request = await asyncio.to_thread(read_request, opened.message)
        else:
            request = read_request(opened.message)
        begun = self._kserve.begin(request, context.time_remaining())
        response = begun if isinstance(begun, InferResponse) else await begun
        started = time.monotonic()
        write_response(response, answer)
        self._kserve.encoded(response, time.monotonic() - started)

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async def answer(raw: bytes) -> bytes:
            with Frame():
                return await self._stream_answer(raw, context)

        async with aclosing(in_order(requests, answer, _IN_FLIGHT)) as answers:
            async for message in answers:
                yield message

    async def _stream_answer(self, raw: bytes, context: Context) -> bytes:
        """One answer of a stream: an error is that request's alone, and the stream goes on."""
        name = ""
        try:
            with self._budget.hold() as held:
                opened = _Opened.of(raw)
                name, wants_final = opened.message.id, _wants_final(opened.message.parameters)
                answer = pb.ModelStreamInferResponse()
                await self._inferred(opened, held, context, answer.infer_response)
                if wants_final:
                    answer.infer_response.parameters[_IS_FINAL].bool_param = True
        except VisionpoolError as error:
            answer = _refusal(name, error)
        except Exception as error:
            log.error("ModelStreamInfer failed", exc_info=error)
            answer = _refusal(name, unforeseen())
        return answer.SerializeToString()  # type: ignore[no-any-return]  # untyped messages

    async def _index(self, message: Any) -> Any:
        check_repository(message.repository_name)
        return await self._kserve.control.index(message.ready)

    async def _load(self, message: Any) -> Any:
        check_repository(message.repository_name)
        await self._kserve.control.load(message.model_name, read_parameters(message.parameters))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, message: Any) -> Any:
        check_repository(message.repository_name)
        await self._kserve.control.unload(message.model_name, read_parameters(message.parameters))
        return pb.RepositoryModelUnloadResponse()

    def _register(self, message: Any) -> Any:
        self._kserve.shared_memory.register(message.name, message.key, message.offset, message.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def _unregister(self, message: Any) -> Any:
        self._kserve.shared_memory.unregister(message.name)
        return pb.SystemSharedMemoryUnregisterResponse()


def _unary(name: str, call: Callable[[Any], Any], budget: ByteBudget) -> Any:
    kind = pb.__dict__[f"{name}Request"]

    async def handle(_: None, raw: bytes, context: Context) -> bytes:  # noqa: ARG001  a handler's signature
        with budget.hold() as held:
            if len(raw) > LARGE_TEXT:
                held.take(swollen(len(raw), budget))
            answer = call(parsed(kind, raw))
            message = await answer if isawaitable(answer) else answer
        return message.SerializeToString()  # type: ignore[no-any-return]  # untyped messages

    handle.__qualname__ = name
    wrapped = answered(handle)

    async def bound(raw: bytes, context: Context) -> bytes:
        return await wrapped(None, raw, context)

    return bound


class _Opened(NamedTuple):
    """A request's message. `size`: its bytes on the wire, of which `growing` become more in memory; 0 where they are few."""

    message: Any
    size: int
    growing: int

    @classmethod
    def of(cls, raw: bytes) -> _Opened:
        """Raises InvalidRequest for bytes that are none, and for more fields than any request needs."""
        growing = growing_bytes(raw) if len(raw) > LARGE_TEXT else 0
        return cls(parsed(pb.ModelInferRequest, raw), len(raw), growing if growing > LARGE_TEXT else 0)


def _wants_final(parameters: Any) -> bool:
    """Whether a client of a stream asks to be told which answer to a request is the last: here the only one."""
    return _ASKS_FINAL in parameters and bool(parameters[_ASKS_FINAL].bool_param)


def _refusal(name: str, error: VisionpoolError) -> Any:
    """Triton's form: the text, and an answer that carries nothing but the request's id, where it was one."""
    note_error(error.code)
    return pb.ModelStreamInferResponse(error_message=str(error), infer_response=pb.ModelInferResponse(id=name))


def _refuse_cuda(_: Any) -> Any:
    raise Unimplemented(_NO_CUDA, hint="send tensors in the request, or through system shared memory")


def _trace_values(message: Any) -> dict[str, list[str]]:
    return {name: list(setting.value) for name, setting in message.settings.items()}
