"""Models on another KServe v2 server: the same answers, its failures in our terms, and a bound for every wait."""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from visionpool.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    InferenceFailed,
    InvalidModel,
    InvalidRequest,
    QueueFull,
    ServiceError,
    SetupError,
    TooLarge,
    Unavailable,
)
from visionpool_server.backends import ImageInput, LoadOptions, Source, TensorSpec
from visionpool_server.backends.remote import RemoteBackend, RemoteEngine
from visionpool_server.imaging.recipe import Arithmetic

from tests import kserve_stub, tiny_models
from tests.kserve_stub import FarModel, KServeStub, echo, means
from tests.real_server import serving

SIDE = 12
PLAIN = ImageInput("x", "NCHW", Arithmetic(1.0), (SIDE, SIDE))
Status = grpc.StatusCode
Start = Callable[..., KServeStub]
Load = Callable[..., RemoteEngine]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda model=None, **options: stack.enter_context(KServeStub(model or means(), **options))


@pytest.fixture
def load() -> Iterator[Load]:
    with ExitStack() as stack:

        def loaded(
            stub: KServeStub, image: ImageInput | None = PLAIN, *, options: Any = None, **more: Any
        ) -> RemoteEngine:
            engine = RemoteBackend().load(source_of(stub, options=options), LoadOptions(image=image, **more))
            stack.callback(engine.close)
            return engine

        yield loaded


def source_of(stub: KServeStub, model: str | None = None, options: Any = None) -> Source:
    return Source(url=stub.url, model=model or stub.name, options=options or {})


def pictures(count: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def averages(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = batch.astype(np.float32).mean(axis=(1, 2))
    return result


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The same answers


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_answer_is_what_the_far_model_computes(count: int, start: Start, load: Load) -> None:
    engine = load(start())
    batch = pictures(count)
    outputs = engine.clone().infer({"x": batch})
    assert list(outputs) == ["means", "pixels"]
    assert np.allclose(outputs["means"], averages(batch), atol=1e-3)
    assert outputs["pixels"].tolist() == [[SIDE * SIDE]] * count
    assert outputs["means"].dtype == np.float32
    assert outputs["pixels"].dtype == np.int64


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BF16", "UINT8"])
def test_the_arithmetic_is_done_before_sending_in_the_models_type(datatype: str, start: Start, load: Load) -> None:
    arithmetic = (
        Arithmetic(1.0) if datatype == "UINT8" else Arithmetic(1 / 255, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), "bgr")
    )
    stub = start(means(datatype=datatype))
    engine = load(stub, ImageInput("x", "NCHW", arithmetic, (SIDE, SIDE)))
    batch = pictures(2)
    dtype = np.dtype({"FP32": "f4", "FP16": "f2", "BF16": ml_dtypes.bfloat16, "UINT8": "u1"}[datatype])
    sent = arithmetic.apply(batch, "NCHW", dtype)
    outputs = engine.clone().infer({"x": batch})
    assert stub.requests[-1].inputs[0].datatype == datatype
    assert stub.requests[-1].raw_input_contents[0] == sent.tobytes()
    assert np.allclose(outputs["means"], sent.astype(np.float32).mean(axis=(2, 3)), atol=1e-3)


ARRAYS = {
    "BOOL": np.array([[True, False], [False, False]]),
    **{f"INT{bits}": np.array([[-1, 2], [2 ** (bits - 1) - 1, 0]], f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.array([[1, 2], [2**bits - 1, 0]], f"uint{bits}") for bits in (8, 16, 32, 64)},
    "FP16": np.array([[1.5, -2], [65504, 0]], np.float16),
    "FP32": np.array([[1.1, -2e30], [np.inf, 0]], np.float32),
    "FP64": np.array([[1.1, -2e300], [np.inf, 0]], np.float64),
    "BF16": np.array([[1.5, -2e30], [np.inf, 0]], ml_dtypes.bfloat16),
    "BYTES": np.array([[b"\xff\xd8 a picture", b""], [b"\0\0", b"x" * 70_000]], object),
}


@pytest.mark.parametrize("datatype", ARRAYS)
def test_tensors_without_a_picture_travel_as_they_are(datatype: str, start: Start, load: Load) -> None:
    array = ARRAYS[datatype]
    stub = start(echo(datatype))
    assert RemoteBackend().read(source_of(stub)).inputs == (
        TensorSpec("x", (None, None), "bytes" if datatype == "BYTES" else array.dtype.name),
    )
    engine = load(stub, None)
    assert stub.requests == []  # without a picture no input is known to be good: none is tried out
    outputs = engine.clone().infer({"x": array})
    assert outputs["same"].dtype == array.dtype
    assert outputs["same"].tolist() == array.tolist()
    assert outputs["reversed"].tolist() == array[::-1].tolist()


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_views_and_empty_tensors_are_sent_right(
    datatype: str, shape: tuple[int, int], start: Start, load: Load
) -> None:
    array = np.arange(24).reshape(6, 4)[::2][: shape[0], : shape[1]]
    sent: NDArray[Any] = array.astype(np.float32)
    if datatype == "BYTES":
        sent = np.empty(array.shape, object)
        sent[...] = [[str(value).encode() for value in row] for row in array] if array.size else b""
    context = load(start(echo(datatype)), None).clone()
    for view in (sent, sent[:, ::-1]):
        got = context.infer({"x": view})["same"]
        assert (got.shape, got.tolist()) == (view.shape, view.tolist())


def test_scalars_are_sent_and_read(start: Start, load: Load) -> None:
    stub = start(FarModel(lambda arrays: {"y": arrays["x"] + 1}, (("x", "FP32", ()),), (("y", "FP32", ()),)))
    engine = load(stub, None)
    assert (engine.batched, engine.max_batch_size) == (False, 1)
    answer = engine.clone().infer({"x": np.array(2.5, np.float32)})["y"]
    assert (answer.shape, float(answer)) == ((), 3.5)


def test_a_tensor_that_the_protocol_cannot_carry_fails_clearly(start: Start, load: Load) -> None:
    context = load(start(echo("FP32")), None).clone()
    for array in (np.zeros((2, 2), np.complex64), np.zeros((2, 2), ">f4")):
        with pytest.raises(InferenceFailed, match=r"input 'x' of .* cannot be sent"):
            context.infer({"x": array})


def test_answers_in_typed_values_instead_of_raw_bytes_are_read(start: Start, load: Load) -> None:
    def as_values(answer: Any) -> None:
        raw = [np.frombuffer(data, dtype) for data, dtype in zip(answer.raw_output_contents, ("f4", "i8"), strict=True)]
        del answer.raw_output_contents[:]
        answer.outputs[0].contents.fp32_contents.extend(raw[0])
        answer.outputs[1].contents.int64_contents.extend(raw[1])

    stub = start()
    stub.spoil = as_values
    outputs = load(stub).clone().infer({"x": pictures(2)})
    assert np.allclose(outputs["means"], averages(pictures(2)), atol=1e-3)
    assert outputs["pixels"].tolist() == [[SIDE * SIDE]] * 2


def test_strings_in_typed_values_are_read(start: Start, load: Load) -> None:
    def as_values(answer: Any) -> None:
        del answer.raw_output_contents[:]
        for output in answer.outputs:
            output.contents.bytes_contents.extend([b"a", b"\xff"])

    stub = start(echo("BYTES"))
    stub.spoil = as_values
    outputs = load(stub, None).clone().infer({"x": np.array([[b"a", b"\xff"]], object)})
    assert outputs["same"].tolist() == [[b"a", b"\xff"]]


def test_contexts_on_threads_of_their_own_give_each_picture_its_own_answer(start: Start, load: Load) -> None:
    engine = load(start())
    batches = [pictures(1 + seed % 3, seed) for seed in range(16)]

    def work(first: int) -> None:
        context = engine.clone()
        for i in range(3 * len(batches)):
            batch = batches[(first + i) % len(batches)]
            assert np.allclose(context.infer({"x": batch})["means"], averages(batch), atol=1e-3)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))


# What the far server says of the model


def test_what_the_far_server_says_becomes_the_signature(start: Start) -> None:
    signature = RemoteBackend().read(source_of(start(means(side=224))))
    assert signature.inputs == (TensorSpec("x", (None, 3, 224, 224), "float32"),)
    assert signature.outputs == (TensorSpec("means", (None, 3), "float32"), TensorSpec("pixels", (None, 1), "int64"))
    assert signature.metadata == {}


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (means(8), {}, (True, (), 8)),
        (means(8), {"max_batch_size": 4}, (True, (), 4)),
        (means(8), {"batch_sizes": (4, 1, 2)}, (True, (1, 2, 4), 4)),
        (means(None), {}, (True, (), 1)),
        (means(None), {"max_batch_size": 16}, (True, (), 16)),
        (means(0), {}, (True, (), 1)),
        (means(0), {"max_batch_size": 16}, (True, (), 16)),
        (means(None, batch=1), {}, (True, (1,), 1)),
        (means(None, batch=4), {"max_batch_size": 4}, (True, (4,), 4)),
        (means(None), {"image": None}, (False, (), 1)),  # any size goes, and nobody says that it is a batch
        (means(None), {"image": None, "max_batch_size": 16}, (True, (), 16)),
        (means(0), {"image": None}, (False, (), 1)),
        (means(8), {"image": None}, (True, (), 8)),
        (means(None, batch=4), {"image": None}, (False, (), 1)),
    ],
)
def test_batches_are_as_large_as_the_far_server_takes_them(
    model: FarModel, options: Any, expected: object, start: Start, load: Load
) -> None:
    engine = load(start(model), **{"image": PLAIN, **options})
    assert (engine.batched, engine.batch_sizes, engine.max_batch_size) == expected
    assert (engine.contexts, engine.on_cpu) == (4, False)


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (means(8), {"max_batch_size": 9}, "batches of at most 8, and model.yaml asks for 9"),
        (means(8), {"batch_sizes": (1, 16)}, "batches of at most 8, and model.yaml asks for 16"),
        (means(None, batch=1), {"max_batch_size": 2}, "fixes its batch size to 1"),
        (means(None, batch=4), {"batch_sizes": (1, 4)}, "fixes its batch size to 4"),
        (means(None, batch=4), {"image": None, "max_batch_size": 2}, "fixes its batch size to 1"),
    ],
)
def test_more_than_the_far_server_takes_is_refused(
    model: FarModel, options: Any, says: str, start: Start, load: Load
) -> None:
    with pytest.raises(InvalidModel, match=says):
        load(start(model), **{"image": PLAIN, **options})


def test_more_rows_than_the_far_server_takes_are_the_callers_fault(start: Start, load: Load) -> None:
    stub = start(echo("FP32", max_batch_size=4))
    with pytest.raises(TooLarge, match="5 rows at once, and the model takes 4"):
        load(stub, None).clone().infer({"x": np.zeros((5, 2), np.float32)})
    assert stub.requests == []


def test_a_black_picture_is_tried_out_in_the_smallest_batch(start: Start, load: Load) -> None:
    stub = start(means(None, batch=4))
    load(stub)
    assert list(stub.requests[0].inputs[0].shape) == [4, 3, SIDE, SIDE]
    stub = start()
    load(stub, ImageInput("x", "NCHW", Arithmetic()), shapes={"x": (1, 3, 20, 24)})
    assert list(stub.requests[0].inputs[0].shape) == [1, 3, 20, 24]


def test_where_it_runs_is_said(start: Start, load: Load) -> None:
    stub = start()
    placement = load(stub, contexts=7).describe()
    assert (placement.backend, placement.device, placement.precision) == ("remote", stub.url, "as there")
    assert load(stub, contexts=7).contexts == 7


# Start-up that cannot succeed


def refused(source: Source, **options: Any) -> SetupError:
    """What reading and loading say, the same; within a bounded time."""
    errors = []
    for attempt in (lambda: RemoteBackend().read(source), lambda: RemoteBackend().load(source, LoadOptions(**options))):
        with pytest.raises(SetupError) as caught:
            attempt()
        assert caught.value.hint
        errors.append(caught.value)
    assert str(errors[0]) == str(errors[1])
    return errors[0]


def test_an_unreachable_server_is_named_with_what_to_check() -> None:
    error = refused(Source(url=f"grpc://127.0.0.1:{free_port()}", model="far"))
    assert isinstance(error, BackendUnavailable)
    assert "no server answers at grpc://127.0.0.1:" in error.message
    assert "Triton's is 8001" in str(error.hint)


def test_a_port_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionpool_server.backends.remote._SETUP_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        error = refused(Source(url=f"grpc://127.0.0.1:{mute.getsockname()[1]}", model="far"))
    assert "no server answers" in error.message
    assert time.monotonic() - started < 8


def test_a_model_that_is_not_there_is_named_with_those_that_are(start: Start) -> None:
    error = refused(source_of(start(), "other"))
    assert isinstance(error, InvalidModel)
    assert error.message.startswith("no model 'other' at grpc://127.0.0.1:")
    assert error.hint == "there: far"
    error = refused(source_of(start(means(None)), "other"))
    assert error.hint == "is that its name there?"


def test_a_model_that_is_not_ready_stops_the_start(start: Start) -> None:
    stub = start()
    stub.ready = False
    error = refused(source_of(stub))
    assert isinstance(error, BackendUnavailable)
    assert error.message == f"model 'far' at {stub.url} is not ready"
    stub.ready, stub.fails_on = True, {"ModelMetadata": Status.UNAVAILABLE}  # Triton's way to say so
    assert "is not ready" in refused(source_of(stub)).message


@pytest.mark.parametrize(
    ("method", "status", "says"),
    [
        ("ServerLive", Status.UNIMPLEMENTED, "does not speak KServe v2"),
        ("ServerLive", Status.PERMISSION_DENIED, "refuses this server: PERMISSION_DENIED"),
        ("ModelMetadata", Status.INTERNAL, "does not describe model 'far': INTERNAL"),
    ],
)
def test_other_failures_at_the_start_say_what_failed(method: str, status: Any, says: str, start: Start) -> None:
    stub = start()
    stub.fails_on = {method: status}
    error = refused(source_of(stub))
    assert isinstance(error, BackendUnavailable)
    assert says in error.message
    assert "secret" not in str(error)


def test_a_model_without_declared_tensors_is_refused(start: Start) -> None:
    error = refused(source_of(start(FarModel(lambda arrays: arrays, (), ()))))
    assert "does not say what model 'far' takes and gives" in error.message


def test_a_type_that_arrays_do_not_have_is_refused_without_a_picture(start: Start, load: Load) -> None:
    stub = start(echo("FP8"))
    assert RemoteBackend().read(source_of(stub)).inputs[0].dtype == "FP8"
    with pytest.raises(InvalidModel, match="FP8"):
        load(stub, None)


def test_a_configuration_that_is_kept_from_us_costs_only_its_batch_size(start: Start, load: Load) -> None:
    stub = start(means(8))
    stub.fails_on = {"ModelConfig": Status.UNAVAILABLE}  # as of Triton with a restricted protocol
    assert load(stub).max_batch_size == 1


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (Status.INVALID_ARGUMENT, InvalidModel, "failed: INVALID_ARGUMENT: with a black picture"),
        (Status.UNAVAILABLE, BackendUnavailable, "cannot be reached: UNAVAILABLE"),
        (Status.RESOURCE_EXHAUSTED, BackendUnavailable, "has too much to do"),
    ],
)
def test_a_model_that_fails_on_a_black_picture_stops_the_start(
    fault: Any, kind: type[SetupError], says: str, start: Start, load: Load
) -> None:
    stub = start()
    stub.fails = fault
    with pytest.raises(kind, match=says):
        load(stub)


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "127.0.0.1:8001",
        "http://127.0.0.1:8000",
        "grpc://127.0.0.1",
        "grpc://:8001",
        "grpc://a:b",
        "grpc://a:99999",
        "grpc://a:1/v2",
        "grpc://me:secret@a:8001",
        "grpc://[::1:8001",
    ],
)
def test_a_url_that_is_none_is_refused_with_how_to_write_it(url: str | None) -> None:
    error = refused(Source(url=url, model="far"))
    assert isinstance(error, InvalidModel)
    assert "grpc://HOST:PORT" in str(error.hint)
    assert "secret" not in str(error)


def test_a_source_without_a_model_is_refused() -> None:
    with pytest.raises(InvalidModel, match="the model's name"):
        RemoteBackend().read(Source(url="grpc://127.0.0.1:8001"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "f16"}, r"cannot choose the precision \(f16\)"),
        ({"device": "GPU"}, r"cannot choose the device \(GPU\)"),
        ({"cpu_operators": ("Sigmoid",)}, "cpu_operators is OpenVINO's"),
        ({"options": {"timeout": 5}}, r"has timeout, which .*\(it knows timeout_ms, max_message_mb, headers\)"),
        ({"options": {"timeout_ms": 0}}, "timeout_ms is a number above 0"),
        ({"options": {"timeout_ms": "5"}}, "timeout_ms is a number above 0"),
        ({"options": {"timeout_ms": True}}, "timeout_ms is a number above 0"),
        ({"options": {"timeout_ms": float("nan")}}, "timeout_ms is a number above 0"),
        ({"options": {"max_message_mb": 2048}}, "max_message_mb is a number above 0, at most 2047"),
        ({"options": {"headers": "secret"}}, "headers is a map"),
        ({"options": {"headers": {"a b": "secret"}}}, "'a b' is not the name"),
        ({"options": {"headers": {"grpc-timeout": "secret"}}}, "'grpc-timeout' is not the name"),
        ({"options": {"headers": {"key-bin": "secret"}}}, "'key-bin' is not the name"),
        ({"options": {"headers": {"key": "secret\n"}}}, "the value of key is not a line"),
        ({"options": {"headers": {"key": 7}}}, "the value of key is not a line"),
    ],
)
def test_settings_that_mean_nothing_here_are_refused(options: Any, says: str, start: Start, load: Load) -> None:
    with pytest.raises(InvalidModel, match=says) as caught:
        load(start(), **options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("timeout_ms", "hang_timeout"), [(None, 15.0), (20_000, 20.0), (30_000, 20.0)])
def test_a_worker_may_not_be_given_up_before_the_far_server_is(
    timeout_ms: int | None, hang_timeout: float, start: Start, load: Load
) -> None:
    options = {"timeout_ms": timeout_ms} if timeout_ms else {}
    with pytest.raises(InvalidModel, match=r"timeout_ms is .* batching\.hang_timeout_ms: .*larger hang_timeout_ms"):
        load(start(), options=options, hang_timeout=hang_timeout)
    load(start(), options=options, hang_timeout=hang_timeout + 20)


# Failures of a single inference


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.UNAVAILABLE, Unavailable),
        (Status.CANCELLED, Unavailable),
        (Status.NOT_FOUND, Unavailable),
        (Status.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Status.RESOURCE_EXHAUSTED, QueueFull),
        (Status.INVALID_ARGUMENT, InferenceFailed),
        (Status.INTERNAL, InferenceFailed),
        (Status.UNKNOWN, InferenceFailed),
        (Status.UNAUTHENTICATED, InferenceFailed),
        (Status.UNIMPLEMENTED, InferenceFailed),
    ],
)
def test_each_status_has_its_error_and_what_it_says_stays_in_the_log(
    status: Any, kind: type[ServiceError], start: Start, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    stub = start()
    context = load(stub).clone()
    stub.fails, stub.says = status, "/secret/path\nforged line\x1b[31m" + "x" * 5000
    with caplog.at_level(logging.WARNING), pytest.raises(kind) as caught:
        context.infer({"x": pictures()})
    assert type(caught.value) is kind
    assert f"model 'far' at {stub.url}" in caught.value.message
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    (line,) = [record.getMessage() for record in caplog.records if "remote_peer" in record.name]
    assert f"{stub.url}, model far: {status.name}: /secret/path forged line [31mxxx" in line
    assert len(line) < 400
    assert line.isprintable()
    stub.fails = None
    assert np.allclose(context.infer({"x": pictures()})["means"], averages(pictures()), atol=1e-3)


def test_what_the_far_server_refuses_of_a_callers_own_tensors_is_the_callers_fault(
    start: Start, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    stub = start(echo("FP32"))
    context = load(stub, None).clone()
    with pytest.raises(InvalidRequest, match=f"model 'far' at {stub.url} does not take these tensors") as caught:
        context.infer({"x": np.zeros((2, 2, 2), np.float32)})
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert "secret" in caplog.text
    assert context.infer({"x": np.zeros((2, 2), np.float32)})["same"].shape == (2, 2)


def test_a_model_that_hangs_ends_with_a_deadline(start: Start, load: Load) -> None:
    stub = start()
    context = load(stub, options={"timeout_ms": 300}).clone()
    stub.hang_s = 30
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"did not answer in time.*timeout_ms allows 300"):
        context.infer({"x": pictures()})
    assert time.monotonic() - started < 5


def test_a_far_server_that_comes_back_is_found_again(start: Start, load: Load) -> None:
    stub = start()
    context = load(stub).clone()
    for _ in range(2):
        stub.stop()
        started = time.monotonic()
        for _ in range(3):
            with pytest.raises(Unavailable, match="cannot be reached: UNAVAILABLE"):
                context.infer({"x": pictures()})
        assert time.monotonic() - started < 5
        stub.start()
        assert np.allclose(eventually(context, stub)["means"], averages(pictures()), atol=1e-3)


def eventually(context: Any, stub: KServeStub) -> Any:
    """An answer within the longest pause between two attempts to connect, 5 s, and as much again for a busy machine."""
    until = time.monotonic() + 10
    while True:
        try:
            return context.infer({"x": pictures()})
        except Unavailable:
            assert time.monotonic() < until, f"{stub.url} is not found again"
            threading.Event().wait(0.05)


def test_a_far_server_that_stops_amid_a_call_is_unavailable(start: Start, load: Load) -> None:
    stub = start()
    context = load(stub).clone()
    stub.hang_s = 30
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(context.infer, {"x": pictures()})
        wait_for(lambda: len(stub.requests) == 2)
        stub.stop()
        with pytest.raises(Unavailable):
            call.result(10)


def wait_for(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_closing_the_engine_ends_its_calls(start: Start, load: Load) -> None:
    stub = start()
    engine = load(stub)
    context = engine.clone()
    stub.hang_s = 30
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(context.infer, {"x": pictures()})
        wait_for(lambda: len(stub.requests) == 2)
        engine.close()
        with pytest.raises(Unavailable):
            call.result(10)
    with pytest.raises(Unavailable, match="closed"):
        context.infer({"x": pictures()})


def test_one_failing_caller_does_not_touch_the_others(start: Start, load: Load) -> None:
    stub = start(echo("FP32"))
    engine = load(stub, None)

    def work(index: int) -> bool:
        array = np.full((2, 3), index, np.float64 if index % 4 == 0 else np.float32)
        try:
            return bool(np.all(engine.clone().infer({"x": array})["same"] == index))
        except InvalidRequest:
            return array.dtype == np.float64

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(64)))


# Wrong answers


def output(name: str, datatype: str, shape: tuple[int, ...]) -> Any:
    return pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)


def replaced(index: int, tensor: Any, raw: bytes) -> Callable[[Any], None]:
    def spoil(answer: Any) -> None:
        answer.outputs[index].CopyFrom(tensor)
        answer.raw_output_contents[index] = raw

    return spoil


def drop_first(answer: Any) -> None:
    del answer.outputs[0], answer.raw_output_contents[0]


def drop_data(answer: Any) -> None:
    del answer.raw_output_contents[0]


def drop_all_data(answer: Any) -> None:
    del answer.raw_output_contents[:]


def drop_all(answer: Any) -> None:
    answer.Clear()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (drop_first, "output 'means' is missing from its answer, which has pixels"),
        (drop_all, "output 'means' is missing from its answer, which has none"),
        (drop_data, "2 outputs with the data of 1"),
        (drop_all_data, r"output 'means' says shape \[1, 3\] and brings 0 values"),
        (
            replaced(0, output("means", "FP64", (1, 3)), bytes(24)),
            "output 'means' comes as float64, declared is float32",
        ),
        (replaced(0, output("means", "FP8", (1, 3)), bytes(3)), "output 'means' comes as FP8, declared is float32"),
        (replaced(0, output("means", "FP32", (1, 4)), bytes(16)), r"shape \[1, 4\], expected is \[1, 3\]"),
        (replaced(0, output("means", "FP32", (2, 3)), bytes(24)), r"shape \[2, 3\], expected is \[1, 3\]"),
        (replaced(0, output("means", "FP32", (3,)), bytes(12)), r"shape \[3\], expected is \[1, 3\]"),
        (replaced(0, output("means", "FP32", (-1, 3)), bytes(12)), r"shape \[-1, 3\], expected is \[1, 3\]"),
        (replaced(0, output("means", "FP32", (1, 3)), bytes(8)), r"says shape \[1, 3\] and brings 2 values"),
        (replaced(0, output("means", "FP32", (1, 3)), bytes(13)), "cannot be read as FP32"),
        (replaced(0, output("other", "FP32", (1, 3)), bytes(12)), "output 'means' is missing .* other, pixels"),
    ],
)
def test_answers_that_are_not_what_was_declared_fail_with_what_differs(
    spoil: Callable[[Any], None], says: str, start: Start, load: Load
) -> None:
    stub = start()
    context = load(stub).clone()
    stub.spoil = spoil
    with pytest.raises(InferenceFailed, match=says) as caught:
        context.infer({"x": pictures()})
    assert caught.value.message.startswith(f"model 'far' at {stub.url}: ")
    stub.spoil = None
    context.infer({"x": pictures()})


@pytest.mark.parametrize("raw", [b"\x05\0\0\0abc", b"\xff\xff\xff\xffabc", b"\1", b""])
def test_strings_whose_lengths_do_not_add_up_fail(raw: bytes, start: Start, load: Load) -> None:
    stub = start(echo("BYTES"))
    stub.spoil = replaced(0, output("same", "BYTES", (1, 1)), raw)
    with pytest.raises(InferenceFailed, match="output 'same'"):
        load(stub, None).clone().infer({"x": np.array([[b"a"]], object)})


def test_outputs_beyond_the_declared_ones_are_left_out(start: Start, load: Load) -> None:
    def more(answer: Any) -> None:
        answer.outputs.insert(0, output("more", "FP32", (1,)))
        answer.raw_output_contents.insert(0, bytes(4))

    stub = start()
    stub.spoil = more
    outputs = load(stub).clone().infer({"x": pictures()})
    assert list(outputs) == ["means", "pixels"]
    assert np.allclose(outputs["means"], averages(pictures()), atol=1e-3)


def test_rows_are_counted_where_a_batch_may_be_split_by_them(start: Start, load: Load) -> None:
    """After NMS there are as many rows as objects: right for one picture, and a wrong answer for a split batch."""

    def spread(arrays: kserve_stub.Arrays) -> kserve_stub.Arrays:
        return {"y": np.repeat(arrays["x"], 3, axis=0)}

    stub = start(FarModel(spread, (("x", "FP32", (-1, 2)),), (("y", "FP32", (-1, 2)),)))
    array = np.ones((2, 2), np.float32)
    assert load(stub, None).clone().infer({"x": array})["y"].shape == (6, 2)
    with pytest.raises(InferenceFailed, match=r"shape \[6, 2\], expected is \[2, 2\]"):
        load(stub, None, max_batch_size=8).clone().infer({"x": array})


# visionpool as the far server


@pytest.fixture(scope="module")
def visionpool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    folder = tmp_path_factory.mktemp("far")
    tiny_models.two_by_two(folder / "rows" / "m.onnx")
    tiny_models.two_by_two(folder / "fours" / "m.onnx")
    (folder / "fours" / "model.yaml").write_text("batching: {max_batch_size: 4}")
    tiny_models.plain(folder / "line" / "m.onnx", shape=["n"], op="Relu")
    graph = tiny_models.Graph()
    graph.add("MatMul", graph.input("a", ["n", "k"]), graph.input("b", ["also k", "m"]), output="y")
    graph.output("y", ["n", "m"])
    graph.save(folder / "product" / "m.onnx")
    tiny_models.paddle_detector(folder / "boxes" / "m.onnx")
    (folder / "boxes" / "model.yaml").write_text(
        "{family: paddle_detection, labels: [a, b, c], preprocess: [{resize: [64, 64]}]}"
    )
    with serving(folder) as server:
        yield f"grpc://{server.grpc}"


@contextmanager
def far(url: str, model: str, **options: Any) -> Iterator[RemoteEngine]:
    engine = RemoteBackend().load(Source(url=url, model=model), LoadOptions(**options))
    try:
        yield engine
    finally:
        engine.close()


@pytest.mark.parametrize(("model", "joined"), [("rows", 1), ("fours", 4)])
def test_rows_are_as_many_as_the_far_visionpool_takes_in_a_request(model: str, joined: int, visionpool: str) -> None:
    a = np.arange(36, dtype=np.float32).reshape(9, 4)
    with far(visionpool, model) as engine:
        assert (engine.batched, engine.max_batch_size) == (True, joined)
        assert engine.clone().infer({"a": a, "b": a})["total"].tolist() == (a + a).tolist()
    with far(visionpool, model, max_batch_size=16) as engine:
        assert (engine.batched, engine.max_batch_size) == (True, 16)


def test_tensors_of_one_dimension_come_whole(visionpool: str) -> None:
    with far(visionpool, "line") as engine:
        assert not engine.batched
        answer = engine.clone().infer({"x": np.arange(-4, 4, dtype=np.float32)})["y"]
        assert answer.tolist() == [0, 0, 0, 0, 0, 1, 2, 3]


def test_independent_first_dimensions_stay_independent(visionpool: str) -> None:
    a, b = np.ones((2, 3), np.float32), np.ones((3, 5), np.float32)
    with far(visionpool, "product") as engine:
        assert not engine.batched
        context = engine.clone()
        assert context.infer({"a": a, "b": b})["y"].tolist() == (a @ b).tolist()
        with pytest.raises(InvalidRequest, match=r"'product' at .* does not take these tensors"):
            context.infer({"a": a[:, :, None], "b": b})


def test_outputs_that_have_rows_of_their_own_are_not_held_against_the_batch(visionpool: str) -> None:
    image = ImageInput("image", "NCHW", Arithmetic(), (64, 64))
    with far(visionpool, "boxes", image=image) as engine:
        seen = engine.clone().infer(
            {"image": tiny_models.picture(64, 64)[None], "scale_factor": np.ones((1, 2), np.float32)}
        )
        assert seen["counts"].tolist() == [len(seen["rows"])]
        assert len(seen["rows"]) > 1


# Limits, keys, TLS


@pytest.mark.parametrize("way", ["out", "back"])
def test_a_message_beyond_the_limit_says_which_setting(way: str, start: Start, load: Load) -> None:
    model = echo("FP32")
    if way == "back":
        model = FarModel(
            lambda arrays: {"y": np.zeros((1, 10**6), np.float32)}, model.inputs, (("y", "FP32", (-1, -1)),)
        )
    context = load(start(model), None, options={"max_message_mb": 1}).clone()
    with pytest.raises(InferenceFailed, match="max_message_mb"):
        context.infer({"x": np.zeros((1, 10**6 if way == "out" else 1), np.float32)})


def test_large_tensors_pass_by_default(start: Start, load: Load) -> None:
    array = np.random.default_rng(0).random((1, 5 << 20), np.float32)  # 20 MiB: gRPC's own limit is 4
    assert np.array_equal(load(start(echo("FP32")), None).clone().infer({"x": array})["same"], array)


def test_headers_are_sent_with_every_call(start: Start, load: Load, caplog: pytest.LogCaptureFixture) -> None:
    stub = start(header=("authorization", "Bearer of a secret"))
    with pytest.raises(BackendUnavailable, match=r"refuses this server: UNAUTHENTICATED .*runtime\.options\.headers"):
        load(stub)
    told = {"headers": {"Authorization": "Bearer of a secret"}}
    source = source_of(stub, options=told)
    assert RemoteBackend().read(source).inputs[0].name == "x"
    engine = load(stub, options=told)
    assert engine.clone().infer({"x": pictures()})["means"].shape == (1, 3)
    assert "Bearer" not in caplog.text + repr(engine._peer.settings) + repr(source)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key, and a certificate for localhost signed with it."""
    folder = tmp_path_factory.mktemp("tls")
    key, chain = folder / "key.pem", folder / "chain.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    names = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(chain),
    ]
    try:
        subprocess.run([*command, *names], check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    return key, chain


def test_grpcs_speaks_tls_and_trusts_whom_the_system_trusts(
    certificate: tuple[Path, Path], start: Start, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, chain = certificate
    stub = start(credentials=grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())]))
    assert stub.url.startswith("grpcs://localhost:")
    with pytest.raises(BackendUnavailable, match="no server answers"):
        load(stub)
    with pytest.raises(BackendUnavailable, match="grpcs://"):
        RemoteBackend().read(Source(url=stub.url.replace("grpcs", "grpc"), model="far"))
    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    assert load(stub).clone().infer({"x": pictures()})["means"].shape == (1, 3)
