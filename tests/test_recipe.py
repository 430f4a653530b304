"""The steps of a recipe by hand-computed values, their geometry by properties, their arithmetic against NumPy and OpenVINO."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from visionpool.errors import InvalidModel, TooLarge
from visionpool_server.backends import ImageInput, LoadOptions, Source, get_backend
from visionpool_server.imaging.recipe import (
    Arithmetic,
    CenterCrop,
    Geometry,
    Gray,
    Letterbox,
    Pad,
    PadToStride,
    Recipe,
    Resize,
    ResizeShort,
    Step,
    Undo,
)
from visionpool_server.imaging.sizes import LimitLong, LimitShort, PadToAspect, ResizeLong, ResizeToMultiple
from visionpool_server.models.preprocess import recipe_from

from tests import tiny_models

side = st.integers(1, 400)
target = st.tuples(st.integers(1, 300), st.integers(1, 300))
GEOMETRIC: st.SearchStrategy[Step] = st.one_of(
    st.builds(Resize, target, st.booleans(), st.sampled_from(["nearest", "linear", "cubic", "area"])),
    st.builds(ResizeShort, st.integers(1, 64)),
    st.builds(CenterCrop, target),
    st.builds(Letterbox, target),
    st.builds(Pad, target),
    st.builds(PadToStride, st.integers(1, 64)),
    st.builds(Resize, target, st.booleans(), st.just("linear"), st.just(True), st.integers(1, 16)),
    st.builds(ResizeLong, st.integers(1, 300), st.just("linear"), st.one_of(st.none(), st.integers(1, 32))),
    st.builds(LimitLong, st.integers(50, 300), st.integers(1, 50)),
    st.builds(LimitShort, st.integers(20, 100), st.integers(1, 20)),
    st.builds(ResizeToMultiple, st.integers(1, 32)),
    st.builds(PadToAspect, st.floats(0.5, 2)),
)


def flat(height: int, width: int, value: int = 200) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def apply(step: Step, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Geometry]:
    return step(image, Geometry(*image.shape[:2]))


# Steps by hand


def test_resize_stretches_to_the_size_asked_for() -> None:
    image, geometry = apply(Resize((30, 20)), flat(10, 40))
    assert image.shape == (30, 20, 3)
    assert (geometry.scale_x, geometry.scale_y) == (0.5, 3.0)


def test_resize_averages_neighbours_linearly() -> None:
    image, _ = apply(Resize((1, 2)), np.array([[[0] * 3, [100] * 3, [200] * 3, [100] * 3]], np.uint8))
    assert image[0, :, 0].tolist() == [50, 150]


@pytest.mark.parametrize("name", ["nearest", "linear", "cubic", "area"])
def test_resize_interpolates_as_opencv_does(name: str) -> None:
    picture = tiny_models.picture(37, 53)
    image, _ = apply(Resize((64, 31), interpolation=name), picture)  # type: ignore[arg-type]
    code = getattr(cv2, f"INTER_{name.upper()}")
    assert np.array_equal(image, cv2.resize(picture, (31, 64), interpolation=code))


@pytest.mark.parametrize(
    ("size", "expected"), [((10, 40), (16, 64)), ((40, 10), (48, 12)), ((48, 64), (48, 64)), ((1, 1), (48, 48))]
)
def test_keep_ratio_fits_the_picture_into_the_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image, _ = apply(Resize((48, 64), keep_ratio=True), flat(*size))
    assert image.shape[:2] == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [((300, 400), (256, 341)), ((400, 300), (341, 256)), ((7, 7), (256, 256)), ((1, 3), (256, 768))],
)
def test_resize_short_brings_the_shorter_side_to_its_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image, _ = apply(ResizeShort(256), flat(*size))
    assert image.shape[:2] == expected


@pytest.mark.parametrize("size", [(8000, 1), (1, 50_000_000)])
def test_a_picture_too_thin_for_resize_short_is_refused_before_memory_is_spent(size: tuple[int, int]) -> None:
    thread = np.broadcast_to(np.uint8(0), (*size, 3))
    with pytest.raises(TooLarge, match=f"{size[1]}x{size[0]}.*shorter side") as refusal:
        apply(ResizeShort(256), thread)
    assert refusal.value.hint


def test_centre_crop_takes_the_middle() -> None:
    rows, columns = np.mgrid[:5, :6]
    picture = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)
    image, geometry = apply(CenterCrop((3, 2)), picture)
    assert image[:, :, 0].tolist() == [[1, 1], [2, 2], [3, 3]]
    assert image[0, :, 1].tolist() == [2, 3]
    assert (geometry.offset_x, geometry.offset_y) == (-2, -1)


def test_centre_crop_pads_a_picture_that_is_too_small_with_black() -> None:
    image, geometry = apply(CenterCrop((4, 4)), flat(2, 6))
    assert image[:, :, 0].tolist() == [[0] * 4, [200] * 4, [200] * 4, [0] * 4]
    assert (geometry.offset_x, geometry.offset_y) == (-1, 1)


@pytest.mark.parametrize(
    ("size", "inside"),  # inside: top, bottom, left, right of the picture in a square of 64
    [
        ((64, 64), (0, 64, 0, 64)),
        ((32, 64), (16, 48, 0, 64)),
        ((480, 640), (8, 56, 0, 64)),
        ((63, 64), (0, 63, 0, 64)),  # the odd row is below, as in YOLOv5
        ((64, 63), (0, 64, 0, 63)),
        ((1, 1), (0, 64, 0, 64)),
        ((8000, 1), (0, 64, 31, 32)),
        ((1, 8000), (31, 32, 0, 64)),
    ],
)
def test_letterbox_centres_the_picture_on_grey(size: tuple[int, int], inside: tuple[int, int, int, int]) -> None:
    image, geometry = apply(Letterbox((64, 64)), flat(*size))
    top, bottom, left, right = inside
    expected = flat(64, 64, 114)
    expected[top:bottom, left:right] = 200
    assert np.array_equal(image, expected)
    assert (geometry.offset_x, geometry.offset_y) == (left, top)


def test_pad_and_pad_to_stride_grow_to_the_bottom_and_right() -> None:
    image, geometry = apply(Pad((4, 5), fill=7), flat(2, 3))
    assert image[:, :, 0].tolist() == [[200] * 3 + [7] * 2] * 2 + [[7] * 5] * 2
    assert geometry == Geometry(2, 3)
    assert apply(PadToStride(32), flat(33, 64))[0].shape == (64, 64, 3)
    with pytest.raises(TooLarge, match="3x6 is to be padded to 5x4"):
        apply(Pad((4, 5)), flat(6, 3))


@pytest.mark.parametrize(
    ("step", "size", "expected"),
    [
        (ResizeLong(100), (50, 200), (25, 100)),
        (ResizeLong(100, multiple=32), (50, 200), (32, 128)),
        (ResizeShort(64, limit=96, multiple=8), (50, 200), (24, 96)),
        (Resize((60, 90), multiple=32), (50, 200), (64, 96)),
        (LimitLong(max=100, min=40), (50, 200), (25, 100)),
        (LimitLong(max=100, min=40), (10, 20), (20, 40)),
        (LimitLong(max=100, min=40), (60, 50), (60, 50)),
        (LimitShort(max=25), (50, 200), (25, 100)),
        (LimitShort(min=100), (50, 200), (100, 400)),
        (ResizeToMultiple(32), (70, 100), (64, 96)),
        (ResizeToMultiple(32), (7, 100), (32, 96)),
        (PadToAspect(1.5), (50, 60), (50, 75)),
        (PadToAspect(1.5), (50, 120), (80, 120)),
        (PadToAspect(2.0), (50, 100), (50, 100)),
    ],
)
def test_steps_to_sides_of_a_kind(step: Step, size: tuple[int, int], expected: tuple[int, int]) -> None:
    image, geometry = apply(step, flat(*size))
    assert image.shape[:2] == expected
    stretched = not isinstance(step, PadToAspect)
    assert (geometry.scale_y, geometry.scale_x) == (
        (expected[0] / size[0], expected[1] / size[1]) if stretched else (1.0, 1.0)
    )


@pytest.mark.parametrize("step", [LimitShort(min=512), ResizeToMultiple(4096), PadToStride(8192), PadToAspect(1.0)])
def test_a_picture_that_a_step_would_blow_up_is_refused_before_memory_is_spent(step: Step) -> None:
    thread = np.broadcast_to(np.uint8(0), (30_000, 1, 3))
    with pytest.raises(TooLarge, match="1x30000 becomes") as refusal:
        apply(step, thread)
    assert refusal.value.hint


def test_the_way_back_of_maps_is_kept_step_by_step() -> None:
    steps = (ResizeLong(64), Pad((64, 64)), CenterCrop((60, 62)))
    _, geometry = Recipe(steps).prepare(flat(50, 200))
    assert geometry.undo == (Undo((64, 64), (-2, -1)), Undo((16, 64), (0, 0)), Undo((50, 200)))


def test_margins_may_have_a_colour() -> None:
    image, _ = apply(Pad((2, 2), fill=(1, 2, 3)), flat(1, 1))
    assert image[1, 1].tolist() == [1, 2, 3]


def test_gray_weighs_the_channels_as_bt601() -> None:
    image, _ = apply(Gray(), np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8))
    assert image.shape == (1, 4, 1)
    assert image[0, :, 0].tolist() == [76, 150, 29, 255]


# Geometry by properties


def prepared_by(steps: list[Step], image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Geometry]:
    """Skips the examples where a step refuses the picture."""
    try:
        return Recipe(tuple(steps)).prepare(image)
    except TooLarge:
        reject()


@given(height=side, width=side, steps=st.lists(GEOMETRIC, max_size=3))
@settings(max_examples=150, deadline=None)
def test_corners_of_the_picture_come_back_exactly(height: int, width: int, steps: list[Step]) -> None:
    """Whatever the steps, a box around the whole picture in the prepared one is the whole original picture."""
    geometry = prepared_by(steps, flat(height, width))[1]
    left, top = geometry.offset_x, geometry.offset_y
    right, bottom = left + width * geometry.scale_x, top + height * geometry.scale_y
    box = np.array([[left, top, right, bottom]], np.float32)
    assert geometry.to_original(box)[0] == pytest.approx(
        [0, 0, width, height], abs=5e-3
    )  # of 4-byte floats, twice over


@given(
    height=st.integers(4, 200), width=st.integers(4, 200), size=st.tuples(st.integers(40, 160), st.integers(40, 160))
)
@settings(max_examples=60, deadline=None)
def test_letterbox_shows_the_picture_just_where_the_geometry_says(
    height: int, width: int, size: tuple[int, int]
) -> None:
    image, geometry = apply(Letterbox(size), flat(height, width))
    rows, columns = np.nonzero((image == 200).all(axis=2))
    assert image.shape[:2] == size
    assert (columns.min(), rows.min()) == (geometry.offset_x, geometry.offset_y)
    assert columns.max() + 1 - columns.min() == pytest.approx(width * geometry.scale_x)
    assert rows.max() + 1 - rows.min() == pytest.approx(height * geometry.scale_y)
    assert geometry.scale_x == pytest.approx(geometry.scale_y, abs=1 / min(height, width))


@given(height=side, width=side, step=GEOMETRIC)
@settings(max_examples=100, deadline=None)
def test_a_step_that_promises_a_size_keeps_to_it(height: int, width: int, step: Step) -> None:
    assume(not isinstance(step, Pad) or (height <= step.size[0] and width <= step.size[1]))
    image, _ = apply(step, flat(height, width))
    assert step.output_size() in (None, image.shape[:2])
    assert image.dtype == np.uint8


@given(height=side, width=side, steps=st.lists(GEOMETRIC, max_size=3))
@settings(max_examples=50, deadline=None)
def test_preparing_leaves_the_picture_as_it_was(height: int, width: int, steps: list[Step]) -> None:
    picture = tiny_models.picture(height, width)
    before = picture.copy()
    prepared_by(steps, picture)
    assert np.array_equal(picture, before)


def test_boxes_are_cut_at_the_borders_of_the_original() -> None:
    geometry = Geometry(100, 200, 0.5, 0.5, 10, 20)
    boxes = np.array([[-5, -5, 500, 500], [10, 20, 35, 45]], np.float32)
    assert geometry.to_original(boxes).tolist() == [[0, 0, 200, 100], [0, 0, 50, 50]]


@pytest.mark.parametrize(
    ("steps", "size"),
    [
        ((), None),
        ((Letterbox((64, 32)),), (64, 32)),
        ((ResizeShort(256), CenterCrop((224, 224))), (224, 224)),
        ((Resize((28, 28)), Gray()), (28, 28)),
        ((Resize((48, 320), keep_ratio=True),), None),
        ((CenterCrop((224, 224)), ResizeShort(256)), None),
        ((Resize((300, 320)), PadToStride(32)), (320, 320)),
        ((ResizeShort(256), PadToStride(32)), None),
    ],
)
def test_a_recipe_knows_the_size_that_it_ends_in(steps: tuple[Step, ...], size: tuple[int, int] | None) -> None:
    assert Recipe(steps).output_size() == size


# Arithmetic

ARITHMETICS = (
    Arithmetic(),
    Arithmetic(1.0),
    Arithmetic(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Arithmetic(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bgr"),
    Arithmetic(1.0, (103.53, 116.28, 123.675), (57.375, 57.12, 58.395), "bgr"),
    Arithmetic(1 / 127.5, (1.0, 1.0, 1.0)),
    Arithmetic(1 / 255, (0.5,), (0.25,)),
)


def by_numpy(arithmetic: Arithmetic, batch: NDArray[np.uint8], layout: str) -> NDArray[np.float64]:
    ordered = batch[..., ::-1] if arithmetic.channels == "bgr" else batch
    values: NDArray[np.float64] = (ordered * arithmetic.scale - np.array(arithmetic.mean)) / np.array(arithmetic.std)
    return values if layout == "NHWC" else values.transpose(0, 3, 1, 2)


def batch_of(arithmetic: Arithmetic, seed: int = 0) -> NDArray[np.uint8]:
    shape = (2, 5, 7, len(arithmetic.mean))
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_arithmetic_is_scale_then_mean_then_std(arithmetic: Arithmetic, layout: str, dtype: str) -> None:
    batch = batch_of(arithmetic)
    out = arithmetic.apply(batch, layout, np.dtype(dtype))
    assert out.dtype == dtype
    expected = by_numpy(arithmetic, batch, layout)
    assert np.allclose(
        out, expected, rtol=1e-5 if dtype == "float32" else 2e-3, atol=1e-5 if dtype == "float32" else 5e-3
    )


@given(
    scale=st.sampled_from([1 / 255, 1.0, 1 / 128]),
    mean=st.tuples(*[st.floats(-200, 200)] * 3),
    std=st.tuples(*[st.floats(0.1, 100)] * 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_arithmetic_agrees_with_numpy_for_any_numbers(
    scale: float, mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> None:
    arithmetic = Arithmetic(scale, mean, std)
    batch = batch_of(arithmetic, seed)
    out = arithmetic.apply(batch, "NCHW", np.dtype(np.float32))
    expected = by_numpy(arithmetic, batch, "NCHW")
    assert np.abs(out - expected).max() <= 1e-5 * (np.abs(expected).max() + max(map(abs, mean)) / min(std))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_the_arithmetic_compiled_into_the_graph_is_the_same(
    arithmetic: Arithmetic, layout: Any, tmp_path: Path
) -> None:
    channels = len(arithmetic.mean)
    graph = tiny_models.Graph()
    shape: list[int | str] = ["batch", channels, 5, 7] if layout == "NCHW" else ["batch", 5, 7, channels]
    graph.add("Identity", graph.add("Mul", graph.input("x", shape), graph.constant([1.0])), output="y")
    graph.output("y", shape)
    model = graph.save(tmp_path / "same.onnx")
    batch = batch_of(arithmetic)
    image = ImageInput("x", layout, arithmetic, (5, 7))
    answers = []
    for backend in ("openvino", "onnxruntime"):
        context = get_backend(backend).load(Source(model), LoadOptions(image=image, max_batch_size=2)).clone()
        answers.append(np.array(context.infer({"x": batch})["y"]))
    expected = arithmetic.apply(batch, layout, np.dtype(np.float32))
    assert np.allclose(answers[0], expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(answers[1], expected)


# As written in model.yaml


def test_a_preprocess_list_becomes_a_recipe() -> None:
    written: list[dict[str, Any]] = [
        {"resize": {"size": [480, 640], "keep_ratio": True, "interpolation": "cubic"}},
        {"resize_short": 256},
        {"center_crop": 224},
        {"letterbox": {"size": 640, "fill": 0}},
        {"pad": [300, 200]},
        {"pad_to_stride": 32},
        {"gray": None},
        {"normalize": {"scale": 1, "mean": 127.5, "std": [1, 2, 3], "channels": "bgr"}},
    ]
    assert recipe_from(written) == Recipe(
        (
            Resize((480, 640), True, "cubic"),
            ResizeShort(256),
            CenterCrop((224, 224)),
            Letterbox((640, 640), 0),
            Pad((300, 200)),
            PadToStride(32),
            Gray(),
        ),
        Arithmetic(1, (127.5,) * 3, (1, 2, 3), "bgr"),
    )


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"resise": 3}, r"preprocess\[0\]: unknown step 'resise' \(allowed: resize, .*normalize\)"),
        (
            {"resize": {"sise": 3}},
            r"preprocess\[0\].resize: unknown key sise \(allowed: size, keep_ratio, interpolation, .*\)",
        ),
        ({"resize": "big"}, r"preprocess\[0\].resize.size: "),
        ({"resize": {"size": [1, 2, 3]}}, r"preprocess\[0\].resize.size"),
        ({"resize": {"size": 64, "interpolation": "magic"}}, r"resize.interpolation: .*'nearest', 'linear'"),
        ({"resize": {}}, r"preprocess\[0\].resize.size: Field required"),
        ({"resize": 0}, r"preprocess\[0\].resize.size"),
        ({"resize_short": -1}, r"preprocess\[0\].resize_short.size"),
        ({"pad_to_stride": 0}, r"preprocess\[0\].pad_to_stride.stride"),
        ({"letterbox": {"size": 64, "fill": 300}}, r"preprocess\[0\].letterbox.fill"),
        ({"normalize": {"std": [1, 0, 1]}}, r"preprocess\[0\].normalize.std"),
        ({"normalize": {"scale": 0}}, r"preprocess\[0\].normalize.scale"),
        ({"normalize": {"mean": [1, 2]}}, r"preprocess\[0\].normalize.mean"),
        ({"normalize": {"mean": [float("nan")] * 3}}, r"preprocess\[0\].normalize.mean"),
        ({"resize": 1, "pad": 2}, r"preprocess\[0\] is one step"),
        ({}, r"preprocess\[0\] is one step"),
    ],
)
def test_a_wrong_step_is_named_with_what_is_allowed(written: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidModel) as refusal:
        recipe_from([written])
    assert re.search(says, str(refusal.value)), str(refusal.value)
