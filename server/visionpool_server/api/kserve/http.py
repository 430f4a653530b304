"""The routes of KServe v2 over HTTP, as Triton's server and tritonclient have them; what they mean is `Kserve`'s affair."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from visionpool.errors import InvalidRequest, Unavailable, Unimplemented

from visionpool_server.api.bodies import LARGE_TEXT, BodyLimits, check_json, swollen
from visionpool_server.api.kserve import http_schemas as schemas
from visionpool_server.api.kserve.compression import read_decoded
from visionpool_server.api.kserve.control import check_repository
from visionpool_server.api.kserve.http_infer import Inference
from visionpool_server.api.kserve.http_json import kind_of, loads_object, parameters_of, plain, typed
from visionpool_server.api.kserve.http_operations import INFER_BODY, INFER_EXAMPLE, Leftovers, Operation

if TYPE_CHECKING:
    from visionpool_server.api.kserve.protocol import Kserve


@dataclass(frozen=True, slots=True)
class KserveApi:
    """The handlers; `router()` binds them to their paths. `inference` is what `ShortCut` calls."""

    kserve: Kserve
    limits: BodyLimits

    @property
    def inference(self) -> Inference:
        return Inference(self.kserve, self.limits)

    def router(self) -> APIRouter:
        router = APIRouter(tags=["kserve"])
        for operation in (*self._server(), *self._models(), *self._repository(), *self._memory(), *self._switches()):
            operation.add_to(router)
        leftovers = Leftovers(router)
        for path in ("/v2", "/v2/{rest:path}"):
            router.add_route(path, leftovers, include_in_schema=False)  # type: ignore[arg-type]  # any method
        return router

    def _server(self) -> Iterator[Operation]:
        yield Operation("GET", "/v2", self.metadata, "The server", schemas.ServerMetadata)
        yield Operation("GET", "/v2/", self.metadata, "The server", schemas.ServerMetadata, shown=False)
        yield Operation("GET", "/v2/health/live", self.live, "200 as long as the process answers", schemas.ServerLive)
        yield Operation("GET", "/v2/health/ready", self.ready, "200 once all models are loaded", schemas.ServerReady)

    def _models(self) -> Iterator[Operation]:
        yield Operation("GET", "/v2/models/stats", self.statistics, "Statistics of all models", schemas.Statistics)
        for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            yield Operation("GET", path, self.model_metadata, "What a model takes and gives", schemas.ModelMetadata)
            yield Operation("GET", f"{path}/ready", self.model_ready, "200 if the model is ready", schemas.ModelReady)
            yield Operation("GET", f"{path}/config", self.config, "A model's configuration", schemas.ModelConfig)
            yield Operation("GET", f"{path}/stats", self.statistics, "A model's statistics", schemas.Statistics)
            yield Operation(
                *("POST", f"{path}/infer", self.infer, "Infer: tensors in, tensors out"),
                *(schemas.InferenceResponse, INFER_BODY, INFER_EXAMPLE),
            )

    def _repository(self) -> Iterator[Operation]:
        for path in ("/v2/repository", "/v2/repository/{repository}"):
            yield Operation(
                "POST", f"{path}/index", self.index, "The models", list[schemas.IndexEntry], schemas.IndexRequest
            )
            for action, handle in (("load", self.load), ("unload", self.unload)):
                summary = f"{action.capitalize()} a model"
                yield Operation(
                    *("POST", f"{path}/models/{{model}}/{action}", handle, summary),
                    *(schemas.Nothing, schemas.ControlRequest),
                )

    def _memory(self) -> Iterator[Operation]:
        for kind, status, register, unregister, body in (
            ("system", self.regions, self.register, self.unregister, schemas.RegionRequest),
            ("cuda", self.cuda_regions, self.cuda_register, self.cuda_unregister, schemas.CudaRegionRequest),
        ):
            all_regions = f"/v2/{kind}sharedmemory"
            one = f"{all_regions}/region/{{region}}"
            for path in (all_regions, one):
                yield Operation("GET", f"{path}/status", status, "Shared memory regions", list[schemas.Region])
                yield Operation("POST", f"{path}/unregister", unregister, "Forget regions", schemas.Nothing)
            yield Operation("POST", f"{one}/register", register, "Register a region", schemas.Nothing, body)

    def _switches(self) -> Iterator[Operation]:
        for path in ("/v2/trace/setting", "/v2/models/{model}/trace/setting"):
            for method in ("GET", "POST"):
                body = schemas.TraceSettings if method == "POST" else None
                yield Operation(method, path, self.trace, "What is traced", schemas.TraceSettings, body)
        yield Operation("GET", "/v2/logging", self.logging, "What is logged", schemas.LogSettings)
        yield Operation("POST", "/v2/logging", self.logging, "Log otherwise", schemas.LogSettings, schemas.LogSettings)

    async def metadata(self, _: Request) -> Any:
        return plain(self.kserve.server_metadata())

    async def live(self, _: Request) -> Any:
        return {"live": self.kserve.live()}

    async def ready(self, _: Request) -> Any:
        if not self.kserve.ready():
            raise Unavailable("the models are being loaded, or the server is stopping")
        return {"ready": True}

    async def model_metadata(self, request: Request) -> Any:
        return plain(self.kserve.model_metadata(*_target(request)))

    async def model_ready(self, request: Request) -> Any:
        name, version = _target(request)
        if not self.kserve.model_ready(name, version):
            raise Unavailable(f"model {name[:80]!r} is not ready")
        return {"name": name, "ready": True}

    async def config(self, request: Request) -> Any:
        answer = self.kserve.model_config(*_target(request))
        return plain(answer.config)

    async def statistics(self, request: Request) -> Any:
        return plain(self.kserve.model_statistics(*_target(request)), complete=True)

    async def infer(self, request: Request) -> Response:
        answer = await self.inference.answer(request, *_target(request))
        return answer.response()

    async def index(self, request: Request) -> Any:
        _check_repository(request)
        body = await self._body(request)
        answer = await self.kserve.control.index(typed(body, "ready", bool, "the request") or False)
        return [{name: value for name, value in model.items() if value} for model in plain(answer)["models"]]

    async def load(self, request: Request) -> Any:
        _check_repository(request)
        await self.kserve.control.load(_model(request), await self._parameters(request))
        return {}

    async def unload(self, request: Request) -> Any:
        _check_repository(request)
        await self.kserve.control.unload(_model(request), await self._parameters(request))
        return {}

    async def regions(self, request: Request) -> Any:
        return list(plain(self.kserve.shared_memory.status(request.path_params.get("region", "")))["regions"].values())

    async def register(self, request: Request) -> Any:
        body = await self._body(request)
        key = typed(body, "key", str, "the request")
        offset, byte_size = (typed(body, name, int, "the request") for name in ("offset", "byte_size"))
        if key is None or byte_size is None:
            raise InvalidRequest(
                "a region needs a key and a byte_size", hint='send {"key": "/name", "byte_size": 4096}'
            )
        self.kserve.shared_memory.register(request.path_params["region"], key, offset or 0, byte_size)
        return {}

    async def unregister(self, request: Request) -> Any:
        self.kserve.shared_memory.unregister(request.path_params.get("region", ""))
        return {}

    async def cuda_regions(self, _: Request) -> Any:
        return []

    async def cuda_register(self, _: Request) -> Any:
        raise Unimplemented(
            "CUDA shared memory is not served yet", hint="send tensors in the request, or through system shared memory"
        )

    async def cuda_unregister(self, _: Request) -> Any:
        return {}

    async def trace(self, request: Request) -> Any:
        said = await self._body(request) if request.method == "POST" else {}
        model = request.path_params.get("model", "")
        settings = plain(self.kserve.tracing.update(model, {name: _texts(name, said[name]) for name in said}))[
            "settings"
        ]
        return {name: _shown(name, setting["value"]) for name, setting in settings.items()}

    async def logging(self, request: Request) -> Any:
        said = await self._body(request) if request.method == "POST" else {}
        given = parameters_of({"parameters": {name: v for name, v in said.items() if v is not None}}, "the settings")
        settings = plain(self.kserve.logging.update(given))["settings"]
        return {name: value for name, setting in settings.items() for value in setting.values()}

    async def _parameters(self, request: Request) -> Mapping[str, Any]:
        return parameters_of(await self._body(request), "the request")

    async def _body(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request, an empty one where it has no body."""
        with self.limits.budget.hold() as held:
            body = await read_decoded(request.receive, dict(request.scope["headers"]), self.limits, held)
            if len(body) > LARGE_TEXT:
                check_json(body, len(body))
                held.take(swollen(len(body), self.limits.budget))
                return await asyncio.to_thread(loads_object, body)
            return loads_object(body) if body else {}


def _check_repository(request: Request) -> None:
    check_repository(request.path_params.get("repository", ""))


def _model(request: Request) -> str:
    name: str = request.path_params["model"]
    return name


def _target(request: Request) -> tuple[str, str]:
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _texts(name: str, value: Any) -> list[str]:
    """A trace setting as the protocol's message has it: texts, and none of them to take it back."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if wrong := [one for one in values if type(one) not in (str, int)]:
        raise InvalidRequest(f"trace setting {name[:80]!r} is {kind_of(wrong[0])}, and has to be a string")
    return [str(one) for one in values]


def _shown(name: str, values: list[str]) -> Any:
    """`trace_level` is a list in Triton's JSON, all others are single strings."""
    return values if name == "trace_level" else "".join(values[:1])
