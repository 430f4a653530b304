"""Masks and maps in compact forms, held against COCO's own tools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco
from visionpool_server.imaging.masks import map_of, mask_of, png_of, rle_of, rle_within

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't:DeprecationWarning"
)  # pycocotools' own

side = st.integers(1, 40)


def theirs(mask: NDArray[np.uint8]) -> str:
    return str(coco.encode(np.asfortranarray(mask))["counts"].decode())


def noise(seed: int, shape: tuple[int, int], share: float) -> NDArray[np.uint8]:
    return (np.random.default_rng(seed).random(shape) < share).astype(np.uint8)


@given(height=side, width=side, seed=st.integers(0, 2**32), share=st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.9, 1.0]))
@settings(max_examples=400, deadline=None)
def test_runs_are_those_of_cocos_tools(height: int, width: int, seed: int, share: float) -> None:
    mask = noise(seed, (height, width), share)
    assert rle_of(mask) == theirs(mask)
    assert (mask_of(theirs(mask), (height, width)) == mask).all()


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9000), (9000, 1), (480, 640), (2160, 3840)], ids=str)
def test_empty_and_full_masks(value: int, shape: tuple[int, int]) -> None:
    """Also with runs of millions, which take several characters."""
    mask = np.full(shape, value, np.uint8)
    assert rle_of(mask) == theirs(mask)
    assert (coco.decode({"size": list(shape), "counts": rle_of(mask)}) == mask).all()


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_crop_has_the_runs_of_the_whole_it_lies_in(data: st.DataObject) -> None:
    """Also one that fills the whole from top to bottom, whose runs go on in the next column; and an empty one."""
    height, width = data.draw(side), data.draw(side)
    rows, columns = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    top, left = data.draw(st.integers(0, height - rows)), data.draw(st.integers(0, width - columns))
    crop = noise(data.draw(st.integers(0, 99)), (rows, columns), data.draw(st.sampled_from([0.0, 0.5, 0.95, 1.0])))
    whole = np.zeros((height, width), np.uint8)
    whole[top : top + rows, left : left + columns] = crop
    assert rle_within(crop, (left, top), (height, width)) == theirs(whole)


def test_any_value_but_0_counts_as_covered() -> None:
    mask = np.array([[0, 255], [7, 0]], np.uint8)
    assert rle_of(mask) == theirs((mask > 0).astype(np.uint8))
    assert rle_of(mask.astype(bool).view(np.uint8)) == rle_of(mask)


@pytest.mark.parametrize("runs", ["", "9", "0", "`", "~~~", "44444"])
def test_runs_of_another_size_are_refused(runs: str) -> None:
    with pytest.raises(ValueError, match="the runs cover"):
        mask_of(runs, (3, 4))


@pytest.mark.parametrize("largest", [0, 1, 255, 256, 65_535])
def test_maps_come_back_from_png(largest: int) -> None:
    values = np.random.default_rng(0).integers(0, largest + 1, (37, 53))
    values[0, 0] = largest
    assert (map_of(png_of(values)) == values).all()


@pytest.mark.parametrize("data", ["", "AAAA"])
def test_what_is_no_png_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match="no PNG"):
        map_of(data)
