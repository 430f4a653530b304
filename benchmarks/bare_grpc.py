"""The bare gRPC servers of benchmarks.bare: handlers that get bytes and give bytes, on grpcio's two servers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import openvino as ov
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2 as pb

from benchmarks.trivial import CONFIG, MODEL, NAME, OUTPUT, RESULT, SERVER, SHAPE, STATISTICS

Answer = Callable[[bytes], bytes]
Ready = Callable[[int], None]  # gets the port

SERVICE = "inference.GRPCInferenceService"
HOST = "127.0.0.1"


def _response(request_id: str) -> Any:
    response = pb.ModelInferResponse(model_name=NAME, model_version="1", id=request_id)
    response.outputs.add(name=OUTPUT, datatype="FP32", shape=[1, SHAPE[1]])
    response.raw_output_contents.append(RESULT)
    return response


_CONSTANT: bytes = _response("").SerializeToString()
_ID = 3  # the field's number in ModelInferRequest, and in ModelInferResponse


def constant(raw: bytes) -> bytes:
    """The id stands near the front of a message, after at most two short strings, and may stand anywhere in the answer."""
    at = 0
    while raw[at] >> 3 < _ID:
        at += 2 + raw[at + 1]
    found = raw[at : at + 2 + raw[at + 1]] if raw[at] >> 3 == _ID else b""
    return _CONSTANT + found


def parsed(raw: bytes) -> bytes:
    request = pb.ModelInferRequest.FromString(raw)
    np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
    answer: bytes = _response(request.id).SerializeToString()
    return answer


def inferring(model: Path) -> Answer:
    """What one writes by hand around OpenVINO: parse, infer on the handler's thread, answer. No checks, no statistics."""
    compiled = ov.Core().compile_model(
        model, "CPU", {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    )
    compiled.create_infer_request().infer([np.zeros(SHAPE, np.float32)])  # the first use of the binding, on one thread
    local = threading.local()

    def infer(raw: bytes) -> bytes:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        request = pb.ModelInferRequest.FromString(raw)
        array = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
        output = local.request.infer([array])[0]
        response = _response(request.id)
        response.raw_output_contents[0] = output.tobytes()
        answer: bytes = response.SerializeToString()
        return answer

    return infer


def _grpc_answers(infer: Answer) -> dict[str, Answer]:
    described = {
        "ServerLive": pb.ServerLiveResponse(live=True),
        "ServerReady": pb.ServerReadyResponse(ready=True),
        "ModelReady": pb.ModelReadyResponse(ready=True),
        "ServerMetadata": ParseDict(SERVER, pb.ServerMetadataResponse()),
        "ModelMetadata": ParseDict(MODEL, pb.ModelMetadataResponse()),
        "ModelConfig": ParseDict({"config": CONFIG}, pb.ModelConfigResponse()),
        "ModelStatistics": ParseDict(STATISTICS, pb.ModelStatisticsResponse()),
    }
    return {name: _always(message.SerializeToString()) for name, message in described.items()} | {"ModelInfer": infer}


def _always(answer: bytes) -> Answer:
    return lambda _: answer


def _called(answer: Answer) -> Any:
    def handle(raw: bytes, _: grpc.ServicerContext) -> bytes:
        return answer(raw)

    return handle


def _awaited(answer: Answer) -> Any:
    async def handle(raw: bytes, _: grpc.ServicerContext) -> bytes:
        return answer(raw)

    return handle


def _handlers(infer: Answer, wrapped: Callable[[Answer], Any]) -> tuple[grpc.GenericRpcHandler]:
    answers = _grpc_answers(infer).items()
    methods: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(wrapped(answer)) for name, answer in answers}
    return (grpc.method_handlers_generic_handler(SERVICE, methods),)


async def serve_aio(infer: Answer, port: int, ready: Ready) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(_handlers(infer, _awaited))
    bound = server.add_insecure_port(f"{HOST}:{port}")
    await server.start()
    ready(bound)
    await server.wait_for_termination()


def serve_threads(infer: Answer, port: int, threads: int, ready: Ready) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(threads))
    server.add_generic_rpc_handlers(_handlers(infer, _called))
    bound = server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    ready(bound)
    server.wait_for_termination()
