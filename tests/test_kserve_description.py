"""What models say of themselves: their own tensors, how they are run and what they have done, as Triton's clients read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2 as mc
from visionpool_server.api.kserve import description
from visionpool_server.app import DEMO_MODELS
from visionpool_server.backends import DTYPES, LoadOptions, Signature, TensorSpec
from visionpool_server.backends.fake import FakeEngine
from visionpool_server.batching import Job
from visionpool_server.models.loader import Defaults, Model
from visionpool_server.models.repository import Repository, load_all, locate
from visionpool_server.statistics import Stages

from tests import tiny_models
from tests.kserve_models import write_yaml
from tests.real_server import write_model

BOUND = 30.0  # seconds that anything here may take at most


@contextmanager
def loaded(path: Path, backend: str | None = None) -> Iterator[Model]:
    models = Repository()
    try:
        (model,) = load_all(locate([path]), Defaults(backend=backend))
        models.add(model)
        yield model
    finally:
        models.close()


@pytest.fixture
def colours(tmp_path: Path) -> Iterator[Model]:
    """A classifier on the fake backend, in batches of up to 8."""
    batching = {"max_batch_size": 8, "max_queue_delay_us": 250, "timeout_ms": 1500, "max_queue_size": 77}
    folder = write_model(tmp_path / "colours", workers=3, batching=batching, aliases={"x": "images"})
    with loaded(folder) as model:
        yield model


@pytest.fixture(scope="module")
def digits() -> Iterator[Model]:
    """The embedded classifier: a real ONNX file."""
    with loaded(DEMO_MODELS / "digits", "onnxruntime") as model:
        yield model


def config_of(model: Model) -> Any:
    return description.model_config(model).config


def test_the_server_names_the_extensions_that_work() -> None:
    said = description.server_metadata(shared_memory=True, tracing=True)
    assert (said.name, said.version.count(".") >= 2) == ("visionpool", True)
    assert {"classification", "schedule_policy", "binary_tensor_data", "trace", "logging"} <= set(said.extensions)
    assert len(set(said.extensions)) == len(said.extensions)
    assert not {"sequence", "cuda_shared_memory", "model_repository(unload_dependents)"} & set(said.extensions)
    assert "system_shared_memory" in said.extensions
    fewer = description.server_metadata(shared_memory=False, tracing=False).extensions
    assert set(said.extensions) - set(fewer) == {"system_shared_memory", "trace"}


def test_metadata_are_the_models_own_tensors(colours: Model) -> None:
    said = description.model_metadata(colours)
    assert (said.name, list(said.versions), said.platform) == ("colours", ["1"], "fake")
    assert [(t.name, t.datatype, list(t.shape)) for t in said.inputs] == [("images", "FP32", [-1, 3, -1, -1])]
    assert [(t.name, t.datatype, list(t.shape)) for t in said.outputs] == [("output0", "FP32", [-1, 3])]


def test_the_further_ways_in_and_out_are_properties(colours: Model) -> None:
    said = description.model_properties(colours)
    assert (said["task"], said["labels_count"], said["picture_input"]) == ("classification", "3", "images")
    assert "BYTES [N]" in said["picture_datatypes"]
    assert "UINT8 [N,H,W,3]" in said["picture_datatypes"]
    assert said["result_output"].startswith("result")
    assert said["picture_color"] == "rgb"
    assert json.loads(said["aliases"]) == {"x": "images"}
    assert {name: value.string_value for name, value in config_of(colours).parameters.items()} == said


def test_the_configuration_leaves_the_batch_dimension_out(colours: Model) -> None:
    config = config_of(colours)
    assert (config.name, config.platform, config.backend, config.max_batch_size) == ("colours", "fake", "fake", 8)
    (taken,), (given,) = config.input, config.output
    assert (taken.name, list(taken.dims), taken.data_type) == ("images", [3, -1, -1], mc.TYPE_FP32)
    assert taken.format == mc.ModelInput.FORMAT_NCHW
    assert (given.name, list(given.dims), given.data_type) == ("output0", [3], mc.TYPE_FP32)
    assert config.version_policy.latest.num_versions == 1


def test_the_configuration_tells_how_batches_form(colours: Model) -> None:
    batching = config_of(colours).dynamic_batching
    assert batching.max_queue_delay_microseconds == 250
    assert (batching.priority_levels, batching.default_priority_level) == (9, 5)
    policy = batching.default_queue_policy
    assert (policy.default_timeout_microseconds, policy.max_queue_size) == (1_500_000, 77)
    assert policy.allow_timeout_override
    assert policy.timeout_action == mc.ModelQueuePolicy.REJECT


def test_compiled_batch_sizes_are_preferred(tmp_path: Path) -> None:
    with loaded(write_model(tmp_path / "a", batching={"sizes": [1, 2, 4]})) as model:
        config = config_of(model)
        assert list(config.dynamic_batching.preferred_batch_size) == [1, 2, 4]
        assert config.max_batch_size == 4


def test_each_engine_is_an_instance_group(tmp_path: Path) -> None:
    with loaded(write_model(tmp_path / "a", workers=[{"count": 2}, {"count": 1}])) as model:
        groups = config_of(model).instance_group
        assert [(group.name, group.count) for group in groups] == [("a_0", 2), ("a_1", 1)]
        assert {group.kind for group in groups} == {
            mc.ModelInstanceGroup.KIND_MODEL
        }  # a device that Triton does not know


@pytest.mark.parametrize(
    ("device", "on_cpu", "kind", "gpus"),
    [
        ("CPU", True, "KIND_CPU", []),
        ("GPU", False, "KIND_GPU", [0]),
        ("GPU.1", False, "KIND_GPU", [1]),
        ("cuda:2", False, "KIND_GPU", [2]),
        ("GPU, CPU", False, "KIND_MODEL", []),
        ("NPU", False, "KIND_MODEL", []),
        ("grpc://far:8001", False, "KIND_MODEL", []),
    ],
)
def test_devices_are_told_in_tritons_terms(device: str, on_cpu: bool, kind: str, gpus: list[int]) -> None:
    engine = FakeEngine(LoadOptions(options={"on_cpu": on_cpu}))
    assert description._kind(engine, device) == (mc.ModelInstanceGroup.Kind.Value(kind), gpus)


def test_a_real_classifier_looks_to_tritons_image_client_as_it_expects(digits: Model) -> None:
    """The conditions of `parse_model` in image_client.py."""
    metadata, config = description.model_metadata(digits), config_of(digits)
    assert len(metadata.inputs) == len(metadata.outputs) == len(config.input) == 1
    assert metadata.outputs[0].datatype == "FP32"
    batched = config.max_batch_size > 0
    assert [size > 1 for size in metadata.outputs[0].shape[1 if batched else 0 :]].count(True) == 1
    assert len(metadata.inputs[0].shape) == 3 + batched
    assert config.input[0].format in (mc.ModelInput.FORMAT_NCHW, mc.ModelInput.FORMAT_NHWC)
    assert metadata.platform == "onnxruntime_onnx"
    assert config.instance_group[0].kind == mc.ModelInstanceGroup.KIND_CPU


def test_configurations_are_valid_json(digits: Model, colours: Model) -> None:
    for model in (digits, colours):
        said = MessageToDict(description.model_config(model), preserving_proto_field_name=True)
        assert json.loads(json.dumps(said))["config"]["name"] == model.name


@dataclass(frozen=True)
class Stub:
    """As much of a model as its description reads: for tensors that no small file has."""

    signature: Signature
    pool: Any
    name: str = "stub"
    version: str = "7"
    task: str = "tensor"
    labels: tuple[str, ...] = ()
    family: None = None
    pipeline: None = None
    taking_pictures: None = None
    tensors: None = None

    @property
    def bundle(self) -> Any:
        from visionpool_server.models.bundle import Bundle

        return Bundle()


class Unbatched(FakeEngine):
    def __init__(self, options: LoadOptions) -> None:
        super().__init__(options)
        self.batched = False


def stub(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> Model:
    from visionpool_server.assembly import Whole
    from visionpool_server.pool import Group, Pool

    pool = Pool("stub", [Group(Unbatched(LoadOptions()), 1)], Whole())
    return cast(Model, Stub(Signature(inputs, outputs), pool))


def test_a_model_without_a_batch_dimension_shows_its_shapes_whole() -> None:
    model = stub(TensorSpec("x", (1, None, 4), "int64"), outputs=(TensorSpec("y", (5,), "float16"),))
    metadata, config = description.model_metadata(model), config_of(model)
    assert [list(t.shape) for t in (*metadata.inputs, *metadata.outputs)] == [[1, -1, 4], [5]]
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(t.dims) for t in (*config.input, *config.output)] == [[1, -1, 4], [5]]
    assert config.input[0].format == mc.ModelInput.FORMAT_NONE


def config_shapes(model: Model) -> list[list[int]]:
    config = config_of(model)
    return [list(port.dims) for port in (*config.input, *config.output)]


def shown_shapes(model: Model) -> list[list[int]]:
    said = description.model_metadata(model)
    return [list(tensor.shape) for tensor in (*said.inputs, *said.outputs)]


def test_a_model_that_joins_nothing_and_takes_any_rows_says_both(tmp_path: Path) -> None:
    with loaded(tiny_models.two_by_two(tmp_path / "pairs.onnx")) as model:
        assert (config_of(model).max_batch_size, config_shapes(model)) == (1, [[4]] * 4)
        assert shown_shapes(model) == [[-1, 4]] * 4
        assert description.model_properties(model)["request_rows"] == "any"


@pytest.mark.parametrize("batching", [{}, {"max_batch_size": 4}])
def test_dimensions_are_whole_where_a_tensor_has_the_batch_alone(batching: dict[str, int], tmp_path: Path) -> None:
    tiny_models.plain(tmp_path / "line" / "m.onnx", shape=["n"], op="Relu")
    write_yaml(tmp_path / "line", batching=batching)
    with loaded(tmp_path / "line") as model:
        assert (config_of(model).max_batch_size, config_shapes(model)) == (0, [[-1], [-1]])
        assert shown_shapes(model) == [[-1], [-1]]
        assert description.model_properties(model)["request_rows"] == "any"


def test_a_vision_model_whose_file_fixes_one_row_shows_one(tmp_path: Path) -> None:
    path = tiny_models.yolov8(tmp_path / "m.onnx", batch=1, metadata={"names": "{0: 'a', 1: 'b', 2: 'c'}"})
    with loaded(path) as model:
        assert (config_of(model).max_batch_size, config_shapes(model)) == (1, [[3, 64, 64], [7, 64]])
        assert shown_shapes(model) == [[1, 3, 64, 64], [1, 7, 64]]
        assert "request_rows" not in description.model_properties(model)


def test_a_vision_model_that_fixes_more_rows_says_that_they_come_whole(tmp_path: Path) -> None:
    tiny_models.classifier(tmp_path / "m" / "m.onnx", batch=4)
    write_yaml(tmp_path / "m", task="classification", preprocess=[{"resize": [32, 32]}])
    with loaded(tmp_path / "m", "onnxruntime") as model:
        assert (config_of(model).max_batch_size, config_shapes(model)) == (0, [[4, 3, 32, 32], [4, 5]])
        assert shown_shapes(model) == [[4, 3, 32, 32], [4, 5]]


def test_rows_of_objects_are_no_batch(tmp_path: Path) -> None:
    tiny_models.paddle_detector(tmp_path / "m" / "m.onnx")
    write_yaml(tmp_path / "m", family="paddle_detection", preprocess=[{"resize": [64, 64]}])
    with loaded(tmp_path / "m") as model:
        shapes = [[-1, 3, 64, 64], [-1, 2], [-1, 6], [-1]]
        assert (config_of(model).max_batch_size, config_shapes(model), shown_shapes(model)) == (0, shapes, shapes)


@pytest.mark.parametrize("name", ["yolov5n", "yolov8n", "picodet_s_320", "picodet_s_320_paddle", "squeezenet"])
def test_real_files_say_which_own_tensors_they_take(testdata: Path, name: str) -> None:
    with loaded(testdata / "models" / name) as model:
        shapes = [[1 if size < 0 else size for size in shape] for shape in shown_shapes(model)[:2]]
        shapes = shapes[: len(model.signature.inputs)]
        engine = model.tensor_pool().groups[0].engine
        feeds = {
            spec.name: np.ones(shape, spec.dtype) for spec, shape in zip(model.signature.inputs, shapes, strict=True)
        }
        outputs = engine.clone().infer(feeds)
        for value, (_, *shape) in zip(outputs.values(), shown_shapes(model)[len(shapes) :], strict=True):
            assert [size for size in shape if size >= 0] == [
                got for size, got in zip(shape, value.shape[1:], strict=True) if size >= 0
            ]
        takes_more = shown_shapes(model)[0][0] == -1
        if config_of(model).max_batch_size:
            assert {len(value) for value in outputs.values()} == {1}
            assert takes_more is engine.batched


@pytest.mark.parametrize("shape", [(), None])
def test_scalars_and_free_ranks_have_no_dimensions(shape: tuple[int | None, ...] | None) -> None:
    model = stub(TensorSpec("x", shape, "bool"))
    assert list(description.model_metadata(model).inputs[0].shape) == []
    assert list(config_of(model).input[0].dims) == []


def test_every_type_of_tensor_has_its_name_in_the_protocol() -> None:
    model = stub(*(TensorSpec(name, (1,), name) for name in DTYPES))
    metadata, config = description.model_metadata(model), config_of(model)
    kinds = {t.name: mc.DataType.Name(t.data_type) for t in config.input}
    assert {t.name: t.datatype for t in metadata.inputs}["bytes"] == "BYTES"
    assert kinds["bytes"] == "TYPE_STRING"
    assert (kinds["bfloat16"], kinds["float16"], kinds["bool"]) == ("TYPE_BF16", "TYPE_FP16", "TYPE_BOOL")
    assert len(set(kinds.values())) == len(DTYPES)
    assert "TYPE_INVALID" not in kinds.values()


def test_a_model_that_did_nothing_has_empty_statistics(colours: Model) -> None:
    (said,) = description.statistics([colours]).model_stats
    assert (said.name, said.version) == ("colours", "1")
    assert (said.last_inference, said.inference_count, said.execution_count) == (0, 0, 0)
    assert not said.batch_stats


def test_statistics_are_those_of_the_pool(colours: Model) -> None:
    counters = colours.pool.statistics
    for size, seconds in ((2, 0.001), (2, 0.001), (1, 0.5)):
        counters.executed(size, seconds, 2 * seconds)
        counters.finished(size, 3 * seconds)
    counters.succeeded(0.25, Stages(0.1, 0.02, 0.03, 0.04))
    counters.failed(0.5)
    (said,) = description.statistics([colours]).model_stats
    stats = said.inference_stats
    assert said.last_inference > 1_700_000_000_000  # milliseconds
    assert (said.inference_count, said.execution_count) == (5, 3)
    assert (stats.success.count, stats.success.ns) == (1, 250_000_000)
    assert (stats.fail.count, stats.fail.ns) == (1, 500_000_000)
    assert (stats.queue.ns, stats.compute_input.ns) == (100_000_000, 20_000_000)
    assert (stats.compute_infer.ns, stats.compute_output.ns) == (30_000_000, 40_000_000)
    assert (stats.cache_hit.count, stats.cache_miss.count) == (0, 0)
    assert [batch.batch_size for batch in said.batch_stats] == [1, 2]
    second = said.batch_stats[1]
    assert (second.compute_infer.count, second.compute_infer.ns) == (2, 4_000_000)
    assert (second.compute_input.ns, second.compute_output.ns) == (2_000_000, 6_000_000)


def test_pictures_and_tensors_are_counted_together(colours: Model) -> None:
    pictures = Job({"images": np.zeros((8, 8, 3), np.uint8)}, lambda outputs: outputs["output0"].copy())
    tensors = Job({"images": np.zeros((1, 3, 8, 8), np.float32)}, lambda outputs: outputs["output0"].copy())
    for pool, job in ((colours.pool, pictures), (colours.tensor_pool(), tensors)):
        pool.submit(job)
        job.future.result(BOUND)
    (said,) = description.statistics([colours]).model_stats
    assert (said.inference_count, said.execution_count) == (2, 2)
    assert [(batch.batch_size, batch.compute_infer.count) for batch in said.batch_stats] == [(1, 2)]
