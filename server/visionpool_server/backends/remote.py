"""Models that live on another server: NVIDIA Triton, OpenVINO Model Server, any that speaks KServe v2 over gRPC.

    (N, H, W, 3) uint8 -> arithmetic -> request -> the far server -> answer, checked -> arrays

Pictures are decoded, prepared, batched and finished here; only tensors travel. The far server is not trusted to be well:
each answer is held against what it said of the model when that was loaded, and each wait has a bound.

Requests are put together by hand (remote_wire.py): their head by the generated code, the tensors' bytes behind it, one copy
in all. tritonclient's own client and its generated stub copy a tensor three times, through fresh memory that has to be paged
in: a float32 picture of 640x640 cost them 3.4 to 17 ms of this machine's time (50 to 155 calls a second on 2 cores, the far
server beside them), and costs 2.3 ms so (210 a second); one of 224x224 0.5 ms and 0.4 ms.

All contexts share one connection, on which gRPC multiplexes. With one for each, and calls of 10 ms on pictures of 640x640,
four callers made 167 and 168 calls a second, against 139 and 168 on one; only eight gained (200 and 226 against 173 and
159). Four contexts are the default, for they hide the latency of the network: with calls of 10 ms on pictures of 224x224, 1,
2, 4 and 8 callers made 80, 150, 305 and 595 calls a second; with pictures of 640x640 four keep two cores busy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from visionpool.errors import BackendUnavailable, InferenceFailed, InvalidModel, ServiceError, SetupError, TooLarge

from visionpool_server.backends import (
    LoadOptions,
    Placement,
    Signature,
    Source,
    Tensors,
    TensorSpec,
    numpy_dtype,
    ones,
    refuse_unknown_types,
    zeros,
)
from visionpool_server.backends.remote_peer import HINT_HEADERS, Peer, Settings
from visionpool_server.backends.remote_wire import Mismatch, answer, request, spec_of

_SETUP_S = 10.0  # for all that is asked before the first inference
_CONTEXTS = 4


class RemoteBackend:
    def read(self, source: Source) -> Signature:
        """What the far server says of the model, within 10 s. Raises InvalidModel, BackendUnavailable."""
        peer = Peer(source)
        try:
            return _describe(peer, time.monotonic() + _SETUP_S)
        finally:
            peer.close()

    def load(self, source: Source, options: LoadOptions) -> RemoteEngine:
        """The engine. A model that takes pictures is tried out with a black one; of another, no input is known to be good."""
        _refuse_what_it_lacks(options)
        peer = Peer(source)
        try:
            _check_patience(peer.settings, options.hang_timeout)
            until = time.monotonic() + _SETUP_S
            engine = RemoteEngine(peer, _describe(peer, until), _batching(peer, until), options)
            if options.image:
                engine.try_out()
        except BaseException:
            peer.close()
            raise
        return engine


@dataclass(frozen=True, slots=True)
class Batching:
    """What the far server's configuration says of batches. `joined`: how many rows it joins at most; 0 where it does not batch,
    or does not say so. `limit`: how many a request may bring; 0 for any."""

    joined: int
    limit: int


class RemoteEngine:
    on_cpu = False
    quick_bytes = 0

    def __init__(self, peer: Peer, signature: Signature, batching: Batching, options: LoadOptions) -> None:
        if not options.image:
            refuse_unknown_types(signature)
        self._peer = peer
        self._signature = signature
        self._batching = batching
        self._options = options
        self.contexts = options.contexts or _CONTEXTS
        open_batch = all(spec.shape and spec.shape[0] is None for spec in (*signature.inputs, *signature.outputs))
        asked = options.image or options.max_batch_size or options.batch_sizes
        if batching.joined or (open_batch and asked):
            self.batched, (self.batch_sizes, self.max_batch_size) = True, _batches(batching, options)
        elif open_batch:  # of any size each, but nobody says that they are rows of one batch
            self.batched, self.batch_sizes, self.max_batch_size = False, (), 1
        else:
            self.batched, (self.batch_sizes, self.max_batch_size) = (
                bool(options.image),
                _fixed_batch(signature, options),
            )

    def clone(self) -> RemoteContext:
        rows_of_requests = self.batched and not self._options.image
        return RemoteContext(
            self._peer,
            self._signature,
            self._options,
            batch_limit=self._batching.limit,
            counts_rows=rows_of_requests or self._batching.joined > 0,
        )

    def try_out(self) -> None:
        """Runs one black picture. Raises SetupError."""
        try:
            self.clone().infer(self.example())
        except InferenceFailed as error:
            raise InvalidModel(
                f"{error.message}: with a black picture, to try it out",
                hint="check runtime.shapes and preprocess in model.yaml; the log has what the far server said",
            ) from None
        except ServiceError as error:
            raise BackendUnavailable(error.message, hint=error.hint) from None

    def example(self) -> Tensors:
        """Zeros that the engine takes: the smallest batch, 32x32 pixels where nobody says a size."""
        image, rows, tensors = self._options.image, (self.batch_sizes or (1,))[0], {}
        for spec in self._signature.inputs:
            known = self._options.shapes.get(spec.name, spec.shape or ())
            if image and image.name == spec.name:
                at = 2 if image.layout == "NCHW" else 1
                height, width = image.size or (known[at] or 32, known[at + 1] or 32)
                tensors[spec.name] = np.zeros((rows, height, width, len(image.arithmetic.mean)), np.uint8)
            else:
                fill = ones if image else zeros
                tensors[spec.name] = fill([rows, *(size or 1 for size in known[1:])], spec.dtype)
        return tensors

    def describe(self) -> Placement:
        return Placement("remote", self._peer.url, "as there")

    def shape_use(self) -> None:
        """Nothing is kept for each shape."""

    def close(self) -> None:
        """Closes the connection: a context that waits for an answer fails as Unavailable."""
        self._peer.close()


class RemoteContext:
    def __init__(
        self, peer: Peer, signature: Signature, options: LoadOptions, *, batch_limit: int, counts_rows: bool
    ) -> None:
        """`counts_rows`: each output must have a row for each row of the inputs. Else it may not, as after NMS."""
        self._peer = peer
        self._outputs = signature.outputs
        self._batch_limit = batch_limit
        self._counts_rows = counts_rows
        self._image = options.image
        self._dtypes = {spec.name: spec.dtype for spec in signature.inputs}

    def infer(self, batch: Tensors) -> Tensors:
        """Raises TooLarge for more rows than the far server takes at once, InvalidRequest for tensors of a caller's own that it
        does not take, ServiceError for all that goes wrong there."""
        feeds = dict(batch)
        if image := self._image:
            dtype = numpy_dtype(self._dtypes[image.name])
            feeds[image.name] = image.arithmetic.apply(batch[image.name], image.layout, dtype)
        rows = self._rows(feeds)
        try:
            response = self._peer.infer(request(self._peer.model, feeds), own_tensors=self._image is None)
            return answer(response, self._outputs, rows)
        except Mismatch as error:
            raise InferenceFailed(
                f"model {self._peer.model!r} at {self._peer.url}: {error}",
                hint="if the model was changed there, load it anew here",
            ) from None

    def _rows(self, feeds: Tensors) -> int | None:
        """How many rows each output must have."""
        if not self._counts_rows:
            return None
        rows = len(next(iter(feeds.values())))
        if self._batch_limit and rows > self._batch_limit:
            raise TooLarge(f"{rows} rows at once, and the model takes {self._batch_limit}", hint="send fewer at once")
        return rows


def _refuse_what_it_lacks(options: LoadOptions) -> None:
    if options.image and options.image.layout == "CHW":
        raise InvalidModel(
            f"input {options.image.name!r} takes one picture without a batch dimension, which is not sent to other servers",
            hint="export the model with a batch dimension",
        )
    if options.cpu_operators:
        raise InvalidModel(
            "cpu_operators is OpenVINO's", hint="leave it out: the far server places its operators itself"
        )
    said = {"precision": options.precision, "device": None if options.device == "CPU" else options.device}
    for name, value in said.items():
        if value:
            raise InvalidModel(
                f"backend: remote cannot choose the {name} ({value})",
                hint=f"leave {name} out: the far server's own configuration says it",
            )


def _check_patience(settings: Settings, hang_timeout: float | None) -> None:
    """A far server that is slow has to be given up before the worker that waits for it is."""
    if hang_timeout is not None and settings.timeout >= hang_timeout:
        raise InvalidModel(
            f"runtime.options.timeout_ms is {settings.timeout * 1000:g}, and after batching.hang_timeout_ms: "
            f"{hang_timeout * 1000:g} the worker that waits would be replaced",
            hint="say a smaller timeout_ms, or a larger hang_timeout_ms, in model.yaml",
        )


def _batches(batching: Batching, options: LoadOptions) -> tuple[tuple[int, ...], int]:
    """The fixed batch sizes, and the largest one."""
    sizes = tuple(sorted(set(options.batch_sizes)))
    asked, limit = max(sizes or (options.max_batch_size or 0,)), batching.limit
    if limit and asked > limit:
        raise InvalidModel(
            f"the far server takes batches of at most {limit}, and model.yaml asks for {asked}",
            hint=f"say batching.max_batch_size: {limit}, or raise max_batch_size in the model's config.pbtxt there",
        )
    return sizes, asked or batching.joined or 1


def _fixed_batch(signature: Signature, options: LoadOptions) -> tuple[tuple[int, ...], int]:
    """The one batch size that there is: the first dimension of the pictures; 1 without pictures."""
    name = options.image.name if options.image else None
    size = next((spec.shape[0] for spec in signature.inputs if spec.name == name and spec.shape), None) or 1
    if options.max_batch_size not in (None, size) or set(options.batch_sizes) - {size}:
        raise InvalidModel(
            f"the model on the far server fixes its batch size to {size}",
            hint=f"give it a dynamic batch dimension there, or say batching.max_batch_size: {size}",
        )
    return (size,) if name else (), size


# At start-up


def _describe(peer: Peer, until: float) -> Signature:
    """What the far server says of the model, once that is ready. Raises SetupError."""
    _ask(peer, "ServerLive", pb.ServerLiveRequest(), until)  # after it, UNAVAILABLE is the model's
    metadata = _ask(peer, "ModelMetadata", pb.ModelMetadataRequest(name=peer.model), until)
    if not _ask(peer, "ModelReady", pb.ModelReadyRequest(name=peer.model), until).ready:
        raise _not_ready(peer)
    if not metadata.inputs or not metadata.outputs:
        raise InvalidModel(
            f"{peer.url} does not say what model {peer.model!r} takes and gives",
            hint="configure its inputs and outputs there",
        )
    return Signature(_specs(metadata.inputs), _specs(metadata.outputs))


def _specs(tensors: Any) -> tuple[TensorSpec, ...]:
    return tuple(map(spec_of, tensors))


def _batching(peer: Peer, until: float) -> Batching:
    """What the model's configuration says; nothing where the server has none: it is Triton's extension.

    visionpool's own says in `request_rows` that more rows may come than are joined: Triton takes no more.
    """
    try:
        config = peer.ask("ModelConfig", pb.ModelConfigRequest(name=peer.model), until).config
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            peer.report(error)
        return Batching(0, 0)
    joined, any_rows = config.max_batch_size, config.parameters["request_rows"].string_value == "any"
    return Batching(joined, 0 if any_rows else joined)


def _ask(peer: Peer, method: str, message: Any, until: float) -> Any:
    try:
        return peer.ask(method, message, until)
    except grpc.RpcError as error:
        peer.report(error)
        raise _setup_error(peer, method, error.code(), until) from None


def _setup_error(peer: Peer, method: str, code: grpc.StatusCode, until: float) -> SetupError:
    status = grpc.StatusCode
    match code:
        case status.UNAVAILABLE | status.DEADLINE_EXCEEDED if method == "ServerLive":
            return BackendUnavailable(
                f"no server answers at {peer.url}: {code.name}",
                hint="is it up, is this its gRPC port (Triton's is 8001), and does it want grpcs:// for TLS?",
            )
        case status.UNAVAILABLE:
            return _not_ready(peer)
        case status.NOT_FOUND:
            return InvalidModel(f"no model {peer.model!r} at {peer.url}", hint=_known(peer, until))
        case status.UNIMPLEMENTED:
            return BackendUnavailable(
                f"what answers at {peer.url} does not speak KServe v2 over gRPC", hint="runtime.url takes the gRPC port"
            )
        case status.UNAUTHENTICATED | status.PERMISSION_DENIED:
            return BackendUnavailable(f"{peer.url} refuses this server: {code.name}", hint=HINT_HEADERS)
    return BackendUnavailable(
        f"{peer.url} does not describe model {peer.model!r}: {code.name}", hint="the log has what it said"
    )


def _not_ready(peer: Peer) -> BackendUnavailable:
    return BackendUnavailable(
        f"model {peer.model!r} at {peer.url} is not ready",
        hint="start this server when it is; the far one's log says more",
    )


def _known(peer: Peer, until: float) -> str:
    """The models that there are, where the far server tells."""
    try:
        models = peer.ask("RepositoryIndex", pb.RepositoryIndexRequest(ready=True), until).models
    except grpc.RpcError:
        return "is that its name there?"
    return f"there: {', '.join(sorted({model.name for model in models})[:20]) or 'none'}"
