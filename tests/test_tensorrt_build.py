"""From ONNX files to plans: built for real by TensorRT-RTX, which needs no GPU for it; and what is said of those that are not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from visionpool.errors import BackendUnavailable, InvalidModel
from visionpool_server.backends import ImageInput, LoadOptions, ShapeRange, Source, TensorSpec
from visionpool_server.backends.onnx_file import read_onnx
from visionpool_server.backends.tensorrt import builder as building
from visionpool_server.backends.tensorrt.api import Api, find_api
from visionpool_server.backends.tensorrt.backend import TensorRtBackend
from visionpool_server.backends.tensorrt.builder import build_plan
from visionpool_server.backends.tensorrt.network import parsed
from visionpool_server.backends.tensorrt.plan_header import header_of
from visionpool_server.backends.tensorrt.profiles import Profile, profiles_of
from visionpool_server.backends.tensorrt.settings import read_settings
from visionpool_server.imaging.recipe import Arithmetic

from tests import tensorrt_models, tiny_models
from tests.tensorrt_models import SIZE

pytestmark = pytest.mark.skipif(not find_spec("tensorrt_rtx"), reason="TensorRT-RTX is not installed")


@pytest.fixture
def api() -> Api:
    return find_api("tensorrt_rtx")


def image(name: str = "images", size: tuple[int, int] | None = (SIZE, SIZE), layout: Any = "NCHW") -> ImageInput:
    return ImageInput(name, layout, Arithmetic(), size)


def of(path: Path, **options: Any) -> tuple[Profile, ...]:
    return profiles_of(read_onnx(path).inputs, LoadOptions(**options)).each


def plan(api: Api, path: Path, options: Mapping[str, Any] | None = None, **more: Any) -> bytes:
    loading = {"image": more.pop("image", None), "shapes": more.pop("shapes", {})}
    return build_plan(api, path, of(path, **loading), read_settings(options or {}), **more)


def assert_plan_of(api: Api, built: bytes) -> None:
    header = header_of(built)
    assert header is not None
    assert header.rtx
    assert header.version == api.version[:4]


# Real builds.

REAL: dict[str, dict[str, Any]] = {
    "yolov5n/yolov5n": {},
    "yolov5n_dyn/yolov5n_dyn": {"shapes": {"images": (0, 3, 320, 320)}},
    "squeezenet/squeezenet1_1": {},
    "picodet_s_320/picodet_s_320": {},
}


@pytest.mark.parametrize("name", REAL)
def test_real_exports_are_built(api: Api, testdata: Path, name: str) -> None:
    path = testdata / f"models/{name}.onnx"
    built = plan(api, path, **REAL[name])
    assert_plan_of(api, built)
    assert len(built) > path.stat().st_size / 2  # the weights are in it


@pytest.mark.parametrize("name", ["yolov5n/yolov5n", "squeezenet/squeezenet1_1", "picodet_s_320/picodet_s_320"])
def test_real_exports_are_built_in_half_precision(api: Api, testdata: Path, name: str) -> None:
    """Half the bits are half the weights; the code beside them does not shrink."""
    path = testdata / f"models/{name}.onnx"
    whole, half = (plan(api, path, precision=precision) for precision in (None, "f16"))
    assert_plan_of(api, half)
    assert len(half) < len(whole) - path.stat().st_size / 4


@pytest.mark.parametrize("name", ["yolov5n/yolov5n", "squeezenet/squeezenet1_1", "picodet_s_320/picodet_s_320"])
def test_real_exports_are_built_of_a_quantised_file(api: Api, testdata: Path, tmp_path: Path, name: str) -> None:
    path = testdata / f"models/{name}.onnx"
    spec = read_onnx(path).inputs[0]
    feed = {spec.name: np.random.default_rng(0).random([size or 1 for size in spec.shape or ()], np.float32)}
    out = tensorrt_models.quantized(path, tmp_path / "quantized.onnx", feed)
    file = read_onnx(out)
    assert file.quantized
    assert_plan_of(api, plan(api, out, precision="int8"))
    with parsed(api, out, out.name) as whole:
        network, kinds = whole.network, api.trt.LayerType
        layers = [network.get_layer(index).type for index in range(network.num_layers)]
        assert layers.count(kinds.QUANTIZE) > 10
        assert layers.count(kinds.DEQUANTIZE) > 10


def test_several_profiles_of_a_real_export(api: Api, testdata: Path) -> None:
    """Pictures of any size from 320 to 640, in two ranges: one is tuned for small ones."""
    path = testdata / "models/yolov5n_dyn/yolov5n_dyn.onnx"
    ranges = [
        {"images": ShapeRange((1, 3, 320, 320), (8, 3, 320, 320), (8, 3, 320, 320))},
        {"images": ShapeRange((1, 3, 320, 320), (1, 3, 640, 640), (4, 3, 640, 640))},
    ]
    found = profiles_of(read_onnx(path).inputs, LoadOptions(image=image(size=(640, 640)), profiles=(ranges[1],)))
    assert found.each == (ranges[1],)
    assert found.batch == (1, 1, 4)
    both = profiles_of(read_onnx(path).inputs, LoadOptions(profiles=tuple(ranges)))
    assert both.each == tuple(ranges)
    assert both.batch == (1, 8, 8)
    one, two = (build_plan(api, path, each) for each in (ranges[:1], ranges))
    assert_plan_of(api, two)
    assert len(two) > len(one)  # the code of the second profile is in it


def test_layers_are_strongly_typed(api: Api, tmp_path: Path) -> None:
    """Of the halved file: convolutions in half precision, inputs and outputs as they were."""
    path = tensorrt_models.scores(tmp_path / "model.onnx")
    with building._in_precision(path, "f16") as typed, parsed(api, typed, "model.onnx") as whole:
        network, types = whole.network, api.trt.DataType
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        convolutions = [layer for layer in layers if layer.type == api.trt.LayerType.CONVOLUTION]
        assert [layer.get_output(0).dtype for layer in convolutions] == [types.HALF]
        assert network.get_input(0).dtype == network.get_output(0).dtype == types.FLOAT
        assert network.get_flag(api.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_a_file_in_half_precision_is_left_as_it_is(tmp_path: Path, api: Api) -> None:
    from visionpool_server.backends.onnx_precision import to_half

    half = tmp_path / "half.onnx"
    to_half(tensorrt_models.scores(tmp_path / "model.onnx"), half)
    with building._in_precision(half, "f16") as typed:
        assert typed == half


def test_bytes_and_files_make_the_same_engine(api: Api, tmp_path: Path) -> None:
    path = tensorrt_models.scores(tmp_path / "model.onnx", shape=(1, 3, SIZE, SIZE))
    assert len(build_plan(api, path.read_bytes())) == len(build_plan(api, path))


def test_weights_beside_the_file_are_found(api: Api, tmp_path: Path) -> None:
    path = tensorrt_models.apart(tmp_path / "model.onnx")
    assert_plan_of(api, plan(api, path))
    assert_plan_of(api, plan(api, path, precision="f16"))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InvalidModel, match=r"model\.onnx: .*weights\.bin") as caught:
        plan(api, path)
    assert "belongs beside it" in str(caught.value.hint)


@pytest.mark.parametrize("dtype", ["UINT8", "INT8", "INT32", "INT64", "BOOL", "FLOAT16"])
def test_inputs_of_these_types_are_taken(api: Api, tmp_path: Path, dtype: str) -> None:
    assert_plan_of(api, plan(api, tensorrt_models.cast(tmp_path / "model.onnx", TensorProto.DataType.Value(dtype))))


@pytest.mark.parametrize("dtype", ["DOUBLE", "UINT16", "UINT32", "STRING"])
def test_inputs_of_other_types_are_refused(api: Api, tmp_path: Path, dtype: str) -> None:
    path = tensorrt_models.cast(tmp_path / "model.onnx", TensorProto.DataType.Value(dtype))
    with pytest.raises(InvalidModel, match=r"tensor 'x' is of type .*, and TensorRT takes float32, ") as caught:
        plan(api, path)
    assert "runtime.backend: onnxruntime" in str(caught.value.hint)


def test_a_picture_in_bytes_is_taken(api: Api, tmp_path: Path) -> None:
    path = tensorrt_models.scores(tmp_path / "model.onnx", dtype=TensorProto.UINT8)
    assert_plan_of(api, plan(api, path, image=image()))


# Settings.


@pytest.mark.parametrize(
    "options",
    [
        *({"workspace_mb": 64}, {"builder_level": 0}, {"builder_level": 5}, {"tf32": True}, {"aux_streams": 0}),
        *({"weight_streaming": True}, {"profiling_verbosity": "detailed"}, {"profiling_verbosity": "none"}),
        *({"compute_capability": "7.5"}, {"compute_capability": ["8.6", "12.0"]}, {"timing_cache": False}),
    ],
    ids=str,
)
def test_settings_are_taken(api: Api, tmp_path: Path, options: dict[str, Any]) -> None:
    assert_plan_of(api, plan(api, tensorrt_models.scores(tmp_path / "model.onnx"), options, image=image()))


def test_settings_reach_the_builder(api: Api, tmp_path: Path) -> None:
    """As its own configuration tells them."""
    said = read_settings(
        {"workspace_mb": 64, "builder_level": 1, "aux_streams": 2, "weight_streaming": 5, "tf32": False}
    )
    with parsed(api, tensorrt_models.scores(tmp_path / "model.onnx"), "model.onnx") as whole:
        config = whole.builder.create_builder_config()
        building._configure(api, config, said)
        flags = api.trt.BuilderFlag
        assert config.get_memory_pool_limit(api.trt.MemoryPoolType.WORKSPACE) == 64 << 20
        assert config.builder_optimization_level == 1
        assert config.max_aux_streams == 2
        assert config.get_flag(flags.WEIGHT_STREAMING)
        assert not config.get_flag(flags.TF32)
        building._configure(api, config, read_settings({"compute_capability": ["8.6", "12.0"], "tf32": True}))
        assert config.num_compute_capabilities == 2
        assert config.get_compute_capability(1) == api.trt.ComputeCapability.SM120
        del config


def test_a_gpu_that_is_not_there_is_not_built_for(api: Api, tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendUnavailable, match=r"cannot use the GPU to build model\.onnx: .*driver") as caught:
        plan(api, tensorrt_models.scores(tmp_path / "model.onnx"), {"compute_capability": "current"}, image=image())
    assert "nvidia-smi" in str(caught.value.hint)


# Progress.


def test_progress_is_told(api: Api, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    plan(api, tensorrt_models.scores(tmp_path / "model.onnx"), image=image(), progress=lambda *one: told.append(one))
    assert "building: Building engine" in {step for step, _, _ in told}
    assert all(total is not None and 0 <= done <= total for _, done, total in told)
    assert len(told) > 20


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("the terminal is gone")])
def test_what_progress_raises_ends_the_build(api: Api, tmp_path: Path, error: BaseException) -> None:
    told: list[str] = []

    def stop(step: str, done: int, total: int | None) -> None:
        told.append(step)
        if len(told) == 5:
            raise error

    with pytest.raises(type(error)) as caught:
        plan(api, tensorrt_models.scores(tmp_path / "model.onnx"), image=image(), progress=stop)
    assert caught.value is error
    assert len(told) == 5


def test_an_interrupt_ends_a_build(tmp_path: Path) -> None:
    """A real signal, of a real process, which ends by it and by nothing worse."""
    path = tensorrt_models.scores(tmp_path / "model.onnx", shape=(1, 3, SIZE, SIZE))
    code = f"""
import os, signal
from pathlib import Path
from visionpool_server.backends.tensorrt.api import find_api
from visionpool_server.backends.tensorrt.builder import build_plan
def stop(step, done, total):
    os.kill(os.getpid(), signal.SIGINT)
try:
    build_plan(find_api("tensorrt_rtx"), Path({str(path)!r}), progress=stop)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr


# Files that cannot be built.


def test_an_operator_without_a_layer_is_named(api: Api, tmp_path: Path) -> None:
    path = tensorrt_models.with_operator(tmp_path / "model.onnx", "Det")
    with pytest.raises(InvalidModel, match=r"TensorRT-RTX .* has no layer for Det of model\.onnx: node 0: ") as caught:
        plan(api, path)
    assert "runtime.backend: onnxruntime" in str(caught.value.hint)


def test_a_name_that_is_no_text_is_refused(api: Api, tmp_path: Path) -> None:
    """Of a node that TensorRT has no layer for, which it names."""
    path = tensorrt_models.with_operator(tmp_path / "model.onnx", "Det", name="broken")
    path.write_bytes(path.read_bytes().replace(b"broken", b"br\xff\xfeen"))
    with pytest.raises(InvalidModel, match=r"model\.onnx is a damaged ONNX file|has no layer for Det"):
        plan(api, path)


@pytest.mark.parametrize("junk", [b"", b"junk", b"<html>404</html>", bytes(64)])
def test_junk_is_refused(api: Api, tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(junk)
    with pytest.raises(InvalidModel, match="is no ONNX file"):
        build_plan(api, path)
    with pytest.raises(InvalidModel, match="is no ONNX file"), parsed(api, path, path.name):
        pass
    with pytest.raises(InvalidModel, match="is no ONNX file"), parsed(api, junk, path.name):
        pass


def test_what_the_builder_refuses_has_its_reason(api: Api, tmp_path: Path) -> None:
    """Here a profile for another size than the file's, which `profiles_of` would not have let through."""
    path = tensorrt_models.scores(tmp_path / "model.onnx")
    with pytest.raises(InvalidModel, match=r"cannot build an engine of model\.onnx: .*no optimization profile"):
        build_plan(api, path)
    wrong = {"images": ShapeRange(*[(1, 4, SIZE, SIZE)] * 3)}
    with pytest.raises(
        InvalidModel, match=r"cannot build an engine of model\.onnx: .*Dimension mismatch for tensor images"
    ):
        build_plan(api, path, [wrong])
    falling = {"images": ShapeRange((8, 3, SIZE, SIZE), (4, 3, SIZE, SIZE), (1, 3, SIZE, SIZE))}
    with pytest.raises(InvalidModel, match=r"cannot build an engine of model\.onnx: .*MIN<=OPT<=MAX"):
        build_plan(api, path, [falling])


def test_precisions_that_the_file_cannot_have_are_refused(api: Api, tmp_path: Path) -> None:
    path = tensorrt_models.scores(tmp_path / "model.onnx")
    with pytest.raises(InvalidModel, match=r"model\.onnx is not quantised") as caught:
        plan(api, path, image=image(), precision="int8")
    assert "visionpool build model.onnx --backend tensorrt --precision int8 --calibration PICTURES" in str(caught.value)
    with pytest.raises(InvalidModel, match="does not convert to bf16"):
        plan(api, path, image=image(), precision="bf16")


def test_half_precision_without_its_package_says_what_to_install(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tensorrt_models.scores(tmp_path / "model.onnx")
    monkeypatch.delitem(sys.modules, "visionpool_server.backends.onnx_precision", raising=False)
    monkeypatch.setitem(sys.modules, "visionpool_server.backends.onnx_precision", None)
    with pytest.raises(InvalidModel, match="f16 converts the file, which needs") as caught:
        plan(api, path, image=image(), precision="f16")
    assert "pip install 'visionpool[build]'" in str(caught.value.hint)


def test_a_builder_that_cannot_be_made_is_explained(tmp_path: Path, api: Api) -> None:
    """What pybind raises where the library gives nothing back, as TensorRT's own does without a GPU."""

    class Without:
        def __getattr__(self, name: str) -> Any:
            return getattr(api.trt, name)

        def Builder(self, logger: Any) -> None:
            logger.log(api.trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    bare = Api(Without(), "tensorrt", (10, 16, 1, 11), rtx=False)
    with pytest.raises(BackendUnavailable, match=r"TensorRT 10\.16\.1\.11 cannot build here: CUDA init"):
        build_plan(bare, tensorrt_models.scores(tmp_path / "model.onnx"))


# What a file says to who wants to serve it.


def test_open_outputs_are_told_as_tensorrt_infers_them(testdata: Path) -> None:
    """The file names the last dimension, which is 85 for any picture."""
    path = testdata / "models/yolov5n_dyn/yolov5n_dyn.onnx"
    signature = TensorRtBackend().read(Source(path))
    assert read_onnx(path).outputs[0].shape == (None, None, None)
    assert signature.outputs[0].shape == (None, None, 85)
    assert signature.inputs[0].shape == (None, 3, None, None)
    assert "names" in signature.metadata


def test_a_file_that_tensorrt_cannot_parse_is_still_read(tmp_path: Path) -> None:
    path = tensorrt_models.with_operator(tmp_path / "model.onnx", "Det")
    assert TensorRtBackend().read(Source(path)).outputs == (TensorSpec("y", (None, None), "float32"),)


# Profiles.


def ranged(low: int, usual: int, high: int, *rest: int) -> ShapeRange:
    return ShapeRange((low, *rest), (usual, *rest), (high, *rest))


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        ({}, (1, 8, 8)),
        ({"max_batch_size": 3}, (1, 3, 3)),
        ({"max_batch_size": 1}, (1, 1, 1)),
        ({"batch_sizes": (4, 1, 16)}, (1, 4, 16)),
        ({"batch_sizes": (2,)}, (2, 2, 2)),
        ({"shapes": {"images": (4, 3, SIZE, SIZE)}}, (4, 4, 4)),
        ({"shapes": {"images": (-1, 0, SIZE, SIZE)}}, (1, 8, 8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("open_size", [False, True])
def test_a_dynamic_batch(
    api: Api, tmp_path: Path, options: dict[str, Any], batch: tuple[int, int, int], open_size: bool
) -> None:
    shape = ("n", 3, "h", "w") if open_size else ("n", 3, SIZE, SIZE)
    path = tensorrt_models.scores(tmp_path / "model.onnx", shape=shape)
    found = profiles_of(read_onnx(path).inputs, LoadOptions(image=image(), **options))
    assert found.each == ({"images": ranged(*batch, 3, SIZE, SIZE)},)
    assert found.batch == batch
    assert_plan_of(api, build_plan(api, path, found.each))


def test_fixed_shapes_need_no_profile(tmp_path: Path) -> None:
    path = tensorrt_models.scores(tmp_path / "model.onnx", shape=(2, 3, SIZE, SIZE))
    for options in ({}, {"max_batch_size": 2}, {"batch_sizes": (2,)}):
        found = profiles_of(read_onnx(path).inputs, LoadOptions(image=image(), **options))
        assert (found.each, found.batch) == ((), (2, 2, 2))
    for wrong in ({"max_batch_size": 4}, {"batch_sizes": (1, 2)}):
        with pytest.raises(InvalidModel, match="fixes the batch size to 2"):
            of(path, image=image(), **wrong)


def test_what_goes_with_the_picture_has_its_batch(api: Api, tmp_path: Path) -> None:
    path = tensorrt_models.scaled(tmp_path / "model.onnx")
    each = of(path, image=image(), max_batch_size=4)
    assert each == ({"images": ranged(1, 4, 4, 3, SIZE, SIZE), "scale_factor": ranged(1, 4, 4, 2)},)
    assert_plan_of(api, build_plan(api, path, each))
    said = {"images": ranged(2, 3, 5, 3, SIZE, SIZE)}
    assert of(path, image=image(), profiles=(said,)) == ({**said, "scale_factor": ranged(2, 3, 5, 2)},)


def test_a_model_of_one_picture(tmp_path: Path) -> None:
    spec = TensorSpec("x", (3, None, None), "float32")
    found = profiles_of([spec], LoadOptions(image=image("x", (24, 40), "CHW")))
    assert found.each == ({"x": ShapeRange(*[(3, 24, 40)] * 3)},)
    assert found.batch == (1, 1, 1)
    with pytest.raises(InvalidModel, match="one picture at a time"):
        profiles_of([spec], LoadOptions(image=image("x", (24, 40), "CHW"), max_batch_size=2))


def test_pictures_with_channels_last() -> None:
    spec = TensorSpec("x", (None, None, None, 3), "uint8")
    found = profiles_of([spec], LoadOptions(image=image("x", (24, 40), "NHWC"), max_batch_size=2))
    assert found.each == ({"x": ranged(1, 2, 2, 24, 40, 3)},)


def test_plain_tensors(tmp_path: Path) -> None:
    specs = [TensorSpec("a", (None, 4), "float32"), TensorSpec("b", (7,), "int64"), TensorSpec("c", (), "bool")]
    found = profiles_of(specs, LoadOptions())
    assert found.each == ({"a": ranged(1, 8, 8, 4)},)
    with pytest.raises(InvalidModel, match="fixes the batch size to 7"):
        profiles_of(specs, LoadOptions(max_batch_size=4))


def test_what_stays_open_is_refused_with_what_to_write(tmp_path: Path) -> None:
    path = tensorrt_models.scores(tmp_path / "model.onnx", shape=("n", 3, "h", "w"))
    with pytest.raises(InvalidModel, match=r"and images \[\?, 3, \?, \?\] is open") as caught:
        of(path, image=image(size=None))
    example = (
        "say runtime.profiles: [{images: {min: [1, 3, 320, 320], opt: [4, 3, 640, 640], max: [8, 3, 1280, 1280]}}]"
    )
    assert str(caught.value.hint).startswith(example)


def test_an_open_rank_is_refused() -> None:
    with pytest.raises(InvalidModel, match="leaves the rank of input 'x' open"):
        profiles_of([TensorSpec("x", None, "float32")], LoadOptions())


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[TensorSpec, ...]]:
    """Inputs of a model with open sizes, and one of its pictures'."""
    path = tensorrt_models.scores(tmp_path / "model.onnx", shape=("n", 3, "h", "w"))
    yield read_onnx(path).inputs


@pytest.mark.parametrize(
    ("profiles", "options", "complaint"),
    [
        ([{"image": ranged(1, 2, 4, 3, 32, 32)}], {}, "there is no input 'image'"),
        ([{}], {}, "an entry is empty"),
        ([{"images": ranged(1, 2, 4, 3, 32)}], {}, "images has 4 dimensions, not 3"),
        (
            [{"images": ranged(1, 2, 4, 1, 32, 32)}],
            {},
            r"images is fixed to \[\?, 3, \?, \?\], and not \[1, 1, 32, 32\]",
        ),
        ([{"images": ranged(1, 2, 4, 3, 64, 64)}], {}, r"the pictures come in \[\?, 3, 32, 32\], and no shape"),
        (
            [{"images": ranged(1, 2, 4, 3, 32, 32)}],
            {"max_batch_size": 8},
            "none takes batches of 8, .*: they take 1 to 4",
        ),
        ([{"images": ranged(2, 2, 4, 3, 32, 32)}], {"batch_sizes": (1, 2)}, "none takes batches of 1"),
        (
            [{"images": ranged(1, 2, 4, 3, 32, 32)}],
            {"shapes": {"images": (2, 3, 32, 32)}},
            r"is fixed to \[2, 3, 32, 32\]",
        ),
        (
            [],
            {"shapes": {"images": (1, 4, 32, 32)}},
            r"the file fixes images to \[\?, 3, \?, \?\], and not \[1, 4, 32, 32\]",
        ),
        ([], {"shapes": {"images": (1, 3)}}, "runtime.shapes: images has 4 dimensions, not 2"),
    ],
    ids=str,
)
def test_profiles_that_do_not_agree_are_refused(
    both: tuple[TensorSpec, ...], profiles: Any, options: Any, complaint: str
) -> None:
    with pytest.raises(InvalidModel, match=complaint):
        profiles_of(both, LoadOptions(image=image(), profiles=tuple(profiles), **options))


def test_a_profile_that_leaves_out_an_open_input_is_refused() -> None:
    specs = [TensorSpec("a", (None, 4), "float32"), TensorSpec("b", (None, None), "float32")]
    with pytest.raises(
        InvalidModel, match=r"an entry does not say b, which the file leaves open: \[\?, \?\]"
    ) as caught:
        profiles_of(specs, LoadOptions(profiles=({"a": ranged(1, 2, 4, 4)},)))
    assert "b: {min: [1, 320]" in str(caught.value.hint)


def test_profiles_of_a_fixed_model_are_refused() -> None:
    with pytest.raises(InvalidModel, match="the file fixes all shapes"):
        profiles_of([TensorSpec("a", (1, 4), "float32")], LoadOptions(profiles=({"a": ranged(1, 1, 1, 4)},)))


# Timings, which TensorRT-RTX has none of: a builder that has.


class Timed:
    """A config with a timing cache, whose builder measures."""

    def __init__(self, fits: bool) -> None:
        self.fits = fits
        self.made: list[bytes] = []

    def create_timing_cache(self, blob: bytes) -> Any:
        self.made.append(blob)
        return blob

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return self.fits or cache == b""


@pytest.mark.parametrize(("fits", "made"), [(True, [b"kept"]), (False, [b"kept", b""])])
def test_timings_of_another_gpu_are_begun_anew(fits: bool, made: list[bytes]) -> None:
    config = Timed(fits)
    building._take_timings(config, bytearray(b"kept"))
    assert config.made == made


def test_timings_are_kept_whole(tmp_path: Path) -> None:
    from visionpool_server.backends.tensorrt.timing import timings_kept

    api, path = Api(None, "tensorrt", (10, 16), rtx=False), tmp_path / "folder" / "timings.cache"
    with timings_kept(api, path) as timings:
        assert timings is not None
        assert not timings
        timings[:] = b"measured"
    assert path.read_bytes() == b"measured"
    with timings_kept(api, path) as timings:
        assert timings is not None
        assert bytes(timings) == b"measured"
    assert [each.name for each in path.parent.iterdir()] == ["timings.cache"]
    with timings_kept(api, None) as timings:
        assert timings is None
    with timings_kept(find_api("tensorrt_rtx"), path) as timings:
        assert timings is None


def test_timings_that_cannot_be_written_are_let_go(tmp_path: Path) -> None:
    from visionpool_server.backends.tensorrt.timing import timings_kept

    (tmp_path / "file").write_text("in the way")
    with timings_kept(Api(None, "tensorrt", (10, 16), rtx=False), tmp_path / "file" / "timings") as timings:
        assert timings is not None
        timings[:] = b"measured"


def test_the_models_of_the_tests_are_built(api: Api, tmp_path: Path) -> None:
    """Small exports with the layouts of real ones."""
    for make in (tiny_models.yolov5, tiny_models.yolov8, tiny_models.picodet):
        path = make(tmp_path / f"{make.__name__}.onnx")
        assert_plan_of(api, plan(api, path))


def test_dimensions_of_one_made_up_name_are_not_one_size(api: Api, tmp_path: Path) -> None:
    """Older exporters of Paddle call each open dimension "?"."""
    shape: list[int | str] = ["?", 3, "?", "?"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("GlobalAveragePool", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["?", 3, 1, 1])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
    assert [spec.shape for spec in read_onnx(path).inputs] == [(None, 3, None, None)]
    profile = {"x": ShapeRange((1, 3, 32, 320), (2, 3, 32, 320), (4, 3, 48, 640))}
    assert_plan_of(api, build_plan(api, path, [profile]))


@pytest.mark.parametrize("name", ["ROIAlign_TRT", "MyelinWeightsTransformPlugin"])
def test_nodes_that_name_a_plugin_of_rtx_are_refused(api: Api, tmp_path: Path, name: str) -> None:
    """The second one would end the process."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(name, ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [1, 3])],
        [value("y", TensorProto.FLOAT, [1, 3])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
    with pytest.raises(InvalidModel, match=f"has no layer for {name}"):
        build_plan(api, path)
