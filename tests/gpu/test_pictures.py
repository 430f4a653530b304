"""The kernel that prepares pictures, on a device: what it makes is what the recipe makes on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from visionpool_server.cuda.gpu import Gpu
from visionpool_server.cuda.pictures import Layout, PictureBatch
from visionpool_server.imaging.recipe import Arithmetic, Recipe, Step

from tests.gpu.stand_in import STAND_IN
from tests.test_picture_kernel import BGR, IMAGENET, RAW, RECIPES, batches, on_gpu, random_picture


def made(gpu: Gpu, pictures: NDArray[Any], arithmetic: Arithmetic, layout: Layout, dtype: str) -> NDArray[Any]:
    batch = PictureBatch(gpu, arithmetic, layout, dtype)
    try:
        return on_gpu(gpu, batch, pictures, dtype)
    finally:
        batch.close()


@pytest.mark.parametrize("steps", RECIPES.values(), ids=RECIPES)
def test_a_hundred_pictures_of_any_size_are_those_of_the_recipe(gpu: Gpu, steps: tuple[Step, ...]) -> None:
    random, worst, differing, total = np.random.default_rng(7), 0.0, 0, 0
    for unprepared, prepared in batches(random, Recipe(steps), 2 if STAND_IN else 25, 4):
        got = made(gpu, unprepared, Arithmetic(), "NHWC", "float32")
        distance = np.abs(got - prepared * np.float32(1 / 255))
        worst = max(worst, float(distance.max()))
        differing += int((distance > 1e-6).sum())
        total += distance.size
    assert worst <= 1 / 255 + 1e-6
    assert differing <= total / 100


@pytest.mark.parametrize("arithmetic", [RAW, IMAGENET, BGR], ids=["raw", "imagenet", "bgr"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_prepared_pictures_are_only_normalised(gpu: Gpu, arithmetic: Arithmetic, layout: Layout, dtype: str) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (5, 61, 43, 3)).astype(np.uint8)
    got = made(gpu, pixels, arithmetic, layout, dtype)
    wanted = arithmetic.apply(pixels, layout, np.dtype(dtype))
    np.testing.assert_allclose(
        got.astype(np.float64), wanted.astype(np.float64), rtol=2e-3 if dtype == "float16" else 1e-6
    )


def test_one_staging_takes_batches_of_many_sizes(gpu: Gpu) -> None:
    recipe, random = Recipe(RECIPES["letterbox"]), np.random.default_rng(11)
    batch = PictureBatch(gpu, RAW, "NCHW", "float32")
    for size in (1, 8, 3, 32, 2):
        pictures = [random_picture(random) for _ in range(size)]
        unprepared = np.empty(size, object)
        unprepared[:] = [recipe.on_gpu().prepare(one)[0][()] for one in pictures]
        got = on_gpu(gpu, batch, unprepared, "float32")
        wanted = np.stack([recipe.prepare(one)[0] for one in pictures]).transpose(0, 3, 1, 2)
        assert np.abs(got - wanted).max() <= 1
    batch.close()
