"""Pictures that a GPU prepares: recipes decide on them what they decide on pixels, and refuse what it cannot do."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from visionpool.errors import InvalidModel, TooLarge
from visionpool_server.assembly import stack
from visionpool_server.families.pixel_maps import MapFamily
from visionpool_server.imaging.geometry import Geometry
from visionpool_server.imaging.recipe import (
    CenterCrop,
    Gray,
    Letterbox,
    Pad,
    PadToStride,
    Recipe,
    Resize,
    ResizeShort,
    Step,
)
from visionpool_server.imaging.sizes import CropSquare, LimitLong, LimitShort, PadToAspect, ResizeLong, ResizeToMultiple
from visionpool_server.imaging.text_lines import LimitSide, TextLine
from visionpool_server.imaging.unprepared import NotOnGpu, Unprepared, size_of

side = st.integers(1, 200)
size = st.tuples(side, side)
fill = st.one_of(st.integers(0, 255), st.tuples(*[st.integers(0, 255)] * 3))
rounding = st.sampled_from(["nearest", "down"])
RESIZING: st.SearchStrategy[Step] = st.one_of(
    st.builds(Resize, size, st.booleans(), multiple=st.one_of(st.none(), st.integers(1, 32)), rounding=rounding),
    st.builds(ResizeShort, st.integers(1, 64), rounding=rounding, limit=st.one_of(st.none(), side)),
    st.builds(Letterbox, size, st.integers(0, 255)),
    st.builds(ResizeLong, side),
    st.builds(LimitLong, st.integers(50, 200), st.integers(1, 50)),
    st.builds(LimitShort, st.integers(20, 100), st.integers(1, 20)),
    st.builds(ResizeToMultiple, st.integers(1, 32)),
    st.builds(LimitSide, st.integers(32, 200), st.sampled_from(["max", "min", "long"])),
)
AROUND: st.SearchStrategy[Step] = st.one_of(
    st.builds(CenterCrop, size, rounding),
    st.builds(CropSquare),
    st.builds(Pad, st.tuples(st.integers(100, 300), st.integers(100, 300)), fill),
    st.builds(PadToStride, st.integers(1, 64), fill),
    st.builds(PadToAspect, st.floats(0.5, 2), fill),
)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def left_to_gpu(recipe: Recipe, pixels: NDArray[np.uint8]) -> Unprepared:
    prepared = recipe.prepare(pixels)[0]
    assert prepared.shape == ()
    return cast(Unprepared, prepared[()])


def assert_alike(steps: tuple[Step, ...], pixels: NDArray[np.uint8], geometry: Geometry | None = None) -> None:
    """Both ways give the same pixels, and know of them the same."""
    plain = Recipe(steps)
    prepared, before = plain.prepare(pixels, geometry)
    tensor, after = Recipe(steps, unprepared=True).prepare(pixels, geometry)
    assert (after, after.undo) == (before, before.undo)
    assert size_of(tensor) == size_of(prepared) == prepared.shape[:2]
    unprepared = left_to_gpu(Recipe(steps, unprepared=True), pixels)
    assert unprepared.shape == prepared.shape
    np.testing.assert_array_equal(unprepared.on_cpu(), prepared)


@settings(deadline=None, max_examples=400)
@given(size, st.lists(AROUND, max_size=1), RESIZING, st.lists(AROUND, max_size=3))
def test_steps_do_to_it_what_they_do_to_pixels(
    of: tuple[int, int], before: list[Step], resizing: Step, after: list[Step]
) -> None:
    try:
        assert_alike((*before, resizing, *after), picture(*of))
    except TooLarge:
        assume(False)


@settings(deadline=None, max_examples=400)
@given(size, st.lists(AROUND, max_size=1), RESIZING, st.lists(AROUND, max_size=3))
def test_what_is_too_large_for_one_is_for_the_other(
    of: tuple[int, int], before: list[Step], resizing: Step, after: list[Step]
) -> None:
    pixels, outcomes = picture(*of), []
    for unprepared in (False, True):
        try:
            Recipe((*before, resizing, *after), unprepared=unprepared).prepare(pixels)
        except TooLarge as error:
            outcomes.append(str(error))
        else:
            outcomes.append("")
    assert outcomes[0] == outcomes[1]


FIXED: dict[str, tuple[Step, ...]] = {
    "resize": (Resize((64, 48)),),
    "letterbox": (Letterbox((96, 64)),),
    "short_and_crop": (ResizeShort(256), CenterCrop((224, 224))),
    "crop": (CenterCrop((60, 70)),),
    "crop_square_first": (CropSquare(), Resize((48, 48))),
    "keep_and_pad": (Resize((90, 60), keep_ratio=True), Pad((90, 60), (1, 2, 3))),
    "long_and_pad": (ResizeLong(100), Pad((100, 100))),
    "stride": (Resize((60, 70)), PadToStride(32, 7)),
    "twice_to_one_size": (Resize((64, 48)), Resize((64, 48))),
    "nothing_but_padding": (Pad((4000, 4000)), CenterCrop((16, 16))),
}


@pytest.mark.parametrize("steps", FIXED.values(), ids=FIXED)
def test_recipes_of_one_size_are_left_to_the_gpu_step_by_step(steps: tuple[Step, ...]) -> None:
    recipe = Recipe(steps).on_gpu()
    assert recipe.output_size() == Recipe(steps).output_size()
    assert recipe.reduction(480, 640) == Recipe(steps).reduction(480, 640)
    for of in ((480, 640), (33, 500), (64, 48), (1, 1), (97, 31)):
        pixels = picture(*of)
        unprepared = left_to_gpu(recipe, pixels)
        assert np.shares_memory(unprepared.pixels, pixels)  # nothing was computed
        assert_alike(steps, pixels)


def test_where_the_original_lies_in_a_picture_decoded_smaller_is_known() -> None:
    assert_alike((Letterbox((64, 64)),), picture(120, 160), Geometry(480, 640, 0.25, 0.25))


def test_a_window_of_padding_alone_shows_nothing_of_the_picture() -> None:
    padded = Unprepared.of(picture(10, 12)).pad((5, 20, 3, 40), 9)
    for top, left in ((0, 0), (20, 0), (0, 30), (20, 30), (15, 15)):
        assert (padded.cut(top, left, (5, 3)).on_cpu() == 9).all()
    np.testing.assert_array_equal(padded.cut(4, 2, (3, 3)).on_cpu(), padded.on_cpu()[4:7, 2:5])


def test_one_that_was_padded_and_cut_to_its_own_size_is_not_as_it_was() -> None:
    pixels = picture(10, 12)
    moved = Unprepared.of(pixels).pad((0, 4, 0, 0), 5).cut(2, 0, (10, 12))
    np.testing.assert_array_equal(moved.on_cpu()[:8], pixels[2:])
    with pytest.raises(NotOnGpu, match="after it was padded"):
        moved.resize((5, 5))
    np.testing.assert_array_equal(moved.cut(1, 1, (9, 9)).on_cpu(), moved.on_cpu()[1:, 1:10])


REFUSED: dict[str, tuple[tuple[Step, ...], str]] = {
    "antialias": ((Resize((64, 64), antialias=True),), "with antialias"),
    "cubic": ((Resize((64, 64), interpolation="cubic"),), "by cubic"),
    "letterbox_by_area": ((Letterbox((64, 64), interpolation="area"),), "by area"),
    "resized_twice": ((ResizeShort(80), Resize((64, 64))), "resized before"),
    "resized_after_a_crop_of_the_resized": (
        (Resize((80, 80)), CenterCrop((70, 70)), Resize((64, 64))),
        "resized before",
    ),
    "resized_after_padding": ((PadToAspect(1.0), Resize((64, 64))), "after it was padded"),
    "small_ones_padded_before": ((CenterCrop((500, 500)), Resize((64, 64))), "after it was padded"),
    "two_colours": ((Letterbox((64, 64)), Pad((96, 96), 3)), "two different colours"),
    "gray": ((Resize((64, 64)), Gray()), "Gray looks at the pixels"),
    "text_line": ((TextLine(48, (320,)),), "TextLine looks at the pixels"),
    "open": ((ResizeLong(100),), "leaves the size of pictures open"),
    "nothing": ((), "leaves the size of pictures open"),
}


@pytest.mark.parametrize(("steps", "why"), REFUSED.values(), ids=REFUSED)
def test_what_one_sampling_cannot_do_is_refused_when_the_model_is_loaded(steps: tuple[Step, ...], why: str) -> None:
    with pytest.raises(NotOnGpu, match=why) as refused:
        Recipe(steps).on_gpu()
    assert isinstance(refused.value, InvalidModel)
    assert "prepare_on: cpu" in str(refused.value)


def test_every_step_of_model_yaml_is_done_or_refused() -> None:
    from visionpool_server.models.preprocess import STEPS

    tried = {type(step) for steps in (*FIXED.values(), *(steps for steps, _ in REFUSED.values())) for step in steps}
    strategies = {LimitLong, LimitShort, ResizeToMultiple, LimitSide}  # always of open size: compared above
    assert tried | strategies == set(STEPS.values())


def test_a_picture_of_no_usual_size_is_prepared_on_the_cpu_where_the_gpu_cannot() -> None:
    """One so large that it is resized twice."""
    steps = LimitLong(5000), Resize((32, 32))
    recipe = Recipe(steps).on_gpu()
    large = np.zeros((6000, 10, 3), np.uint8)
    large[::2] = 200
    prepared = left_to_gpu(recipe, large)
    assert prepared.pixels.shape == (32, 32, 3)
    assert_alike(steps, large)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_is_one_array_of_objects(count: int) -> None:
    recipe = Recipe((Letterbox((32, 32)),)).on_gpu()
    items: list[dict[str, NDArray[Any]]] = [{"x": recipe.prepare(picture(20 + i, 30))[0]} for i in range(count)]
    for length in range(count, 5):
        batch = stack(items, length)["x"]
        assert batch.shape == (length,)
        assert batch.dtype == object
        assert [one.pixels.shape[0] for one in batch] == [20 + min(i, count - 1) for i in range(length)]


class Maps(MapFamily):
    image_input = "x"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe


def test_families_that_ask_for_the_prepared_size_are_told() -> None:
    recipe = Recipe((Letterbox((48, 64)),))
    pixels = picture(30, 50)
    cpu, gpu = (Maps(one).prepare(pixels).geometry for one in (recipe, recipe.on_gpu()))
    assert cpu.undo == gpu.undo
    assert gpu.undo[0].size == (48, 64)


def test_opencv_prepares_it_where_no_gpu_does() -> None:
    pixels = picture(90, 70)
    unprepared = left_to_gpu(Recipe((Resize((40, 50)),)).on_gpu(), pixels)
    np.testing.assert_array_equal(unprepared.on_cpu(), cv2.resize(pixels, (50, 40)))
