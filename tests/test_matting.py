"""Alphas pixel by pixel against ONNX Runtime and OpenCV's resize, step by step as PaddleSeg's Matting brings them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool.results import SegmentationResult
from visionpool_server.families import FamilySpec, Options
from visionpool_server.families.matting import Matting
from visionpool_server.imaging.draw import draw
from visionpool_server.imaging.masks import map_of
from visionpool_server.imaging.recipe import Recipe, Resize
from visionpool_server.models import paddle_segmentation

from tests import tiny_models
from tests.segmentation_models import BACKENDS, planes, run, segmenter, served

SIZES = ((64, 64), (97, 61), (33, 120), (200, 150))


def resized(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR))


def reference(model: Path, image: NDArray[np.uint8]) -> NDArray[Any]:
    """ResizeByShort 64, ResizeToIntMult 8; and back the same way."""
    size = image.shape[0], image.shape[1]
    middle = round(size[0] * 64 / min(size)), round(size[1] * 64 / min(size))
    last = middle[0] - middle[0] % 8, middle[1] - middle[1] % 8
    alpha = run(model, planes(resized(resized(image, middle), last))).reshape(last)
    return resized(resized(alpha, middle), size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ending", ["alpha", "plane"])
def test_a_matting_export_gives_the_alpha_of_each_pixel(tmp_path: Path, ending: str, backend: str) -> None:
    model = segmenter(tmp_path / "model.onnx", ending)
    transforms = [
        {"type": "LoadImages"},
        {"type": "ResizeByShort", "short_size": 64},
        {"type": "ResizeToIntMult", "mult_int": 8},
        {"type": "Normalize"},
    ]
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": {"transforms": transforms}}))
    with served(tmp_path, backend) as predict:
        assert predict.model.family_name == "matting"  # type: ignore[attr-defined]
        for seed, size in enumerate(SIZES):
            image = tiny_models.picture(*size, seed=seed)
            result = predict(image)
            assert isinstance(result, SegmentationResult)
            assert result.shape == size and result.contain_score_map
            assert result.labels == ("background", "foreground")
            alpha, expected = np.array(result.score_map).reshape(size), reference(model, image)
            assert np.abs(alpha - expected).max() < 1e-3
            clear = np.abs(expected - 0.5) > 1e-3
            assert np.array_equal(np.array(result.label_map).reshape(size)[clear], expected[clear] >= 0.5)
        compact = predict(image, compact=True)
        assert np.abs(map_of(compact.score_map_png) / 255 - expected).max() < 3e-3
        assert sum(predict(image, score_threshold=0.87).label_map) < sum(result.label_map)


def spec(outputs: dict[str, tuple[int | None, ...]], **settings: Any) -> FamilySpec:
    recipe = Recipe((Resize((8, 8)),))
    return FamilySpec({"x": (None, 3, 8, 8)}, outputs, recipe=recipe, settings=settings)


def test_of_several_outputs_the_alpha_is_taken_by_its_name() -> None:
    outputs: dict[str, tuple[int | None, ...]] = {
        "fgr": (None, 3, 8, 8),
        "pha": (None, 1, 8, 8),
        "hid": (None, 1, 8, 8),
    }
    family = Matting(spec(outputs))
    geometry = family.prepare(np.zeros((8, 8, 3), np.uint8)).geometry
    values = {name: np.full([size or 1 for size in shape[1:]], 0.1, np.float32) for name, shape in outputs.items()}
    values["pha"] += 0.65
    assert set(family.finish(values, geometry, Options()).score_map) == {0.75}
    assert set(Matting(spec(outputs, output="hid")).finish(values, geometry, Options()).score_map) == {0.1}


@pytest.mark.parametrize(
    "outputs", [{"y": (None, 3, 8, 8)}, {"a": (None, 1, 8, 8), "b": (None, 1, 8, 8)}, {"y": (None, 2)}]
)
def test_outputs_that_no_matting_model_has_are_refused(outputs: dict[str, tuple[int | None, ...]]) -> None:
    with pytest.raises(InvalidModel, match="a matting model has one output") as refusal:
        Matting(spec(outputs))
    assert "postprocess.output" in (refusal.value.hint or "")


def test_paddle_3_says_it_by_the_name_of_the_model() -> None:
    transforms = [{"type": "Resize", "target_size": [8, 8]}]
    data = {"Global": {"model_name": "PP-MattingV2"}, "Deploy": {"transforms": transforms}}
    assert paddle_segmentation.segmentation(data).family == "matting"


def test_the_drawn_picture_is_the_foreground_on_a_chequered_ground() -> None:
    image = tiny_models.picture(120, 160)
    alpha = np.zeros((120, 160))
    alpha[:, 100:] = 1
    labels = ("background", "foreground")
    result = SegmentationResult(
        tuple((alpha >= 0.5).astype(int).ravel().tolist()), tuple(alpha.ravel().tolist()), (120, 160), True, labels
    )
    drawn = draw(image, result)
    assert np.array_equal(drawn[80:, 100:], image[80:, 100:])
    ground = drawn[80:, :100].reshape(-1, 3)
    assert len(np.unique(ground, axis=0)) == 2 and (ground == ground[:, :1]).all()  # two greys
