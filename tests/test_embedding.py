"""Embeddings against ONNX Runtime and NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from visionpool.errors import InvalidModel, InvalidOption
from visionpool.results import EmbeddingResult
from visionpool_server.models.paddle_classification import classification, features
from visionpool_server.models.preprocess import recipe_from

from tests import tiny_models
from tests.segmentation_models import BACKENDS, classifier, planes, run, served

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TRANSFORMS = [
    {"ResizeImage": {"size": 32, "return_numpy": False, "interpolation": "bilinear", "backend": "cv2"}},
    {"NormalizeImage": {"scale": "1.0/255.0", "mean": MEAN, "std": STD, "order": "hwc"}},
    {"ToCHWImage": None},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ending", ["logits", "vector"])
@pytest.mark.parametrize("normalize", [None, True, False])
def test_a_picture_becomes_a_vector_of_length_1(
    tmp_path: Path, ending: str, normalize: bool | None, backend: str
) -> None:
    model = classifier(tmp_path / "m.onnx", ending, classes=24)
    preprocess: list[Any] = [{"resize": 32}, {"normalize": {"mean": MEAN, "std": STD}}]
    config: dict[str, Any] = {"task": "embedding", "preprocess": preprocess}
    config |= {} if normalize is None else {"postprocess": {"normalize": normalize}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    with served(tmp_path, backend) as predict:
        for seed, size in enumerate([(32, 32), (50, 71), (1, 1)]):
            image = tiny_models.picture(*size, seed=seed)
            vector = run(model, planes(cv2.resize(image, (32, 32)), MEAN, STD)).ravel()
            expected = vector if normalize is False else vector / np.linalg.norm(vector)
            result = predict(image)
            assert isinstance(result, EmbeddingResult)
            assert np.allclose(result.embedding, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        with pytest.raises(InvalidOption, match="top_k means nothing"):
            predict(image, top_k=3)


def test_paddle_features_are_an_embedding(tmp_path: Path) -> None:
    model = classifier(tmp_path / "inference.onnx", "logits", classes=24)
    (tmp_path / "inference_rec.yaml").write_text(yaml.safe_dump({"RecPreProcess": {"transform_ops": TRANSFORMS}}))
    image = tiny_models.picture(40, 60)
    vector = run(model, planes(cv2.resize(image, (32, 32)), MEAN, STD)).ravel()
    with served(tmp_path, "openvino") as predict:
        assert (predict.model.task, predict.model.source) == ("embedding", "inference_rec.yaml")  # type: ignore[attr-defined]
        assert np.dot(predict(image).embedding, vector / np.linalg.norm(vector)) == pytest.approx(1, abs=1e-5)


def test_both_of_paddles_files_say_the_same() -> None:
    old = features({"RecPreProcess": {"transform_ops": TRANSFORMS}, "RecPostProcess": None})
    new = classification({"PreProcess": {"transform_ops": TRANSFORMS}, "PostProcess": {"NormalizeFeatures": None}})
    assert (old.family, new.family) == ("embedding", "embedding")
    assert recipe_from(old.preprocess or ()) == recipe_from(new.preprocess or ())


def test_a_vector_of_zeros_stays_one(tmp_path: Path) -> None:
    graph = tiny_models.Graph()
    picture = graph.input("x", ["batch", 3, 8, 8])
    graph.add("Flatten", graph.add("GlobalAveragePool", graph.add("Mul", picture, graph.constant(0.0))), output="y")
    graph.output("y", ["batch", 3])
    graph.save(tmp_path / "m.onnx")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"family": "embedding", "preprocess": [{"resize": 8}]}))
    with served(tmp_path, "openvino") as predict:
        assert predict(tiny_models.picture(9, 9)).embedding == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "how pictures are prepared"),
        ({"preprocess": [{"resize": 32}], "postprocess": {"multi_label": True}}, "multi_label means nothing"),
    ],
)
def test_what_is_missing_or_means_nothing_is_said(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    classifier(tmp_path / "m.onnx", "logits")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"family": "embedding", **config}))
    with pytest.raises(InvalidModel, match=says) as refusal, served(tmp_path, "openvino"):
        pass
    assert refusal.value.hint
