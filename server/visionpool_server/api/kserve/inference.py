"""A KServe v2 inference from its request to its answer, whichever transport brought it.

    tensors   -> checked -> jobs of the tensor pool, as many rows each as the engine joins -> outputs by name
    pictures  -> one job each of the picture pool, as in /v1/.../predict                   -> `result`, or outputs by name

A lone job writes its answer on the worker's thread, straight from where the runtime left the outputs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from visionpool.errors import DeadlineExceeded, InvalidRequest
from visionpool.results import Result

from visionpool_server.api.answers import result_fields
from visionpool_server.api.kserve.contract import RESULT, Contract, pixels_of
from visionpool_server.api.kserve.datatypes import BYTES, from_buffer
from visionpool_server.api.kserve.messages import InferRequest, InferResponse, InputTensor, Parameters
from visionpool_server.api.kserve.outputs import Regions, Wanted, place_of, rendered, wanted_outputs
from visionpool_server.api.kserve.plan import Outputs, Plan, form_of
from visionpool_server.api.options import PredictOptions, read_ask
from visionpool_server.assembly import Piece
from visionpool_server.backends import Engine
from visionpool_server.batching import DEFAULT_PRIORITY, PRIORITY_LEVELS, Job, Tensors
from visionpool_server.families import Family, Options
from visionpool_server.imaging.recipe import Geometry
from visionpool_server.models.loader import Model
from visionpool_server.pool import Pool
from visionpool_server.service import Ask, Service, check_options
from visionpool_server.statistics import Stages

_LARGE = 2**18  # bytes of strings
_OPTIONS = frozenset(PredictOptions.model_fields) - {"timeout_ms"}


T = TypeVar("T")


class Memory(Regions, Protocol):
    """Shared memory that tensors are read from and written to."""

    def read(self, region: str, offset: int, byte_size: int) -> bytes: ...


class _Terms(NamedTuple):
    """How a request wants to be run."""

    timeout: float  # seconds
    priority: int


_Answer = tuple[Outputs, Stages]


class Inference:
    """Runs requests on `service`; `memory` is where their tensors may lie instead of in the request."""

    def __init__(self, service: Service, memory: Memory) -> None:
        self._service = service
        self._memory = memory
        self._contracts: dict[str, Contract] = {}
        self._loading: dict[Contract, asyncio.Future[Pool]] = {}

    def begin(
        self, model: Model, request: InferRequest, limit: float | None = None
    ) -> InferResponse | Awaitable[InferResponse]:
        """The answer, where this very thread makes it sooner than another could be asked to; else what to await for it, on
        the event loop. For any thread.

        `limit`: seconds that the transport allows. Raises what `Service.run` raises, InvalidRequest.
        """
        contract = self._contract(model)
        form = form_of(request)
        slow = _takes_long(request)
        if not slow and (plan := contract.plans.find(form)):
            return self._planned(contract, request, plan, self._values(request), limit)
        if pictures := contract.brings_pictures(request.inputs):
            return _response(model, request, self._pictures(contract, request, pictures, limit))
        if model.pipeline:
            _refuse_tensors(contract, request)
        pool = model.tensors.loaded if model.tensors else model.pool
        if pool is None or slow:
            return self._waited_for(contract, request, limit)
        values = self._values(request)
        plan = self._plan(contract, request, pool)
        contract.plans.keep(form, plan)
        return self._planned(contract, request, plan, values, limit)

    def _planned(
        self,
        contract: Contract,
        request: InferRequest,
        plan: Plan,
        values: Sequence[NDArray[Any]],
        limit: float | None,
    ) -> InferResponse | Awaitable[InferResponse]:
        model = contract.model
        terms = _terms(model, request.parameters, limit)
        tensors = dict(zip(plan.names, values, strict=True))
        if plan.simple:
            made = plan.pool.run_at_once(Piece(tensors, plan.rows), plan.finish)
            if made:
                return InferResponse(model.name, model.version, made[0], request.id, stages=made[1])
        return _response(model, request, self._run(model, request, plan, tensors, terms))

    def _contract(self, model: Model) -> Contract:
        contract = self._contracts.get(model.name)
        if contract is None or contract.model is not model:
            contract = self._contracts[model.name] = Contract(model)
        return contract

    async def _waited_for(self, contract: Contract, request: InferRequest, limit: float | None) -> InferResponse:
        """For tensors that take long to read, and for the first that come to a vision model: what takes them is loaded then."""
        started = time.monotonic()
        terms = _terms(contract.model, request.parameters, limit)
        wanted_outputs(contract, request.outputs, pictures=False)
        _own_names(contract, request)
        pool = await self._tensor_pool(contract, terms.timeout)
        values = await self._off_loop(partial(self._values, request))
        plan = self._plan(contract, request, pool)
        left = max(0.0, terms.timeout - (time.monotonic() - started))
        begun = self._planned(contract, request, plan, values, left)
        return begun if isinstance(begun, InferResponse) else await begun

    async def _tensor_pool(self, contract: Contract, limit: float) -> Pool:
        """Raises DeadlineExceeded; loading goes on then, for who comes next."""
        loading = self._loading.get(contract)
        if loading is None:
            loading = self._loading[contract] = asyncio.ensure_future(asyncio.to_thread(contract.model.tensor_pool))
            loading.add_done_callback(partial(self._loaded, contract))
        try:
            async with asyncio.timeout(limit):
                return await asyncio.shield(loading)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{contract.model.name} takes its own tensors for the first time, and is not loaded yet",
                hint="ask again in a moment",
            ) from error

    def _loaded(self, contract: Contract, loading: asyncio.Future[Pool]) -> None:
        self._loading.pop(contract, None)
        if not loading.cancelled():
            loading.exception()  # nobody may be waiting for it any more

    def _values(self, request: InferRequest) -> list[NDArray[Any]]:
        return [self._array(tensor) for tensor in request.inputs]

    def _plan(self, contract: Contract, request: InferRequest, pool: Pool) -> Plan:
        """Raises InvalidRequest for all that is wrong with a request but its tensors' values."""
        model, engine = contract.model, pool.groups[0].engine
        wanted = wanted_outputs(contract, request.outputs, pictures=False)
        names = _own_names(contract, request)
        shapes = {name: tensor.shape for name, tensor in zip(names, request.inputs, strict=True)}
        rows = contract.checked(shapes, batched=engine.batched)
        if not rows and engine.batch_sizes:
            raise InvalidRequest(f"a batch of no rows for {model.name}", hint="send at least one")
        with_results = model.family is not None and any(want.own == RESULT for want in wanted)
        finish = partial(rendered, wanted, labels=model.labels, regions=self._memory, batched=engine.batched)
        limit = _piece_rows(model, engine)
        pieces = -(-rows // limit) if limit and rows else 1
        return Plan(pool, names, rows, pieces, limit or rows, finish, with_results, pieces == 1 and not with_results)

    async def _run(self, model: Model, request: InferRequest, plan: Plan, tensors: Tensors, terms: _Terms) -> _Answer:
        pool = plan.pool
        pool.check_room(plan.pieces)
        finish = _with_results(plan.finish, model, request, tensors) if plan.with_results else plan.finish
        batched = pool.groups[0].engine.batched
        jobs = [_tensor_job(piece, terms, batched=batched) for piece in _pieces(tensors, plan)]
        if len(jobs) == 1:
            jobs[0].finish = finish
            stages = await self._service.run(pool, jobs, terms.timeout)
            return jobs[0].future.result(), stages
        stages = await self._service.run(pool, jobs, terms.timeout)
        parts = [job.future.result() for job in jobs]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return await self._off_loop(partial(finish, whole)), stages

    async def _pictures(
        self, contract: Contract, request: InferRequest, tensor: InputTensor, limit: float | None
    ) -> _Answer:
        model = contract.model
        terms = _terms(model, request.parameters, limit)
        if len(request.inputs) > 1:
            others = ", ".join(repr(other.name) for other in request.inputs if other is not tensor)
            raise InvalidRequest(f"with pictures, {others} is made by the server", hint=f"send {tensor.name!r} alone")
        wanted = wanted_outputs(contract, request.outputs, pictures=True)
        model.pool.check_room(_picture_count(tensor))
        options = _options(model, request.parameters)
        pictures = self._pictures_in(tensor, model, request.parameters)
        if model.pipeline:
            ask = Ask(options, terms.timeout)
            predictions, stages = await self._service.read_many(model, pictures, ask, terms.priority)
            parts: list[dict[str, Any]] = [{RESULT: _written(prediction.result)} for prediction in predictions]
        else:
            assert model.family is not None
            finish = partial(_finish_picture, model.family, wanted, options)
            jobs = [self._service.picture_job(model, picture, finish, priority=terms.priority) for picture in pictures]
            stages = await self._service.run(model.pool, jobs, terms.timeout)
            parts = [job.future.result() for job in jobs]
        column = tensor.datatype == "BYTES" and len(tensor.shape) == 2
        return await self._off_loop(partial(self._joined, contract, wanted, parts, column=column)), stages

    def _joined(
        self, contract: Contract, wanted: Sequence[Wanted], parts: Sequence[Tensors], *, column: bool
    ) -> Outputs:
        """The answers of all pictures as one. `column`: results of shape [N, 1], as the pictures were."""
        family = contract.model.family
        own = [{name: part[name] for name in part if name != RESULT} for part in parts]
        arrays = dict(family.join(own)) if family and own[0] else {}
        if RESULT in parts[0]:
            results = np.empty(len(parts), object)
            results[:] = [part[RESULT] for part in parts]
            arrays[RESULT] = results[:, None] if column else results
        return rendered(wanted, arrays, contract.model.labels, self._memory, batched=True)

    def _pictures_in(self, tensor: InputTensor, model: Model, parameters: Parameters) -> list[Any]:
        array = self._array(tensor)
        if tensor.datatype == "BYTES":
            if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1) or not array.size:
                raise InvalidRequest(
                    f"input {tensor.name!r}: encoded pictures are BYTES of shape [N] or [N, 1], not {list(array.shape)}"
                )
            return list(array.reshape(-1))
        order = parameters.get("color", model.bundle.raw_pictures)
        if order not in ("rgb", "bgr"):
            raise InvalidRequest(f"color is rgb or bgr, not {order!r}")
        pictures = pixels_of(array, tensor.name)
        return pictures if order == "rgb" else [np.ascontiguousarray(picture[:, :, ::-1]) for picture in pictures]

    def _array(self, tensor: InputTensor) -> NDArray[Any]:
        data = tensor.data
        if isinstance(data, np.ndarray):
            return data
        if data is None:
            place = place_of(tensor.name, tensor.parameters)
            if place is None:
                raise InvalidRequest(f"input {tensor.name!r} has no data", hint="send data, or say where they lie")
            data = self._memory.read(place.region, place.offset, place.size)
        return from_buffer(tensor.name, tensor.datatype, tensor.shape, data)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._service.stages, work)


def _terms(model: Model, parameters: Parameters, limit: float | None) -> _Terms:
    """Triton's `priority` (1 is served first, others than 1..9 count as the middle) and `timeout` (microseconds)."""
    seconds = model.bundle.batching.timeout_ms / 1000
    priority = DEFAULT_PRIORITY
    if parameters:
        asked, level = parameters.get("timeout", 0), parameters.get("priority", 0)
        if type(asked) is not int or type(level) is not int or asked < 0 or level < 0:
            raise InvalidRequest("timeout (microseconds) and priority are whole numbers", hint="leave them out, or 0")
        seconds = min(seconds, asked / 1e6) if asked else seconds
        priority = level if 1 <= level <= PRIORITY_LEVELS else priority
    return _Terms(seconds if limit is None else min(seconds, limit), priority)


async def _response(model: Model, request: InferRequest, answer: Awaitable[_Answer]) -> InferResponse:
    outputs, stages = await answer
    return InferResponse(model.name, model.version, outputs, request.id, stages=stages)


def _own_names(contract: Contract, request: InferRequest) -> tuple[str, ...]:
    """The model's names of a request's inputs. Raises InvalidRequest for one unknown, of a wrong type, or there twice."""
    names = tuple(contract.input_for(tensor).name for tensor in request.inputs)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"input {twice[:80]!r} is there twice", hint="send each once")
    return names


def _takes_long(request: InferRequest) -> bool:
    """Whether reading its values would hold up others: strings are taken apart one by one."""
    strings = [tensor.data for tensor in request.inputs if tensor.datatype == BYTES]
    return any(data is None or (not isinstance(data, np.ndarray) and len(data) > _LARGE) for data in strings)


def _picture_count(tensor: InputTensor) -> int:
    """How many pictures there are if the shape is right; that it is will be seen where they are read."""
    if tensor.datatype == BYTES:
        return prod(tensor.shape)
    return tensor.shape[0] if len(tensor.shape) == 4 else 1


def _with_results(
    finish: Callable[[Tensors], Outputs], model: Model, request: InferRequest, tensors: Tensors
) -> Callable[[Tensors], Outputs]:
    family = model.family
    assert family is not None
    options = _options(model, request.parameters)
    picture = tensors[family.image_input]

    def with_results(outputs: Tensors) -> Outputs:
        return finish({**outputs, RESULT: _results_of(family, outputs, picture, options)})

    return with_results


def _options(model: Model, parameters: Parameters) -> Options:
    """The options of a prediction among a request's parameters, under the names of /v1/.../predict."""
    options = read_ask({name: value for name, value in parameters.items() if name in _OPTIONS}).options
    check_options(model, options)
    return options


def _tensor_job(tensors: Tensors, terms: _Terms, *, batched: bool) -> Job:
    key = tuple(tensor.shape[1:] for tensor in tensors.values())
    rows = len(next(iter(tensors.values()))) if batched else 1
    return Job(tensors, _copied, rows=rows, shape_key=key, priority=terms.priority)


def _piece_rows(model: Model, engine: Engine) -> int | None:
    """How many rows of a request run at once; None: all of them, as they came.

    Only who sets up batching says that rows are independent of one another: cut, a mean over all of them would be another.
    """
    if not engine.batched or not (engine.batch_sizes or model.bundle.batching.max_batch_size):
        return None
    return engine.max_batch_size


def _pieces(tensors: Tensors, plan: Plan) -> list[Tensors]:
    """A request's tensors in the pieces that run at once."""
    if plan.pieces == 1:
        return [tensors]
    limit = plan.piece_rows
    return [{name: array[at : at + limit] for name, array in tensors.items()} for at in range(0, plan.rows, limit)]


def _copied(outputs: Tensors) -> dict[str, NDArray[Any]]:
    return {name: value.copy() for name, value in outputs.items()}


def _finish_picture(
    family: Family, wanted: Sequence[Wanted], options: Options, outputs: Tensors, geometry: Geometry
) -> dict[str, Any]:
    """What is wanted of one picture's outputs, copied from where the next inference overwrites them."""
    given: dict[str, Any] = {want.own: outputs[want.own].copy() for want in wanted if want.own in outputs}
    if any(want.own == RESULT for want in wanted):
        given[RESULT] = _written(family.finish(outputs, geometry, options))
    return given


def _written(result: Result) -> bytes:
    return orjson.dumps(result_fields(result))


def _refuse_tensors(contract: Contract, request: InferRequest) -> NoReturn:
    """A pipeline has no tensors of its own. Raises InvalidRequest."""
    contract.checked(dict.fromkeys(_own_names(contract, request), ()), batched=False)
    raise InvalidRequest(
        f"{contract.model.name} takes pictures", hint=f"send them as {contract.picture!r}, BYTES of shape [N]"
    )


def _results_of(family: Family, outputs: Tensors, picture: NDArray[Any], options: Options) -> NDArray[Any]:
    """The results of ready-made tensors, (N,) of JSON: their pictures are the tensors themselves, pixel for pixel."""
    height, width = picture.shape[1:3] if picture.shape[3] in (1, 3) and picture.shape[1] > 3 else picture.shape[2:4]
    parts = family.split(outputs, len(picture))
    geometry = Geometry(height, width)
    results = np.empty(len(parts), object)
    results[:] = [_written(family.finish(part, geometry, options)) for part in parts]
    return results
