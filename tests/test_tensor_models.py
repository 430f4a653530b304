"""Plain tensor models: whatever a runtime loads is served, in its own types and shapes, with the numbers of NumPy.

The same graphs run in OpenVINO and ONNX Runtime, and the expected values are NumPy's: three implementations that know nothing
of each other.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import openvino
import openvino.opset13 as ops
import pytest
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper
from visionpool.errors import InvalidModel, InvalidRequest, ModelNotFound, Unavailable
from visionpool_server.backends import (
    BACKENDS,
    Engine,
    LoadOptions,
    Signature,
    Source,
    TensorSpec,
    get_backend,
    numpy_dtype,
    zeros,
)
from visionpool_server.models.checks import check_aliases
from visionpool_server.models.files import find_models
from visionpool_server.models.loader import Defaults, Model, load_model
from visionpool_server.models.repository import Repository

from tests import tiny_models
from tests.tiny_models import SIZE, Graph, plain, two_by_two

KINDS = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "bfloat16": TensorProto.BFLOAT16,
    "bytes": TensorProto.STRING,
}
NUMBERS = [name for name in KINDS if name not in ("bool", "bytes")]
every_backend = pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])


def load(path: Path, backend: str = "openvino", **options: Any) -> Engine:
    return get_backend(backend).load(Source(path), LoadOptions(**options))


def read(path: Path, backend: str = "openvino") -> Signature:
    return get_backend(backend).read(Source(path))


def extremes(dtype: str, backend: str) -> NDArray[Any]:
    """Six values at the ends of what a type holds, and of what the runtime keeps of it."""
    kind = numpy_dtype(dtype)
    if dtype == "bool":
        return np.array([True, False, True, True, False, False])
    if dtype == "bytes":
        return np.array(
            [b"plain", "größe".encode(), b"", b"zero\0inside", b"zero at the end\0", b"x" * 100_000], object
        )
    if "int" in dtype:
        kept = np.iinfo({"int64": np.int32, "uint64": np.uint32}.get(dtype, kind) if backend == "openvino" else kind)
        return np.array([kept.min, kept.max, 0, 1, 2, 3], kind)
    limits = ml_dtypes.finfo(kind)  # type: ignore[no-untyped-call]
    return np.array([limits.min, limits.max, np.nan, np.inf, -0.0, 1 / 3], kind)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """As it comes out of a request's bytes, at an address that is good for nothing."""
    if array.dtype == object:
        return array
    return np.frombuffer(b"?" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)


def same(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape or not ours.flags.c_contiguous:
        return False
    return ours.tobytes() == theirs.tobytes() if ours.dtype != object else ours.tolist() == theirs.tolist()


# Types and shapes


@every_backend
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(
    ("declared", "shape"),
    [
        (["n"], (6,)),
        (["n", 3], (2, 3)),
        (["n", "m", 1], (3, 2, 1)),
        ([6], (6,)),
        ([], ()),
        (["n", 0], (2, 0)),
        (["n", 3], (0, 3)),
    ],
)
def test_every_type_and_shape_goes_through_bit_by_bit(
    backend: str, dtype: str, declared: Any, shape: tuple[int, ...], tmp_path: Path
) -> None:
    path = plain(tmp_path / "m.onnx", KINDS[dtype], declared)
    spec = TensorSpec("x", tuple(size if isinstance(size, int) else None for size in declared), dtype)
    assert read(path, backend).inputs == (spec,)
    if (backend, dtype) == ("openvino", "bytes"):
        with pytest.raises(InvalidModel, match=r"holds strings.*say runtime.backend: onnxruntime"):
            load(path, backend)
        return
    context = load(path, backend).clone()
    values = extremes(dtype, backend)[: int(np.prod(shape))].reshape(shape)
    for _ in range(2):
        for given in (values, read_only(values), values[::-1].copy() if values.ndim else values):
            assert same(context.infer({"x": given})["y"], given)


@every_backend
@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize(("declared", "shape"), [(["n", 4], (3, 4)), ([], ()), (["n", 0], (2, 0))])
def test_sums_are_numpys(backend: str, dtype: str, declared: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = plain(tmp_path / "m.onnx", KINDS[dtype], declared, "Add", ("x", "z"))
    if (backend, dtype) == ("onnxruntime", "bfloat16"):
        with pytest.raises(InvalidModel, match="NOT_IMPLEMENTED"):
            load(path, backend)
        return
    random = np.random.default_rng(0)
    x, z = (random.integers(0, 60, shape).astype(numpy_dtype(dtype)) for _ in range(2))
    assert same(load(path, backend).clone().infer({"z": z, "x": x})["y"], np.asarray(x + z))


@every_backend
@pytest.mark.parametrize("source", ["bool", "uint8", "int32", "int64", "float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("target", ["bool", "uint8", "int32", "int64", "float16", "float32", "float64", "bfloat16"])
def test_one_type_becomes_another(backend: str, source: str, target: str, tmp_path: Path) -> None:
    graph = Graph()
    graph.add("Cast", graph.input("x", ["n"], KINDS[source]), output="y", to=KINDS[target])
    graph.output("y", ["n"], KINDS[target])
    x = np.array([0, 1, 2, 100], numpy_dtype(source))
    engine = load(graph.save(tmp_path / "m.onnx"), backend)
    assert same(engine.clone().infer({"x": x})["y"], x.astype(numpy_dtype(target)))


@every_backend
def test_several_inputs_and_outputs_keep_their_names_and_order(backend: str, tmp_path: Path) -> None:
    path = two_by_two(tmp_path / "m.onnx")
    assert [spec.name for spec in read(path, backend).inputs] == ["a", "b"]
    a, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((2, 4), np.float32)
    outputs = load(path, backend).clone().infer({"b": b, "a": a})
    assert list(outputs) == ["total", "difference"]
    assert same(outputs["total"], a + b)
    assert same(outputs["difference"], a - b)


@every_backend
def test_shapes_may_change_from_call_to_call(backend: str, tmp_path: Path) -> None:
    context = load(plain(tmp_path / "m.onnx", shape=["n", "m"], op="Relu"), backend).clone()
    random = np.random.default_rng(0)
    for shape in [(1, 1), (7, 3), (7, 3), (2, 50_000), (0, 5), (2, 50_000), (3, 0), (1, 1)]:
        x = random.normal(size=shape).astype(np.float32)
        assert same(context.infer({"x": x})["y"], np.maximum(x, 0))


@every_backend
@pytest.mark.parametrize("count", [100, 1_000_000])
@pytest.mark.parametrize("op", ["Identity", "Relu", "Neg", "Sigmoid"])
def test_what_a_caller_hands_over_is_never_written_to(backend: str, count: int, op: str, tmp_path: Path) -> None:
    context = load(plain(tmp_path / "m.onnx", shape=["n"], op=op), backend).clone()
    x = np.linspace(-1, 1, count, dtype=np.float32)
    before = x.tobytes()
    given = np.frombuffer(before, np.float32)
    for _ in range(3):
        context.infer({"x": given})
    assert before == x.tobytes()


def test_outputs_without_a_name_are_served_by_position(tmp_path: Path) -> None:
    parameter = ops.parameter([-1, 3], np.float32)
    model = openvino.Model([ops.relu(parameter), ops.negative(parameter)], [parameter], "unnamed")
    openvino.save_model(model, tmp_path / "m.xml", compress_to_fp16=False)
    text = (tmp_path / "m.xml").read_text()
    (tmp_path / "m.xml").write_text(re.sub(r' (output_)?names="[^"]*"', "", text))
    signature = read(tmp_path / "m.xml")
    assert [spec.name for spec in signature.inputs] == ["input_0"]
    assert [spec.name for spec in signature.outputs] == ["output_0", "output_1"]
    x = np.array([[-1, 1, 2]], np.float32)
    outputs = load(tmp_path / "m.xml").clone().infer({"input_0": x})
    assert same(outputs["output_0"], np.maximum(x, 0))
    assert same(outputs["output_1"], -x)


def test_a_rank_that_the_file_leaves_open_is_not_a_scalars(tmp_path: Path) -> None:
    parameter = ops.parameter(openvino.PartialShape.dynamic(), np.float32)
    parameter.output(0).get_tensor().set_names({"x"})
    openvino.save_model(openvino.Model([ops.relu(parameter)], [parameter]), tmp_path / "m.xml")
    assert read(tmp_path / "m.xml").inputs == (TensorSpec("x", None, "float32"),)
    assert read(plain(tmp_path / "scalar.onnx", shape=[])).inputs[0].shape == ()
    context = load(tmp_path / "m.xml", shapes={"x": (-1, 3)}).clone()
    (answer,) = context.infer({"x": np.ones((2, 3), np.float32)}).values()
    assert answer.shape == (2, 3)


def test_what_the_runtime_refuses_once_it_refuses_again_and_never_answers_with_older_values(tmp_path: Path) -> None:
    context = load(plain(tmp_path / "m.onnx", shape=[2, 4])).clone()
    x, wrong = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((5, 4), np.float32)
    first = context.infer({"x": x})["y"].copy()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            context.infer({"x": wrong})
    assert same(context.infer({"x": x})["y"], first)
    assert not same(context.infer({"x": x + 1})["y"], first)


def test_an_array_of_another_type_is_no_memory_to_read_from(tmp_path: Path) -> None:
    context = load(plain(tmp_path / "m.onnx", shape=["n"])).clone()
    with pytest.raises(TypeError, match="input 'x' is float64, and the model takes float32"):
        context.infer({"x": np.ones(3)})


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_an_integer_that_openvino_would_cut_is_refused(value: int, tmp_path: Path) -> None:
    path = plain(tmp_path / "m.onnx", TensorProto.INT64, ["n"])
    with pytest.raises(InvalidRequest, match=r"'x': OpenVINO computes int64 in 32 bits"):
        load(path).clone().infer({"x": np.array([1, value])})
    assert load(path, "onnxruntime").clone().infer({"x": np.array([1, value])})["y"].tolist() == [1, value]


def test_a_string_that_onnx_runtime_does_not_take_is_the_callers_fault(tmp_path: Path) -> None:
    context = load(plain(tmp_path / "m.onnx", TensorProto.STRING, ["n"]), "onnxruntime").clone()
    with pytest.raises(InvalidRequest, match="'x' has a string that is not UTF-8"):
        context.infer({"x": np.array([b"\xff\xfe"], object)})


def test_a_type_that_no_array_has_is_refused_with_those_that_are_served(tmp_path: Path) -> None:
    parameter = ops.parameter([4], openvino.Type.i4, name="x")
    parameter.output(0).get_tensor().set_names({"x"})
    openvino.save_model(openvino.Model([ops.convert(parameter, "f32")], [parameter]), tmp_path / "m.xml")
    with pytest.raises(InvalidModel, match=r"'x' is of type i4, which cannot be sent \(export it as one of bool"):
        load(tmp_path / "m.xml")


def test_zeros_are_of_any_type() -> None:
    assert zeros((2, 1), "bytes").tolist() == [[b"0"], [b"0"]]
    assert zeros((), "bfloat16").dtype == ml_dtypes.bfloat16
    assert zeros((0, 3), "bool").shape == (0, 3)


# Batches


def mixed(path: Path, first: Any, second: Any, output: Any, op: str = "Add") -> Path:
    graph = Graph()
    graph.add(op, graph.input("a", first), graph.input("b", second), output="y")
    graph.output("y", output)
    return graph.save(path)


def shared_rows(path: Path) -> Path:
    """Each row of `a` against each of `b`: both dimensions of the output are batches, so that none is."""
    graph = Graph()
    turned = graph.add("Transpose", graph.input("b", ["m", 3]), perm=[1, 0])
    graph.add("MatMul", graph.input("a", ["n", 3]), turned, output="y")
    graph.output("y", ["n", "m"])
    return graph.save(path)


def product(path: Path) -> Path:
    """The rows of `b` are `a`'s columns: their first dimensions say nothing of each other."""
    graph = Graph()
    graph.add("MatMul", graph.input("a", ["n", "k"]), graph.input("b", ["also k", "m"]), output="y")
    graph.output("y", ["n", "m"])
    return graph.save(path)


def side_by_side(path: Path, names: Sequence[Any] = ("n", "n", "m")) -> Path:
    """`a` + `b`, and `c` beside them, which may have rows of its own. `names` of their first dimensions."""
    graph = Graph()
    for name, first in zip("abc", names, strict=True):
        graph.input(name, [first, 3])
    graph.add("Add", "a", "b", output="total")
    graph.add("Relu", "c", output="positive")
    graph.output("total", [names[0], 3])
    graph.output("positive", [names[2], 3])
    return graph.save(path)


def summed(path: Path) -> Path:
    graph = Graph()
    graph.add("ReduceSum", graph.input("x", ["n", 3]), graph.constant([0], np.int64), output="y")
    graph.output("y", [1, 3])
    return graph.save(path)


BATCHED: dict[str, tuple[Callable[[Path], Path], bool]] = {
    "dynamic": (lambda path: plain(path, shape=["n", 3], op="Relu"), True),
    "dynamic, of other dynamic dimensions": (lambda path: plain(path, shape=["n", "m"], op="Relu"), True),
    "two inputs": (two_by_two, True),
    "rows only": (lambda path: plain(path, shape=["n"], op="Relu"), True),
    "a scalar": (lambda path: plain(path, shape=[], op="Relu"), False),
    "a scalar beside": (lambda path: mixed(path, ["n", 3], [], ["n", 3]), False),
    "a constant row beside": (lambda path: mixed(path, ["n", 3], [1, 3], ["n", 3]), False),
    "fixed": (lambda path: plain(path, shape=[4, 3], op="Relu"), False),
    "the sum of all": (summed, False),
    "all against all": (shared_rows, False),
    "a matrix product": (product, False),
    "one beside two": (side_by_side, False),
    "one beside two, without names": (lambda path: side_by_side(path, (None, None, None)), False),
}


@every_backend
@pytest.mark.parametrize("kind", BATCHED)
def test_whether_the_first_dimension_is_a_batch(kind: str, backend: str, tmp_path: Path) -> None:
    build, batched = BATCHED[kind]
    engine = load(build(tmp_path / "m.onnx"), backend)
    assert (engine.batched, engine.batch_sizes, engine.max_batch_size) == (batched, (), 1)


@every_backend
def test_inputs_whose_first_dimensions_are_independent_come_as_they_are(backend: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a, b, c = (random.normal(size=shape).astype(np.float32) for shape in ((2, 3), (3, 2), (5, 3)))
    engine = load(product(tmp_path / "product.onnx"), backend)
    assert np.allclose(engine.clone().infer({"a": a, "b": b})["y"], a @ b, atol=1e-6)
    outputs = load(side_by_side(tmp_path / "m.onnx"), backend).clone().infer({"a": a, "b": a, "c": c})
    assert same(outputs["total"], a + a)
    assert same(outputs["positive"], np.maximum(c, 0))


@every_backend
def test_who_asks_for_batches_says_that_first_dimensions_are_one(backend: str, tmp_path: Path) -> None:
    path = side_by_side(tmp_path / "m.onnx", (None, None, None))
    for asked in ({"max_batch_size": 1}, {"max_batch_size": 4}, {"batch_sizes": (1, 2)}):
        assert load(path, backend, **asked).batched


@every_backend
def test_nothing_is_joined_unless_it_is_asked_for_but_one_call_may_bring_many_rows(
    backend: str, tmp_path: Path
) -> None:
    path = two_by_two(tmp_path / "m.onnx")
    for asked, limit, sizes in (
        ({}, 1, ()),
        ({"max_batch_size": 4}, 4, ()),
        ({"batch_sizes": (2, 1)}, 2, (1, 2)),
    ):
        engine = load(path, backend, **asked)
        assert (engine.batched, engine.max_batch_size, engine.batch_sizes) == (True, limit, sizes)
        a = np.arange(36, dtype=np.float32).reshape(9, 4)[: limit if sizes else 9]
        assert same(engine.clone().infer({"a": a, "b": a})["total"], a + a)


def test_a_batch_of_one_in_the_file_is_a_batch_where_the_graph_takes_more(tmp_path: Path) -> None:
    path = two_by_two(tmp_path / "m.onnx", rows=1)
    engine = load(path)
    assert (engine.batched, engine.batch_sizes, engine.max_batch_size) == (True, (1,), 1)
    engine = load(path, max_batch_size=3)
    assert (engine.batched, engine.batch_sizes, engine.max_batch_size) == (True, (), 3)
    a = np.ones((3, 4), np.float32)
    assert same(engine.clone().infer({"a": a, "b": a})["total"], a + a)
    engine = load(path, "onnxruntime")
    assert (engine.batched, engine.batch_sizes, engine.max_batch_size) == (False, (), 1)


@every_backend
@pytest.mark.parametrize("kind", ["a scalar", "a scalar beside", "the sum of all", "all against all"])
def test_a_model_without_a_batch_says_so_where_one_is_asked_for(kind: str, backend: str, tmp_path: Path) -> None:
    path = BATCHED[kind][0](tmp_path / "m.onnx")
    with pytest.raises(InvalidModel, match=r"batch.*say batching.max_batch_size: 1"):
        load(path, backend, max_batch_size=4)


@every_backend
def test_dimensions_that_must_agree_do_not_keep_a_model_from_being_served(backend: str, tmp_path: Path) -> None:
    """Zeros of guessed sizes fail in it: (1, 1) by a constant of (7, 2)."""
    graph = Graph()
    graph.add("MatMul", graph.input("x", ["n", "seven"]), graph.weights(7, 2), output="y")
    graph.output("y", ["n", 2])
    context = load(graph.save(tmp_path / "m.onnx"), backend).clone()
    assert context.infer({"x": np.ones((3, 7), np.float32)})["y"].shape == (3, 2)


# Without a worker


def filled(path: Path) -> Path:
    """As many ones as its input says, added up."""
    graph = Graph()
    ones = graph.add("ConstantOfShape", graph.input("dims", [2], TensorProto.INT64))
    graph.add("ReduceSum", ones, output="y", keepdims=0)
    graph.output("y", [])
    return graph.save(path)


def repeated(path: Path) -> Path:
    """`x` doubled as often as `times` says."""
    flag, count, row = (
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (("go", TensorProto.BOOL, []), ("i", TensorProto.INT64, []), ("v", 1, [4]))
    )
    doubled = helper.make_tensor_value_info("doubled", TensorProto.FLOAT, [4])
    going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
    steps = [helper.make_node("Identity", ["go"], ["going"]), helper.make_node("Add", ["v", "v"], ["doubled"])]
    body = helper.make_graph(steps, "body", [count, flag, row], [going, doubled])
    graph = Graph()
    times = graph.add("Squeeze", graph.input("times", [1], TensorProto.INT64), graph.constant([0], np.int64))
    graph.add("Loop", times, graph.constant(True, bool), graph.input("x", [4]), output="y", body=body)
    graph.output("y", [4])
    return graph.save(path)


def counted(path: Path) -> Path:
    """How many numbers are not 0: by where they are."""
    graph = Graph()
    where = graph.add("NonZero", graph.input("x", ["n", 3]))
    graph.add("Shape", where, output="y")
    graph.output("y", [2], TensorProto.INT64)
    return graph.save(path)


def suppressed(path: Path) -> Path:
    graph = Graph()
    limits = (graph.constant([10], np.int64), graph.constant([0.5]), graph.constant([0.5]))
    boxes, scores = graph.input("boxes", [1, 6, 4]), graph.input("scores", [1, 1, 6])
    graph.add("NonMaxSuppression", boxes, scores, *limits, output="y")
    graph.output("y", ["kept", 3], TensorProto.INT64)
    return graph.save(path)


def regions(path: Path) -> Path:
    """As many samples of each region as it is large."""
    graph = Graph()
    picture, corners = graph.input("x", [1, 1, 8, 8]), graph.input("regions", [2, 4])
    graph.add("RoiAlign", picture, corners, graph.constant([0, 0], np.int64), output="y", sampling_ratio=0)
    graph.output("y", [2, 1, 1, 1])
    return graph.save(path)


def pooled(path: Path, sides: Sequence[Any] = (32, 32)) -> Path:
    graph = Graph()
    graph.add("Flatten", graph.add("GlobalAveragePool", graph.input("x", ["n", 3, *sides])), output="y")
    graph.output("y", ["n", 3])
    return graph.save(path)


def tiled(path: Path) -> Path:
    graph = Graph()
    graph.add("Tile", graph.input("x", ["n", 3]), graph.input("times", [2], TensorProto.INT64), output="tiles")
    graph.add("ReduceSum", "tiles", graph.constant([0, 1], np.int64), output="y", keepdims=0)
    graph.output("y", [])
    return graph.save(path)


AT_ONCE: dict[str, tuple[Callable[[Path], Path], bool]] = {
    "pooling": (pooled, True),
    "two inputs": (two_by_two, True),
    "rows only": (lambda path: plain(path, shape=["n"], op="Relu"), True),
    "fixed": (lambda path: plain(path, shape=[4, 3], op="Relu"), True),
    "as many ones as an input says": (filled, False),
    "as often as an input says": (repeated, False),
    "tiles": (tiled, False),
    "what is not 0": (counted, False),
    "overlapping boxes": (suppressed, False),
    "large regions": (regions, False),
    "dimensions that no byte need count": (lambda path: pooled(path, ("h", "w")), False),  # (0, 3, 10**6, 10**6)
    "rows without a byte": (lambda path: plain(path, shape=["n", 0], op="Relu"), False),
}


@pytest.mark.parametrize("kind", AT_ONCE)
def test_only_what_takes_as_long_as_its_bytes_say_needs_no_worker(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionpool_server.backends.openvino.backend.QUICK", 1.0)  # of any machine
    build, at_once = AT_ONCE[kind]
    assert (load(build(tmp_path / "m.onnx")).quick_bytes > 0) is at_once


FIRST_USE = """
import sys, threading
from pathlib import Path
import numpy as np
from visionpool_server.backends import LoadOptions, Source, get_backend

engine = get_backend("openvino").load(Source(Path(sys.argv[1])), LoadOptions(contexts=4))
together = threading.Barrier(4)
answers = []

def work():
    context = engine.clone()
    together.wait()
    for _ in range(3):
        outputs = context.infer({"x": np.ones((2, 7), np.float32)})
    answers.append(outputs["y"].shape)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert answers == [(2, 2)] * 4, answers
print("done")
"""


def test_workers_may_be_the_first_to_run_a_model_whose_sizes_cannot_be_guessed(tmp_path: Path) -> None:
    graph = Graph()
    graph.add("MatMul", graph.input("x", ["n", "seven"]), graph.weights(7, 2), output="y")
    graph.output("y", ["n", 2])
    path = graph.save(tmp_path / "m.onnx")

    def use(_: int) -> str:
        command = [sys.executable, "-c", FIRST_USE, str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(use, range(12))) == ["done"] * 12


@every_backend
def test_contexts_on_threads_of_their_own_do_not_mix(backend: str, tmp_path: Path) -> None:
    engine = load(two_by_two(tmp_path / "m.onnx"), backend, contexts=4)

    def work(seed: int) -> None:
        context, random = engine.clone(), np.random.default_rng(seed)
        for _ in range(200):
            a, b = random.normal(size=(2, int(random.integers(1, 600)), 4)).astype(np.float32)
            outputs = context.infer({"a": a, "b": b})
            assert same(outputs["total"], a + b)
            assert same(outputs["difference"], a - b)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


# Served: from files to a pool


def config(folder: Path, content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def loaded(path: Path, **defaults: Any) -> Model:
    (files,) = find_models(path)
    return load_model(files, Defaults(**{"workers": 1, **defaults}))


def refusal(path: Path) -> str:
    with pytest.raises(InvalidModel) as caught:
        loaded(path)
    return str(caught.value)


@contextmanager
def running(model: Model) -> Iterator[Model]:
    model.pool.start()
    try:
        yield model
    finally:
        model.close()


@every_backend
def test_a_model_that_says_nothing_is_served_as_plain_tensors(backend: str, tmp_path: Path) -> None:
    two_by_two(tmp_path / "adder.onnx")
    model = loaded(tmp_path / "adder.onnx", backend=backend)
    assert (model.name, model.task, model.family_name, model.family) == ("adder", "tensor", "tensor", None)
    assert (model.source, model.labels, model.tensors, model.advice) == ("its tensors alone", (), None, None)
    assert model.tensor_pool() is model.pool
    assert model.pool.groups[0].engine.batched


def test_a_detector_is_plain_tensors_where_its_yaml_wants_that(tmp_path: Path) -> None:
    tiny_models.yolov8(tmp_path / "m.onnx", metadata={"names": "{}", "task": "pose"})
    config(tmp_path, {"task": "tensor", "labels": ["a", "b", "c"]})
    model = loaded(tmp_path)
    assert (model.task, model.family, model.source) == ("tensor", None, "model.yaml")
    assert (model.labels, model.advice) == (("a", "b", "c"), None)
    outputs = model.pool.groups[0].engine.clone().infer({"images": np.zeros((1, 3, SIZE, SIZE), np.float32)})
    assert outputs["output0"].shape == (1, 7, 64)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"task": "tensor", "preprocess": [{"resize": 8}]}, "preprocess means nothing .*plain tensors .leave it out"),
        ({"task": "tensor", "postprocess": {"top_k": 3}}, "postprocess means nothing"),
        ({"task": "tensor", "input_size": [8, 8]}, "input_size means nothing"),
        ({"task": "tensor", "decode": "fast"}, "decode means nothing"),
        ({"task": "tensor", "raw_pictures": "bgr"}, "raw_pictures means nothing"),
        ({"task": "tensor", "family": "yolov8"}, "task: tensor has no family"),
        ({"preprocess": [{"resize": 8}]}, r"preprocess means nothing .*\(if it is a classifier, write a model.yaml"),
        ({"task": "tensor", "aliases": {"in": "y"}}, r"'in' stands for 'y', which .* \(there are x, logits\)"),
        ({"task": "tensor", "aliases": {"out": "result"}}, "'out' stands for 'result', which the model does not have"),
        ({"task": "tensor", "aliases": {"x": "logits"}}, "'x' is a tensor's own name"),
        ({"runtime": {"shapes": {"z": [1]}}}, "runtime.shapes names 'z'; the model's inputs are x"),
        ({"runtime": {"shapes": {"x": [1]}}}, "runtime.shapes gives 'x' 1 dimensions, and the model has 4"),
    ],
)
def test_what_means_nothing_to_plain_tensors_is_refused(tmp_path: Path, said: dict[str, Any], complaint: str) -> None:
    tiny_models.classifier(tmp_path / "m.onnx")
    config(tmp_path, said)
    message = refusal(tmp_path)
    assert re.search(complaint, message), message


@pytest.mark.parametrize("shape", [(3, 224, 224), (3, 28, 28), (3, 64, 96), (1, 28, 28), (3, None, None)])
def test_the_advice_for_a_classifier_is_taken(tmp_path: Path, shape: tuple[int | None, ...]) -> None:
    """As it stands, with the labels in a file beside it."""
    graph = tiny_models.Graph()
    picture = graph.input("images", ["n", *(size or name for size, name in zip(shape, "chw", strict=True))])
    flat = graph.add("Flatten", graph.add("GlobalAveragePool", picture))
    graph.add("Softmax", graph.add("MatMul", flat, graph.weights(shape[0] or 3, 4)), output="scores", axis=1)
    graph.output("scores", ["n", 4])
    graph.save(tmp_path / "m.onnx")
    advice = loaded(tmp_path).advice
    assert advice is not None
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    said = yaml.safe_load(advice.partition("beside it: ")[2])
    config(tmp_path, {**said, "labels": "labels.txt"})
    model = loaded(tmp_path)
    assert (model.family_name, model.labels) == ("classification", ("a", "b", "c", "d"))


def test_aliases_stand_for_a_models_tensors_and_its_result(tmp_path: Path) -> None:
    tiny_models.yolov8(tmp_path / "m.onnx")
    config(tmp_path, {"aliases": {"image": "images", "boxes": "output0", "answer": "result"}, "raw_pictures": "bgr"})
    bundle = loaded(tmp_path).bundle
    assert bundle.aliases == {"image": "images", "boxes": "output0", "answer": "result"}
    assert bundle.raw_pictures == "bgr"
    signature = read(tmp_path / "m.onnx")
    with pytest.raises(InvalidModel, match="'result' is a tensor's own name"):
        check_aliases(bundle.model_copy(update={"aliases": {"result": "output0"}}), signature, vision=True)


def test_a_vision_models_tensors_have_a_pool_of_their_own_loaded_once_by_whoever_comes_first(tmp_path: Path) -> None:
    path = tiny_models.yolov8(tmp_path / "m.onnx")
    model = loaded(path)
    with running(model):
        assert model.tensors
        assert model.tensors.loaded is None
        with ThreadPoolExecutor(4) as threads:
            pools = list(threads.map(lambda _: model.tensor_pool(), range(8)))
        assert len(set(map(id, pools))) == 1
        assert pools[0] is model.tensors.loaded is not model.pool
        engine, workers = pools[0].groups[0].engine, pools[0].groups[0].count
        assert (engine.batched, workers) == (True, 1)
        x = np.random.default_rng(0).random((2, 3, SIZE, SIZE), np.float32)
        ours = engine.clone().infer({"images": x})["output0"]
        theirs = load(path, "onnxruntime").clone().infer({"images": x})["output0"]
        assert np.allclose(ours, theirs, atol=1e-3)
    with pytest.raises(Unavailable, match="being unloaded"):
        model.tensor_pool()


def test_batches_of_pictures_do_not_keep_a_models_tensors_from_being_served(tmp_path: Path) -> None:
    """A PaddleDetection export returns the rows of all pictures in one tensor: its own tensors cannot be joined."""
    tiny_models.paddle_detector(tmp_path / "m.onnx")
    config(
        tmp_path, {"family": "paddle_detection", "batching": {"max_batch_size": 4}, "preprocess": [{"resize": SIZE}]}
    )
    with running(loaded(tmp_path)) as model:
        engine = model.tensor_pool().groups[0].engine
        assert (engine.batched, engine.max_batch_size) == (False, 1)


def test_a_tensor_pool_that_cannot_be_loaded_says_why_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_models.yolov8(tmp_path / "m.onnx")
    with running(loaded(path)) as model:
        path.write_bytes(b"gone")
        for _ in range(2):
            with pytest.raises(InvalidModel, match=r"cannot read m\.onnx"):
                model.tensor_pool()


def test_a_model_taken_out_is_gone_at_once_and_its_workers_end_with_it(tmp_path: Path) -> None:
    repository = Repository()
    for name in ("one", "two"):
        repository.add(loaded(tiny_models.yolov8(tmp_path / f"{name}.onnx")))
    model = repository.remove("one")
    model.tensor_pool()
    with pytest.raises(ModelNotFound, match="served: two"):
        repository.get("one")
    with pytest.raises(ModelNotFound, match="served: two"):
        repository.remove("one")
    model.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("one-")]
    repository.close()


def test_a_remote_model_needs_no_weights(tmp_path: Path) -> None:
    asked: list[Source] = []

    class Elsewhere:
        def read(self, source: Source) -> Signature:
            asked.append(source)
            raise InvalidModel("not answering")

    def open_backend(name: str) -> Any:
        return Elsewhere() if name == "remote" else get_backend(name)

    keys = {"options": {"headers": {"authorization": "Bearer of a secret"}}}
    cases: list[tuple[dict[str, Any], str]] = [({}, "far"), ({"model": "other"}, "other"), (keys, "far")]
    for said, model in cases:
        config(tmp_path / "far", {"runtime": {"backend": "remote", "url": "grpc://host:8001", **said}})
        (files,) = find_models(tmp_path / "far")
        with pytest.raises(InvalidModel, match="far: not answering"):
            load_model(files, Defaults(workers=1), open_backend)
        assert asked[-1] == Source(url="grpc://host:8001", model=model, options=said.get("options", {}))
    config(tmp_path / "far", {"weights": "m.onnx", "runtime": {"backend": "remote", "url": "grpc://host:8001"}})
    assert "weights means nothing to backend: remote" in refusal(tmp_path / "far")
    (files,) = find_models(two_by_two(tmp_path / "m.onnx"))
    with pytest.raises(InvalidModel, match=r"backend: remote needs the server's address \(say runtime.url: grpc://"):
        load_model(files, Defaults(backend="remote"))
    assert "remote" in BACKENDS


# Real files


@pytest.mark.parametrize("name", ["dummy_ir", "dummy_saved_model", "dummy_tflite", "lenet_tf", "mnist"])
def test_exports_of_all_formats_are_served(testdata: Path, name: str) -> None:
    model = loaded(testdata / "models" / name)
    assert (model.name, model.task) == (name, "tensor")
    engine = model.pool.groups[0].engine
    feeds = {
        spec.name: np.random.default_rng(0).random([size or 1 for size in spec.shape or ()]).astype(spec.dtype)
        for spec in model.signature.inputs
    }
    outputs = engine.clone().infer(feeds)
    assert [spec.name for spec in model.signature.outputs] == list(outputs)
    for spec in model.signature.outputs:
        assert outputs[spec.name].dtype == spec.dtype
        assert outputs[spec.name].ndim == spec.rank
        assert np.isfinite(outputs[spec.name]).all()
    if name.startswith("dummy"):
        (given,), (answer,) = feeds.values(), outputs.values()
        assert np.allclose(answer, given + 1)
    if name == "mnist":
        path = testdata / "models" / "mnist" / "mnist.onnx"
        theirs = load(path, "onnxruntime").clone().infer(feeds)
        for key, value in outputs.items():
            assert np.allclose(value, theirs[key], atol=1e-3)
