"""KServe v2 is one protocol: whatever carries a request, the same answer comes, and the same refusal.

Six ways to ask one server; every answer is held against ONNX Runtime on the same file, which runs in this process and knows
nothing of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import openvino
import openvino.opset13 as ops
import pytest
from onnx import TensorProto

from tests import tiny_models
from tests.kserve_models import (
    ONNX_TYPES,
    WAYS,
    Array,
    Ask,
    Refused,
    Way,
    array_of,
    assert_same,
    onnx_runtime,
    operator,
    ways_to,
    weights,
    write_yaml,
)
from tests.real_server import Server, serving
from tests.tiny_models import Graph

NUMBERS = [name for name in ONNX_TYPES if name not in ("BOOL", "BYTES")]
SCALARS = ("BOOL", "UINT8", "INT64", "FP16", "FP32", "FP64", "BYTES")
every_way = pytest.mark.parametrize("how", WAYS)


def each_way_with(*datatypes: str) -> pytest.MarkDecorator:
    """Every way with each of these types, but for the typed fields of gRPC, which have neither FP16 nor BF16."""
    cases = [(how, one) for how in WAYS for one in datatypes if not (how == "grpc-typed" and one in ("FP16", "BF16"))]
    return pytest.mark.parametrize(("how", "datatype"), cases)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    for datatype in NUMBERS:
        operator(folder / f"sum_{datatype}", "Add", datatype, ["n", 4], ("x", "z"))
    operator(folder / "sum_BOOL", "And", "BOOL", ["n", 4], ("x", "z"))
    for datatype in ("FP32", "FP16", "INT64", "BOOL"):
        write_yaml(
            operator(folder / f"ort_{datatype}", "Identity", datatype, ["n", 4]), runtime={"backend": "onnxruntime"}
        )
    write_yaml(operator(folder / "text", "Identity", "BYTES", ["n", "m"]), runtime={"backend": "onnxruntime"})
    operator(folder / "scalar", "Neg", "FP32", [])
    for datatype in SCALARS:
        scalar = operator(folder / f"scalar_{datatype}", "Identity", datatype, [])
        write_yaml(scalar, runtime={"backend": "onnxruntime"})
    _mixed(folder / "mixed")
    _nameless(folder / "nameless")
    operator(folder / "empty", "Neg", "FP32", ["n", 0])
    operator(folder / "free", "Sigmoid", "FP32", ["n", "m", "k"])
    operator(folder / "fixed", "Neg", "FP32", [3, 4])
    operator(folder / "rows_together", "Softmax", "FP32", ["n", 4], axis=0)
    _pairs(folder / "pairs")
    write_yaml(_pairs(folder / "fours"), batching={"max_batch_size": 4})
    write_yaml(_pairs(folder / "twos"), batching={"sizes": [2]})
    write_yaml(_shapes(folder / "shapes"), aliases={"INPUT": "x", "OUTPUT": "whole"})
    return folder


def _pairs(folder: Path) -> Path:
    tiny_models.two_by_two(weights(folder))
    return folder


def _mixed(folder: Path) -> Path:
    """Inputs of three types, outputs of three."""
    graph = Graph()
    where = graph.input("where", ["n", 4], TensorProto.BOOL)
    x = graph.input("x", ["n", 4])
    other = graph.input("other", ["n", 1], TensorProto.INT32)
    graph.add("Where", where, x, graph.add("Cast", other, to=TensorProto.FLOAT), output="chosen")
    graph.add("Not", where, output="elsewhere")
    graph.add("Neg", other, output="turned")
    graph.output("chosen", ["n", 4])
    graph.output("elsewhere", ["n", 4], TensorProto.BOOL)
    graph.output("turned", ["n", 1], TensorProto.INT32)
    graph.save(weights(folder))
    return folder


def _nameless(folder: Path) -> None:
    """An IR whose tensors have no names: only such a file can leave them out."""
    folder.mkdir()
    parameter = ops.parameter([-1, 3], np.float32)
    model = openvino.Model([ops.relu(parameter), ops.negative(parameter)], [parameter], "nameless")
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    text = (folder / "model.xml").read_text(encoding="utf-8")
    (folder / "model.xml").write_text(re.sub(r' (output_)?names="[^"]*"', "", text), encoding="utf-8")


def _shapes(folder: Path) -> Path:
    """One input, and outputs of several types and ranks."""
    graph = Graph()
    x = graph.input("x", ["n", 6])
    graph.add("Relu", x, output="whole")
    graph.add("Cast", x, output="rounded", to=TensorProto.INT32)
    graph.add("Reshape", x, graph.constant([0, 2, 3], np.int64), output="folded")
    graph.output("whole", ["n", 6])
    graph.output("rounded", ["n", 6], TensorProto.INT32)
    graph.output("folded", ["n", 2, 3])
    graph.save(weights(folder))
    return folder


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[Server]:
    with serving(models) as running:
        yield running


@pytest.fixture(scope="session")
def ways(server: Server) -> Iterator[dict[str, Way]]:
    with ways_to(server) as made:
        yield made


def check(way: Way, models: Path, model: str, **inputs: Array) -> None:
    """The answer is ONNX Runtime's."""
    wanted = onnx_runtime(weights(models / model), inputs)
    told = way(Ask(model, inputs, id="7"))
    assert (told.model, told.version, told.id) == (model, "1", "7")
    assert list(told.outputs) == list(wanted)
    for name, array in told.outputs.items():
        assert_same(array, wanted[name])


class TestAnswers:
    @each_way_with(*(name for name in NUMBERS if name != "BF16"), "BOOL")
    def test_every_type_is_computed_with(self, how: str, datatype: str, ways: dict[str, Way], models: Path) -> None:
        check(ways[how], models, f"sum_{datatype}", x=array_of(datatype, [2, 4]), z=array_of(datatype, [2, 4], 1))

    @each_way_with("BF16")
    def test_bf16_is_computed_with(self, how: str, datatype: str, ways: dict[str, Way]) -> None:
        """ONNX Runtime does not add it: the sum is checked against ml_dtypes."""
        x, z = array_of(datatype, [2, 4]), array_of(datatype, [2, 4], 1)
        sums = ways[how](Ask("sum_BF16", {"x": x, "z": z})).outputs["y"]
        assert_same(sums.astype(ml_dtypes.bfloat16), x + z)

    @each_way_with("FP32", "FP16", "INT64", "BOOL")
    def test_onnx_runtime_as_a_backend_answers_the_same(
        self, how: str, datatype: str, ways: dict[str, Way], models: Path
    ) -> None:
        check(ways[how], models, f"ort_{datatype}", x=array_of(datatype, [3, 4]))

    @every_way
    @pytest.mark.parametrize("shape", [(2, 3), (1, 1), (4, 0)])
    def test_strings_come_back_as_they_went(
        self, how: str, shape: tuple[int, int], ways: dict[str, Way], models: Path
    ) -> None:
        check(ways[how], models, "text", x=array_of("BYTES", shape))

    @every_way
    def test_odd_strings_come_back_as_they_went(self, how: str, ways: dict[str, Way]) -> None:
        x = np.array([[b"", b"zero\0inside", b"a\0", "größe".encode(), b"x" * 70_000]], object)
        assert ways[how](Ask("text", {"x": x})).outputs["y"].tolist() == x.tolist()

    @every_way
    def test_a_scalar_has_no_dimensions(self, how: str, ways: dict[str, Way], models: Path) -> None:
        check(ways[how], models, "scalar", x=np.array(2.5, np.float32))

    @each_way_with(*SCALARS)
    def test_a_scalar_may_be_of_any_type(self, how: str, datatype: str, ways: dict[str, Way], models: Path) -> None:
        check(ways[how], models, f"scalar_{datatype}", x=array_of(datatype, []))

    @every_way
    @pytest.mark.parametrize("rows", [1, 5])
    def test_tensors_of_several_types_go_in_and_come_out(
        self, how: str, rows: int, ways: dict[str, Way], models: Path
    ) -> None:
        where, x = array_of("BOOL", [rows, 4]), np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
        check(ways[how], models, "mixed", other=array_of("INT32", [rows, 1]), where=where, x=x)

    @every_way
    def test_outputs_without_a_name_go_by_their_position(self, how: str, ways: dict[str, Way]) -> None:
        x = np.array([[-1.5, 0, 2]], np.float32)
        told = ways[how](Ask("nameless", {"input_0": x}))
        assert list(told.outputs) == ["output_0", "output_1"]
        assert_same(told.outputs["output_0"], np.maximum(x, 0))
        assert_same(told.outputs["output_1"], -x)
        told = ways[how](Ask("nameless", {"input_0": x}, outputs={"output_1": {}}))
        assert list(told.outputs) == ["output_1"]

    @every_way
    def test_a_dimension_may_be_of_size_0(self, how: str, ways: dict[str, Way], models: Path) -> None:
        check(ways[how], models, "empty", x=np.zeros((3, 0), np.float32))
        check(ways[how], models, "free", x=np.zeros((2, 0, 5), np.float32))

    @every_way
    def test_shapes_may_differ_from_request_to_request(self, how: str, ways: dict[str, Way], models: Path) -> None:
        random = np.random.default_rng(3)
        for shape in [(1, 1, 1), (3, 5, 2), (1, 40, 300), (3, 5, 2)]:
            check(ways[how], models, "free", x=random.normal(size=shape).astype(np.float32))

    @every_way
    def test_a_fixed_shape_without_a_batch_is_taken_as_it_is(
        self, how: str, ways: dict[str, Way], models: Path
    ) -> None:
        check(ways[how], models, "fixed", x=np.arange(12, dtype=np.float32).reshape(3, 4))

    @every_way
    @pytest.mark.parametrize("model", ["pairs", "fours", "twos"])
    @pytest.mark.parametrize("rows", [1, 4, 11])
    def test_more_rows_than_the_engine_joins_are_answered_in_order(
        self, how: str, model: str, rows: int, ways: dict[str, Way], models: Path
    ) -> None:
        a, b = np.random.default_rng(rows).normal(size=(2, rows, 4)).astype(np.float32)
        check(ways[how], models, model, b=b, a=a)

    @every_way
    def test_rows_are_not_torn_apart_unless_batching_is_set_up(
        self, how: str, ways: dict[str, Way], models: Path
    ) -> None:
        check(ways[how], models, "rows_together", x=np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32))

    @every_way
    def test_a_thousand_rows_are_one_request(self, how: str, ways: dict[str, Way], models: Path) -> None:
        a, b = np.random.default_rng(0).normal(size=(2, 1000, 4)).astype(np.float32)
        check(ways[how], models, "pairs", a=a, b=b)

    @every_way
    @pytest.mark.parametrize("model", ["pairs", "fours"])
    def test_no_rows_give_no_rows(self, how: str, model: str, ways: dict[str, Way], models: Path) -> None:
        check(ways[how], models, model, a=np.zeros((0, 4), np.float32), b=np.zeros((0, 4), np.float32))

    @every_way
    def test_outputs_are_those_that_were_asked_for_in_that_order(self, how: str, ways: dict[str, Way]) -> None:
        x = np.array([[-1.5, 0, 1, 2.5, 3, 4]], np.float32)
        told = ways[how](Ask("shapes", {"x": x}, outputs={"folded": {}, "whole": {}}))
        assert list(told.outputs) == ["folded", "whole"]
        assert_same(told.outputs["folded"], x.reshape(1, 2, 3))
        told = ways[how](Ask("shapes", {"x": x}))
        assert list(told.outputs) == ["whole", "rounded", "folded"]
        assert told.outputs["rounded"].tolist() == [[-1, 0, 1, 2, 3, 4]]

    @every_way
    def test_aliases_name_inputs_and_outputs(self, how: str, ways: dict[str, Way]) -> None:
        x = np.array([[-1.5, 0, 1, 2.5, 3, 4]], np.float32)
        told = ways[how](Ask("shapes", {"INPUT": x}, outputs={"OUTPUT": {}, "rounded": {}}))
        assert list(told.outputs) == ["OUTPUT", "rounded"]
        assert_same(told.outputs["OUTPUT"], np.maximum(x, 0))

    @every_way
    def test_classes_are_the_highest_values_of_each_row(self, how: str, ways: dict[str, Way]) -> None:
        x = np.array([[0.5, 3, 1, 0, 0, 2], [9, 8, 7, 6, 5, 4]], np.float32)
        told = ways[how](Ask("shapes", {"x": x}, outputs={"whole": {"classification": 2}}))
        assert told.outputs["whole"].tolist() == [
            [b"3.000000:1", b"2.000000:5"],
            [b"9.000000:0", b"8.000000:1"],
        ]

    @every_way
    def test_a_version_may_be_named(self, how: str, ways: dict[str, Way]) -> None:
        assert ways[how](Ask("scalar", {"x": np.array(1, np.float32)}, version="1")).outputs["y"] == -1


def _row(count: int = 1) -> Array:
    return np.ones((count, 4), np.float32)


REFUSALS: dict[str, tuple[Ask, str, str]] = {
    "an unknown model": (Ask("nothing", {"x": _row()}), "NOT_FOUND", "nothing"),
    "an unknown version": (Ask("pairs", {"a": _row(), "b": _row()}, version="9"), "NOT_FOUND", "9"),
    "a version that is no number": (
        Ask("pairs", {"a": _row(), "b": _row()}, version="newest"),
        "NOT_FOUND",
        "failed to get model version from specified version string 'newest'",
    ),
    "an unknown input": (Ask("pairs", {"a": _row(), "c": _row()}), "INVALID_ARGUMENT", "no input 'c'"),
    "a missing input": (Ask("pairs", {"a": _row()}), "INVALID_ARGUMENT", "'b' is missing"),
    "an alias beside its own name": (
        Ask("shapes", {"x": np.ones((1, 6), np.float32), "INPUT": np.ones((1, 6), np.float32)}),
        "INVALID_ARGUMENT",
        "'x' is there twice",
    ),
    "an unknown output": (
        Ask("pairs", {"a": _row(), "b": _row()}, outputs={"sum": {}}),
        "INVALID_ARGUMENT",
        "no output 'sum'",
    ),
    "another datatype": (
        Ask("pairs", {"a": _row(), "b": np.ones((1, 4), np.int32)}),
        "INVALID_ARGUMENT",
        "'b' of pairs is FP32, not INT32",
    ),
    "strings for numbers": (
        Ask("pairs", {"a": _row(), "b": array_of("BYTES", [1, 4])}),
        "INVALID_ARGUMENT",
        "'b' of pairs is FP32, not BYTES",
    ),
    "an unheard-of datatype": (
        Ask("pairs", {"a": _row(), "b": _row()}, types={"b": "FP8"}),
        "INVALID_ARGUMENT",
        "unknown datatype 'FP8'",
    ),
    "another rank": (
        Ask("pairs", {"a": _row(), "b": np.ones(4, np.float32)}),
        "INVALID_ARGUMENT",
        "takes shape [-1, 4], not [4]",
    ),
    "another size": (
        Ask("pairs", {"a": _row(), "b": np.ones((1, 5), np.float32)}),
        "INVALID_ARGUMENT",
        "takes shape [-1, 4], not [1, 5]",
    ),
    "batches that disagree": (Ask("pairs", {"a": _row(2), "b": _row(3)}), "INVALID_ARGUMENT", "[2, 3] rows"),
    "a batch of nothing, where all sizes are compiled ones": (
        Ask("twos", {"a": _row(0), "b": _row(0)}),
        "INVALID_ARGUMENT",
        "no rows",
    ),
    "a shape unlike a fixed one": (Ask("fixed", {"x": _row(4)}), "INVALID_ARGUMENT", "takes shape [3, 4]"),
    "a negative dimension": (
        Ask("pairs", {"a": _row(), "b": _row()}, shapes={"b": [-1, 4]}),
        "INVALID_ARGUMENT",
        "negative dimension",
    ),
    "classes of strings": (
        Ask("text", {"x": array_of("BYTES", [1, 2])}, outputs={"y": {"classification": 2}}),
        "INVALID_ARGUMENT",
        "classification is for numbers",
    ),
    "an integer that the runtime would cut": (
        Ask("sum_INT64", {"x": np.full((1, 4), 2**40), "z": np.full((1, 4), 1)}),
        "INVALID_ARGUMENT",
        "OpenVINO computes int64 in 32 bits",
    ),
    "dimensions that do not fit together": (
        Ask("fixed", {"x": np.ones((1, 3, 4), np.float32)}),
        "INVALID_ARGUMENT",
        "takes shape [3, 4], not [1, 3, 4]",
    ),
}


class TestRefusals:
    @pytest.mark.parametrize("what", REFUSALS)
    def test_all_ways_refuse_alike(self, what: str, ways: dict[str, Way]) -> None:
        ask, kind, text = REFUSALS[what]
        told: dict[str, Any] = {}
        for how, way in ways.items():
            with pytest.raises(Refused) as caught:
                way(ask)
            told[how] = (caught.value.kind, caught.value.message)
        assert {one[0] for one in told.values()} == {kind}, told
        assert len({one[1] for one in told.values()}) == 1, told
        assert text in told["http-json"][1]

    @every_way
    def test_a_request_without_inputs_is_refused(self, how: str, ways: dict[str, Way]) -> None:
        """In words of its own where it is JSON that lacks them."""
        with pytest.raises(Refused, match=r"no inputs|'a', 'b' is missing") as caught:
            ways[how](Ask("pairs", {}))
        assert caught.value.kind == "INVALID_ARGUMENT"

    @every_way
    def test_data_that_do_not_fill_their_shape_are_refused(self, how: str, ways: dict[str, Way]) -> None:
        with pytest.raises(Refused, match=r"takes (\d+)") as caught:
            ways[how](Ask("pairs", {"a": _row(), "b": _row()}, shapes={"b": [2, 4]}))
        assert caught.value.kind == "INVALID_ARGUMENT"
