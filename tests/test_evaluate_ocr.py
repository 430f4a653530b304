"""`visionpool evaluate` of models that read: pipelines and single steps, here and on a server, and how two of them compare.

The models are those of `ocr_models`, which really read; the truth of each page is what was written on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from visionpool.errors import InvalidSetting
from visionpool.results import EmbeddingResult, OCRResult
from visionpool_server.evaluation import Settings, compare, open_model, read_dataset
from visionpool_server.evaluation.agreement import Comparer
from visionpool_server.evaluation.run import options_for
from visionpool_server.families import Options
from visionpool_server.models.loader import Defaults

from tests import ocr_models as tiny
from tests.real_server import Server, serving
from tests.test_evaluate import measured, printed, refused

PAGES = [tiny.written(seed, 3) for seed in range(5)]
ALL = [" ".join(tiny.text_of(lines)) for lines in PAGES]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pipeline(tmp_path_factory.mktemp("pipeline") / "ocr")


@pytest.fixture(scope="module")
def unturned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline without a classifier: it reads lines that stand on their heads from the wrong end."""
    return tiny.pipeline(tmp_path_factory.mktemp("pipeline") / "unturned", classify=False)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps") / "reader"
    tiny.recogniser(folder / "model.onnx")
    said = {"task": "ocr", "family": "ocr_recognition", "labels": list(tiny.LETTERS)}
    (folder / "model.yaml").write_text(yaml.safe_dump(said))
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps") / "finder"
    tiny.detector(folder / "model.onnx")
    (folder / "model.yaml").write_text("{task: ocr, family: ocr_detection}")
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pages")
    for index, lines in enumerate(PAGES):
        (root / f"{index}.png").write_bytes(tiny.png(tiny.page(lines)))
    (root / "rec_gt.txt").write_text("".join(f"{i}.png\t{text}\n" for i, text in enumerate(ALL)))
    return root


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One line a picture; of one the truth says a letter too many."""
    root = tmp_path_factory.mktemp("lines")
    words = ("ABBA", "FEE", "DECADE")
    for word in words:
        (root / f"{word}.png").write_bytes(tiny.png(tiny.bar(word)[:-1]))
    (root / "rec_gt.txt").write_text("".join(f"{w}.png\t{w.replace('FEE', 'FEED')}\n" for w in words))
    return root


@pytest.fixture(scope="module")
def server(pipeline: Path) -> Iterator[Server]:
    with serving(pipeline) as running:
        yield running


class TestPipelines:
    def test_pages_are_read_as_they_were_written(self, pipeline: Path, pages: Path) -> None:
        report = measured(pipeline, pages)
        assert report["metrics"] == {"cer": 0, "line_accuracy": 1, "similarity": 1}
        assert (report["model"], report["where"], report["pictures"]) == ("ocr", "openvino CPU f32", len(PAGES))
        assert report["options"] == {}

    def test_a_server_gives_the_same(self, server: Server, pages: Path) -> None:
        assert measured("ocr", pages, "--url", server.url)["metrics"]["cer"] == 0

    def test_what_a_pipeline_without_a_classifier_reads_wrongly_counts(self, unturned: Path, pages: Path) -> None:
        wrong = ["".join(reversed(text[1:])) if text.startswith("-") else text for lines in PAGES for text in lines]
        assert wrong != [text for lines in PAGES for text in tiny.text_of(lines)], "no line stands on its head"
        report = measured(unturned, pages)
        assert report["metrics"]["cer"] > 0.05
        assert {entry["truth"] for entry in report["mistakes"]} <= set(ALL)

    def test_two_are_compared_and_where_they_differ_is_drawn(
        self, pipeline: Path, unturned: Path, pages: Path, tmp_path: Path
    ) -> None:
        comparison = measured(pipeline, pages, "--against", unturned, "--save-worst", tmp_path)
        alone = measured(unturned, pages)
        assert comparison["difference"]["cer"] == pytest.approx(alone["metrics"]["cer"])
        assert 0.3 < comparison["agreement"] < 1
        differ = [entry for entry in comparison["pictures"] if entry["what"]]
        assert all(entry["first"] in ALL and entry["second"] not in ALL for entry in differ)
        assert len(list(tmp_path.iterdir())) == len(differ) > 0

    def test_two_runtimes_agree(self, pipeline: Path, pages: Path) -> None:
        told = printed(pipeline, pages, "--against-backend", "onnxruntime")
        assert "the two agree on every picture" in told

    def test_steps_beside_it_come_with_it(self, pipeline: Path, pages: Path, tmp_path: Path) -> None:
        """A folder in which the pipeline names models that are served by themselves."""
        for step, part in (("ocr_detection", "tiny_det"), ("ocr_recognition", "tiny_rec")):
            said = {"task": "ocr", "family": step, "labels": list(tiny.LETTERS) if part == "tiny_rec" else None}
            (tmp_path / part).mkdir()
            (tmp_path / part / "model.onnx").symlink_to(pipeline / part / "model.onnx")
            (tmp_path / part / "model.yaml").write_text(yaml.safe_dump({k: v for k, v in said.items() if v}))
        (tmp_path / "both").mkdir()
        (tmp_path / "both" / "model.yaml").write_text("{task: ocr, steps: {detect: tiny_det, read: tiny_rec}}")
        report = measured(tmp_path, pages)
        assert (report["model"], report["where"]) == ("both", "openvino CPU f32")

    def test_a_data_set_of_classes_is_none_for_it(self, pipeline: Path, tmp_path: Path) -> None:
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.png").write_bytes(tiny.png(tiny.bar("ABBA")))
        refused([pipeline, tmp_path], "ocr is a model for ocr", "is for classification")

    def test_its_own_options_are_asked_for(self, pipeline: Path) -> None:
        with open_model(pipeline, Defaults()) as model:
            assert options_for(model, Settings(Options(score_threshold=0.2))).given() == {"score_threshold": 0.2}


class TestSteps:
    def test_a_recogniser_alone_reads_lines(self, recogniser: Path, lines: Path) -> None:
        report = measured(recogniser, lines)
        assert report["metrics"]["cer"] == pytest.approx(1 / len("ABBAFEEDDECADE"))
        assert [(entry["truth"], entry["predicted"]) for entry in report["mistakes"]] == [("FEED", "FEE")]

    def test_so_does_the_step_of_a_pipeline_on_a_server(self, server: Server, lines: Path) -> None:
        assert measured("ocr.read", lines, "--url", server.url)["metrics"]["line_accuracy"] == pytest.approx(2 / 3)

    def test_a_detector_reads_nothing_and_says_so(self, detector: Path, pages: Path) -> None:
        refused([detector, pages], "finds lines of text and reads none", "evaluate the pipeline")

    def test_two_detectors_are_compared_by_their_lines(self, detector: Path, pages: Path) -> None:
        dataset = read_dataset(pages, "pictures")
        with open_model(detector, Defaults()) as one, open_model(detector, Defaults()) as other:
            comparison = compare(one, other, dataset)
        assert comparison.agreement == 1
        assert [entry.details["matched"] for entry in comparison.pictures] == [3] * len(PAGES)


class TestAgreement:
    def test_lines_that_one_detector_misses_are_counted(self) -> None:
        quads = ((0, 0, 20, 0, 20, 10, 0, 10), (0, 20, 20, 20, 20, 30, 0, 30))
        found = Comparer((), ()).compare("a", OCRResult(quads, rec_scores=(0.9, 0.8)), OCRResult(quads[:1], (), (0.9,)))
        assert (found.agreement, found.what) == (0.5, "missing line")

    def test_long_texts_are_shown_around_what_differs(self) -> None:
        before, after = "x" * 50, "y" * 50
        first, second = OCRResult(text=(before, "cat", after)), OCRResult(text=(before, "cow", after))
        what = Comparer((), ()).compare("a", first, second).what
        assert what == f"'…{'x' * 10} cat {'y' * 11}…' → '…{'x' * 10} cow {'y' * 11}…'"
        assert Comparer((), ()).compare("a", OCRResult(text=("ab",)), OCRResult(text=("abc",))).what == "'ab' → 'abc'"

    def test_embeddings_agree_by_their_angle(self) -> None:
        found = Comparer((), ()).compare("a", EmbeddingResult((1.0, 0.0)), EmbeddingResult((0.6, 0.8)))
        assert found.agreement == pytest.approx(0.6)
        assert found.what == "cosine 0.600"
        with pytest.raises(InvalidSetting, match="has 1 numbers, the other's 2"):
            Comparer((), ()).compare("a", EmbeddingResult((1.0,)), EmbeddingResult((0.6, 0.8)))


def test_real_lines_are_read_by_a_pipeline(testdata: Path, tmp_path: Path) -> None:
    """Nine pictures of a word each, read by eye; one is too tight for the detector's liking."""
    models = testdata / "models"
    for name in ("ppocr_det", "ppocr_cls", "ppocr_rec_en"):
        (tmp_path / "ocr").mkdir(exist_ok=True)
        (tmp_path / "ocr" / name).symlink_to(models / name)
    (tmp_path / "ocr" / "model.yaml").write_text("{task: ocr, labels: ppocr_rec_en/en_dict.txt}")
    words = ("Performance", "GDANSK", "Server", "Model", "OpenVINO", "Pipeline", "2021", "Intel", "Rotation")
    truth = "".join(f"ovms_text_images_{index}.jpg\t{word}\n" for index, word in enumerate(words))
    (tmp_path / "rec_gt.txt").write_text(truth)
    report = measured(tmp_path / "ocr", tmp_path / "rec_gt.txt", "--images", testdata / "images" / "ocr")
    assert report["pictures"] == 9
    assert report["metrics"]["line_accuracy"] >= 8 / 9
