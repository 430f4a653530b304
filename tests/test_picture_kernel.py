"""The kernel that prepares pictures: it compiles for NVIDIA's GPUs, and the same source on the CPU does what the recipes do.

The latter proves indexing and arithmetic, not races or a device's own rounding; tests/gpu does that on a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from visionpool.errors import BackendUnavailable, InferenceFailed
from visionpool_server.assembly import stack
from visionpool_server.cuda.compiler import CompilationFailed, Nvrtc, compile_kernels, find_nvrtc
from visionpool_server.cuda.errors import CudaError
from visionpool_server.cuda.gpu import Gpu
from visionpool_server.cuda.pictures import KERNEL, Layout, PictureBatch, kernel_image
from visionpool_server.imaging.recipe import (
    Arithmetic,
    CenterCrop,
    Letterbox,
    Pad,
    Recipe,
    Resize,
    ResizeShort,
    Step,
)
from visionpool_server.imaging.sizes import CropSquare
from visionpool_server.imaging.unprepared import NotOnGpu, Unprepared

from tests.cpu_kernels import ROOT, SOURCE, CpuKernel, compiled_kernel, picture_spans
from tests.fake_cuda import FakeDriver

RAW = Arithmetic(1.0)
IMAGENET = Arithmetic(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BGR = Arithmetic(1 / 255, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bgr")
RECIPES: dict[str, tuple[Step, ...]] = {
    "resize": (Resize((64, 80)),),
    "letterbox": (Letterbox((96, 64)),),
    "short_and_crop": (ResizeShort(72), CenterCrop((64, 64))),
    "crop": (CenterCrop((150, 130)),),
    "crop_first": (CropSquare(), Resize((70, 70))),
    "resize_and_pad": (Resize((60, 90), keep_ratio=True), Pad((100, 96), (10, 20, 30))),
    "as_it_is": (Pad((301, 302)),),
}
Prepare = Callable[..., NDArray[Any]]


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> CpuKernel:
    return compiled_kernel(tmp_path_factory.mktemp("kernel"))


@pytest.fixture
def gpu(kernel: CpuKernel) -> Iterator[Gpu]:
    driver = FakeDriver()
    driver.kernel(KERNEL, kernel, picture_spans)
    gpu = Gpu(driver, 0)
    with gpu.current():
        yield gpu
    gpu.close()
    driver.assert_clean()


def on_gpu(gpu: Gpu, batch: PictureBatch, pictures: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The model's tensor of these pictures, downloaded."""
    stream = gpu.stream()
    shape = batch.load(pictures)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    target, host = gpu.buffer(size), gpu.pinned(size)
    batch.upload(stream)
    batch.run(target.address, stream)
    target.download(host, size, stream)
    stream.synchronize()
    tensor = host.bytes.view(dtype).reshape(shape).copy()
    for held in (stream, target, host):
        held.close()
    return tensor


@pytest.fixture
def prepare(gpu: Gpu) -> Prepare:
    """What the kernel makes of a batch, with a staging of its own."""

    def run(pictures: NDArray[Any], arithmetic: Arithmetic, layout: Layout, dtype: str) -> NDArray[Any]:
        batch = PictureBatch(gpu, arithmetic, layout, dtype)
        try:
            return on_gpu(gpu, batch, pictures, dtype)
        finally:
            batch.close()

    return run


def random_picture(random: np.random.Generator, largest: int = 300) -> NDArray[np.uint8]:
    """Of any size: noise, or something smooth as photographs are, and sometimes a view with strides of its own."""
    height, width = (int(side) for side in random.integers(1, largest, 2))
    picture = random.integers(0, 256, (height + 3, width + 2, 3), np.uint8)
    if random.random() < 0.5:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), 4), np.uint8)
    return picture[1 : height + 1, 2 : width + 2] if random.random() < 0.3 else picture[:height, :width].copy()


def batches(
    random: np.random.Generator, recipe: Recipe, count: int, size: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """`count` batches of pictures for the GPU, and the same ones as the CPU prepares them."""
    for _ in range(count):
        pictures = [random_picture(random) for _ in range(size)]
        unprepared = stack([{"x": recipe.on_gpu().prepare(picture)[0]} for picture in pictures], size)["x"]
        yield unprepared, np.stack([recipe.prepare(picture)[0] for picture in pictures])


@pytest.mark.parametrize("steps", RECIPES.values(), ids=RECIPES)
def test_pictures_of_any_size_become_what_the_recipe_makes_of_them(prepare: Prepare, steps: tuple[Step, ...]) -> None:
    random = np.random.default_rng(7)
    for unprepared, prepared in batches(random, Recipe(steps), 25, 4):
        made = prepare(unprepared, RAW, "NHWC", "float32")
        np.testing.assert_array_equal(made, prepared.astype(np.float32))


@pytest.mark.parametrize("arithmetic", [RAW, IMAGENET, BGR], ids=["raw", "imagenet", "bgr"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHW"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_arithmetic_is_that_of_the_cpu_bit_by_bit(
    prepare: Prepare, arithmetic: Arithmetic, layout: Layout, dtype: str
) -> None:
    random, size = np.random.default_rng(8), 1 if layout == "CHW" else 3
    for steps in RECIPES.values():
        for unprepared, prepared in batches(random, Recipe(steps), 2, size):
            made = prepare(unprepared, arithmetic, layout, dtype)
            wanted = arithmetic.apply(prepared, layout, np.dtype(dtype))
            assert made.dtype == wanted.dtype
            np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_a_model_of_bytes_gets_bytes(prepare: Prepare, channels: Any) -> None:
    random, arithmetic = np.random.default_rng(9), Arithmetic(1.0, channels=channels)
    for unprepared, prepared in batches(random, Recipe((Letterbox((33, 47)),)), 3, 2):
        made = prepare(unprepared, arithmetic, "NCHW", "uint8")
        np.testing.assert_array_equal(made, arithmetic.apply(prepared, "NCHW", np.dtype(np.uint8)))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_size_to_any_size(kernel: CpuKernel, data: st.DataObject) -> None:
    """Against cv2.resize itself: to more, to less, to half, to the same, along both sides."""
    height, width = data.draw(st.tuples(st.integers(1, 200), st.integers(1, 200)))
    rows = data.draw(st.one_of(st.integers(1, 400), st.sampled_from([height, 2 * height, 3 * height, 2 * height + 1])))
    columns = data.draw(st.one_of(st.integers(1, 400), st.sampled_from([width, 2 * width, 3 * width, 2 * width + 1])))
    pixels = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 256, (rows, columns, 3), np.uint8)
    picture = Unprepared.of(pixels).resize((height, width))
    with fake_gpu(kernel) as gpu:
        batch = PictureBatch(gpu, RAW, "NHWC", "float32")
        made = on_gpu(gpu, batch, picture.as_tensor()[None], "float32")[0]
    np.testing.assert_array_equal(made, cv2.resize(pixels, (width, height)).reshape(made.shape))


class fake_gpu:  # noqa: N801  a context manager
    """A GPU of a fake driver of its own, for one example of many."""

    def __init__(self, kernel: CpuKernel) -> None:
        self._driver = FakeDriver()
        self._driver.kernel(KERNEL, kernel, picture_spans)
        self._gpu = Gpu(self._driver, 0)
        self._current = self._gpu.current()

    def __enter__(self) -> Gpu:
        self._current.__enter__()
        return self._gpu

    def __exit__(self, *raised: Any) -> None:
        self._current.__exit__(*raised)
        self._gpu.close()
        self._driver.assert_clean()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("source", ["uint8", "float32"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pictures_that_were_prepared_before_are_only_normalised(
    prepare: Prepare, channels: int, source: str, layout: Layout
) -> None:
    random = np.random.default_rng(10)
    pictures = random.integers(0, 256, (3, 37, 41, channels)).astype(source)
    if source == "float32":
        pictures = pictures - np.float32(0.5)
    arithmetic = Arithmetic(1 / 255, BGR.mean[:channels], BGR.std[:channels], "bgr")
    for batch in (pictures, pictures[:, ::2, 1:-1]):  # contiguous, and not
        made = prepare(batch, arithmetic, layout, "float32")
        np.testing.assert_array_equal(made, arithmetic.apply(batch, layout, np.dtype(np.float32)))


def test_a_staging_takes_batch_after_batch_and_grows_only_when_it_must(gpu: Gpu) -> None:
    random, driver = np.random.default_rng(11), cast(FakeDriver, gpu.driver)
    batch = PictureBatch(gpu, IMAGENET, "NCHW", "float32")
    recipe = Recipe((Letterbox((64, 64)),))
    grown = []
    for size in (1, 4, 2, 4, 4, 3, 8, 8):
        unprepared, prepared = next(batches(random, recipe, 1, size))
        before = driver.calls["allocate_pinned"]
        made = on_gpu(gpu, batch, unprepared, "float32")
        grown.append(driver.calls["allocate_pinned"] - before - 1)  # of which one is the test's own
        np.testing.assert_array_equal(made, IMAGENET.apply(prepared, "NCHW", np.dtype(np.float32)))
    assert grown[0] == 1
    assert sum(grown) <= 4
    assert driver.calls["load_module"] == 1
    batch.close()


def test_a_picture_that_fills_its_batch_up_is_copied_once(gpu: Gpu) -> None:
    pixels = np.random.default_rng(12).integers(0, 256, (500, 600, 3), np.uint8)
    recipe = Recipe((Resize((32, 32)),))
    batch = PictureBatch(gpu, RAW, "NHWC", "float32")
    unprepared = stack([{"x": recipe.on_gpu().prepare(pixels)[0]}], 8)["x"]
    made = on_gpu(gpu, batch, unprepared, "float32")
    np.testing.assert_array_equal(made, np.stack([recipe.prepare(pixels)[0]] * 8))
    assert cast(FakeDriver, gpu.driver).bytes_held() < 2 * pixels.nbytes
    batch.close()


@pytest.mark.parametrize(
    "steps", [RECIPES["letterbox"], RECIPES["short_and_crop"]], ids=["letterbox", "short_and_crop"]
)
@pytest.mark.parametrize("view", [False, True])
def test_of_a_photograph_only_the_rows_are_copied_that_count(gpu: Gpu, steps: tuple[Step, ...], view: bool) -> None:
    pixels = np.random.default_rng(13).integers(0, 256, (1500, 2000, 3), np.uint8)
    pixels = pixels[:, :1400] if view else pixels
    batch = PictureBatch(gpu, RAW, "NHWC", "float32")
    made = on_gpu(gpu, batch, Recipe(steps).on_gpu().prepare(pixels)[0][None], "float32")
    np.testing.assert_array_equal(made[0], Recipe(steps).prepare(pixels)[0])
    held = cast(FakeDriver, gpu.driver).bytes_held()
    assert held < pixels.nbytes / 8 or view  # a view's rows are copied once more where some are left out
    batch.close()


def test_pixels_may_be_overwritten_once_they_are_loaded(gpu: Gpu) -> None:
    pixels = np.full((20, 20, 3), 7, np.uint8)
    batch, stream = PictureBatch(gpu, RAW, "NHWC", "uint8"), gpu.stream()
    target, host = gpu.buffer(1200), gpu.pinned(1200)
    batch.load(Unprepared.of(pixels).as_tensor()[None])
    pixels[:] = 9
    batch.upload(stream)
    batch.run(target.address, stream)
    target.download(host, 1200, stream)
    stream.synchronize()
    assert set(host.bytes.tolist()) == {7}


def test_what_no_batch_can_be_made_of_is_refused(gpu: Gpu) -> None:
    picture = np.zeros((30, 40, 3), np.uint8)
    two = np.empty(2, object)
    two[:] = [Unprepared.of(picture), Unprepared.of(picture[:20])]
    batch = PictureBatch(gpu, RAW, "NCHW", "float32")
    with pytest.raises(InferenceFailed, match="several sizes"):
        batch.load(two)
    with pytest.raises(InferenceFailed, match="uint8 or float32"):
        batch.load(np.zeros((1, 8, 8, 3), np.float16))
    with pytest.raises(InferenceFailed, match="channels"):
        batch.load(np.zeros((1, 8, 8, 2), np.uint8))
    with pytest.raises(InferenceFailed, match="one picture"):
        PictureBatch(gpu, RAW, "CHW", "float32").load(np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(NotOnGpu, match=r"float64.*prepare_on: cpu"):
        PictureBatch(gpu, RAW, "NCHW", "float64")


@pytest.mark.parametrize("call", ["allocate", "allocate_pinned"])
def test_a_batch_that_found_no_memory_leaves_room_for_the_next(gpu: Gpu, call: str) -> None:
    driver = cast(FakeDriver, gpu.driver)
    batch = PictureBatch(gpu, RAW, "NCHW", "float32")
    small, large = np.ones((1, 8, 8, 3), np.uint8), np.ones((4, 80, 80, 3), np.uint8)
    on_gpu(gpu, batch, small, "float32")
    driver.fail(call, status="CUDA_ERROR_OUT_OF_MEMORY")
    with pytest.raises(CudaError):
        batch.load(large)
    for pictures in (large, small):
        assert on_gpu(gpu, batch, pictures, "float32").all()
    batch.close()


def nvrtc(major: int) -> Nvrtc:
    try:
        return find_nvrtc(major)
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("major", [12, 13])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "compute_75"])
def test_the_kernel_compiles_for_gpus_without_one(major: int, arch: str) -> None:
    image = nvrtc(major).compile(SOURCE.read_text("utf-8"), arch, name=SOURCE.name)
    if arch.startswith("sm_"):
        assert image.startswith(b"\x7fELF")
        assert KERNEL.encode() in image
    else:
        assert f".entry {KERNEL}(".encode() in image
        assert b"fma.rn.f" not in image  # nothing is fused that would round otherwise than the CPU


def test_the_kernel_that_is_shipped_is_that_of_its_source() -> None:
    nvrtc(12)
    script = ROOT / "tools/kernels.py"
    check = subprocess.run([sys.executable, script, "--check"], check=False, capture_output=True, text=True, timeout=60)
    assert (check.returncode, check.stderr) == (0, "")
    image = kernel_image()
    assert b".version 8.0" in image
    assert b".target sm_75" in image


def test_a_source_that_is_wrong_is_told_with_the_line() -> None:
    nvrtc(13)
    with pytest.raises(
        CompilationFailed, match=r'mine.cu does not compile for sm_90:\n.*"missing" is undefined'
    ) as failed:
        compile_kernels('extern "C" __global__ void f() { missing(); }', "sm_90", name="mine.cu")
    assert "mine.cu(1)" in failed.value.log
    with pytest.raises(CompilationFailed, match="gpu-architecture"):
        compile_kernels("", "sm_1")


def test_a_compiler_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="pip install nvidia-cuda-nvrtc"):
        find_nvrtc(99)
    other = tmp_path / "libnvrtc.so.13"
    other.write_bytes(b"no library")
    with pytest.raises(BackendUnavailable, match="cannot be used"):
        Nvrtc(str(other))
