"""A stand-in for the protocol's logic, under its HTTP transport as it is served: what the routes and the codec do is seen
without models. Model `echo` gives back its inputs, `constant` three floats; `gone` is not ready, `broken` has a bug."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp
from tritonclient.grpc import model_config_pb2 as mc
from tritonclient.grpc import service_pb2 as pb
from visionpool.errors import InvalidRequest, ModelNotFound, NotFound, QueueFull, Unavailable
from visionpool_server.api import errors
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.http_listener import HttpListener, listen
from visionpool_server.api.kserve.datatypes import from_buffer, to_buffer
from visionpool_server.api.kserve.http import KserveApi
from visionpool_server.api.kserve.messages import InferRequest, InferResponse, InputTensor, OutputTensor
from visionpool_server.api.shortcut import ShortCut
from visionpool_server.api.stopping import Stopping
from visionpool_server.api.wire import HeadAsGet, UnreadBodies

if TYPE_CHECKING:
    from visionpool_server.api.kserve.protocol import Kserve

MODELS = ("echo", "constant", "hanging", "gone", "broken", "busy")
SCORES = b"\0\0\0\x3f\0\0\x80\x3e\0\0\x80\x3e"  # 0.5, 0.25, 0.25


class StandIn:
    """In the place of `Kserve`, and of its parts."""

    def __init__(self) -> None:
        self.control = self.shared_memory = self
        self.tracing = Settings({"trace_level": ["OFF"], "trace_rate": ["1000"], "trace_file": [""]})
        self.logging = Switches()
        self.is_ready = True
        self.asked: list[InferRequest] = []
        self.cancelled = threading.Event()
        self.controlled: list[tuple[str, str, Mapping[str, Any]]] = []
        self.known: dict[str, tuple[str, int, int]] = {}

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return self.is_ready

    def server_metadata(self) -> Any:
        return pb.ServerMetadataResponse(name="visionpool", version="1.0", extensions=["binary_tensor_data"])

    def model_ready(self, name: str, version: str = "") -> bool:
        return self._known(name, version) != "gone"

    def note(self, name: str, version: str) -> None:
        """Nobody counts requests here."""

    def encoded(self, response: InferResponse, seconds: float) -> None:
        """Nor seconds."""

    def model_metadata(self, name: str, version: str = "") -> Any:
        answer = pb.ModelMetadataResponse(name=self._known(name, version), versions=["1"], platform="openvino")
        answer.inputs.add(name="x", datatype="FP32", shape=[-1, 3, 32, 32])
        answer.outputs.add(name="scores", datatype="FP32", shape=[-1, 3])
        return answer

    def model_config(self, name: str, version: str = "") -> Any:
        config = mc.ModelConfig(name=self._known(name, version), max_batch_size=8)
        config.input.add(name="x", data_type=mc.TYPE_FP32, dims=[3, 32, 32])
        config.output.add(name="scores", data_type=mc.TYPE_FP32, dims=[3])
        config.instance_group.add(name="0", count=2, kind=mc.ModelInstanceGroup.KIND_CPU)
        config.dynamic_batching.max_queue_delay_microseconds = 2**40
        config.parameters["family"].string_value = "yolo"
        return pb.ModelConfigResponse(config=config)

    def model_statistics(self, name: str = "", version: str = "") -> Any:
        answer = pb.ModelStatisticsResponse()
        for known in [self._known(name, version)] if name else MODELS:
            statistics = answer.model_stats.add(name=known, version="1", inference_count=2**53)
            statistics.inference_stats.success.count, statistics.inference_stats.success.ns = 3, 2**60
            statistics.batch_stats.add(batch_size=1).compute_infer.count = 3
        return answer

    async def index(self, ready: bool) -> Any:
        entries = [pb.RepositoryIndexResponse.ModelIndex(name="echo", version="1", state="READY")]
        if not ready:
            entries.append(pb.RepositoryIndexResponse.ModelIndex(name="gone", state="UNAVAILABLE", reason="unloaded"))
        return pb.RepositoryIndexResponse(models=entries)

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        self.controlled.append(("load", self._known(name, ""), parameters))

    async def unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        self.controlled.append(("unload", self._known(name, ""), parameters))

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        if offset < 0 or byte_size < 0:
            raise InvalidRequest("offset and byte_size make no sense")
        self.known[name] = (key, offset, byte_size)

    def unregister(self, name: str = "") -> None:
        self.known = {known: region for known, region in self.known.items() if name and known != name}

    def status(self, name: str = "") -> Any:
        if name and name not in self.known:
            raise NotFound(f"no shared memory region {name!r}")
        answer = pb.SystemSharedMemoryStatusResponse()
        for known, (key, offset, byte_size) in self.known.items():
            if not name or known == name:
                answer.regions[known].MergeFrom(
                    pb.SystemSharedMemoryStatusResponse.RegionStatus(
                        name=known, key=key, offset=min(offset, 2**64 - 1), byte_size=min(byte_size, 2**64 - 1)
                    )
                )
        return answer

    async def begin(self, request: InferRequest) -> InferResponse:
        self.asked.append(request)
        match self._known(request.model, request.version):
            case "broken":
                raise ZeroDivisionError("a secret of ours")
            case "busy":
                raise QueueFull("the queue is full", retry_after=2.5)
            case "gone":
                raise Unavailable("model 'gone' is not ready")
            case "constant":
                outputs = [OutputTensor("scores", "FP32", (1, 3), SCORES)]
            case "hanging":
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case _:
                outputs = [echoed(tensor) for tensor in request.inputs]
        return InferResponse(request.model, request.version or "1", outputs, request.id)

    def _known(self, name: str, version: str) -> str:
        if name not in MODELS or version not in ("", "1"):
            raise ModelNotFound(f"no model {name!r} of version {version!r}", hint="GET /v1/models lists them")
        return name


class Settings:
    """In the place of the trace settings."""

    def __init__(self, values: dict[str, list[str]]) -> None:
        self._values = values

    def update(self, model: str, settings: Mapping[str, list[str]]) -> Any:
        self._values.update({name: list(values) for name, values in settings.items() if name in self._values})
        answer = pb.TraceSettingResponse()
        for name, values in self._values.items():
            answer.settings[name].value.extend(values)
        return answer


class Switches:
    """In the place of the log settings."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def update(self, settings: Mapping[str, Any]) -> Any:
        self.given.update(settings)
        answer = pb.LogSettingsResponse()
        answer.settings["log_file"].string_param = ""
        answer.settings["log_info"].bool_param = bool(self.given.get("log_info", True))
        answer.settings["log_verbose_level"].uint32_param = 0
        return answer


def echoed(tensor: InputTensor) -> OutputTensor:
    data, parameters = tensor.data, {}
    if data is None:
        names = ("shared_memory_region", "shared_memory_byte_size")
        parameters = {name: value for name, value in tensor.parameters.items() if name in names}
    elif isinstance(data, bytes | memoryview):
        data = to_buffer(from_buffer(tensor.name, tensor.datatype, tensor.shape, data))
    else:
        data = to_buffer(data)
    return OutputTensor(tensor.name, tensor.datatype, tensor.shape, data, parameters)


def application(stand_in: StandIn, limits: BodyLimits) -> ASGIApp:
    """The routes in all that is around them when they are served."""
    api = KserveApi(cast("Kserve", stand_in), limits)
    return HeadAsGet(UnreadBodies(ShortCut(_framework(api), _no_pictures, api.inference)))


def document() -> dict[str, Any]:
    """The OpenAPI document of the routes."""
    return _framework(KserveApi(cast("Kserve", StandIn()), BodyLimits())).openapi()


def _framework(api: KserveApi) -> FastAPI:
    app = FastAPI(title="kserve", redirect_slashes=False)
    errors.install(app)
    app.include_router(api.router())
    return app


async def _no_pictures(_: Request) -> Response:
    raise NotFound("no pictures here")


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serves `app` on a free port of this machine, with the settings of the real server; gives `host:port`."""
    with asyncio.Runner() as runner, listen("127.0.0.1", 0, "--http-port") as listener:
        server = HttpListener(app, listener, Stopping())
        stop = asyncio.Event()
        started = threading.Event()

        async def serve() -> None:
            await server.start()
            started.set()
            await stop.wait()
            await server.close()
            await server.end()

        thread = threading.Thread(target=runner.run, args=(serve(),))
        thread.start()
        try:
            assert started.wait(30)
            yield "{}:{}".format(*listener.getsockname())
        finally:
            runner.get_loop().call_soon_threadsafe(stop.set)
            thread.join(30)
