"""OCR from pictures to text through real models that the tests make (`ocr_models`): every transport, and many at once."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import visionpool
import yaml
from visionpool.errors import (
    DeadlineExceeded,
    InvalidImage,
    InvalidModel,
    InvalidOption,
    QueueFull,
    TooLarge,
    Unavailable,
)
from visionpool.results import ClassifyResult, OCRResult
from visionpool_server.api.kserve.control import retire
from visionpool_server.app import offline
from visionpool_server.families import Options
from visionpool_server.imaging.text_lines import WIDTHS
from visionpool_server.models.bundle import Bundle
from visionpool_server.models.loader import Defaults, Model, load_model
from visionpool_server.models.repository import locate
from visionpool_server.pool import Pool
from visionpool_server.service import Ask, Service

from tests import ocr_models as tiny
from tests.real_server import Server, serving

AT_ONCE = 32


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ocr`, whose steps join up to eight lines to a batch."""
    made = tiny.pipeline(tmp_path_factory.mktemp("ocr") / "ocr")
    for step in ("tiny_cls", "tiny_rec"):
        (made / step / "model.yaml").write_text("batching: {max_batch_size: 8}\n", encoding="utf-8")
    return made


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as running:
        yield running


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with offline([folder], Defaults(), max_pixels=50_000_000) as made:
        yield made


@pytest.fixture
def fresh(folder: Path) -> Iterator[Service]:
    """One that has done nothing yet."""
    with offline([folder], Defaults(), max_pixels=50_000_000) as made:
        yield made


def free_places(pool: Pool) -> int:
    """How many places a pool that nobody asks has."""
    return next(count - 1 for count in range(1, 10_000) if not has_room(pool, count))


def has_room(pool: Pool, count: int) -> bool:
    try:
        pool.check_room(count)
    except TooLarge:
        return False
    return True


def read(service: Service, lines: list[str], **options: Any) -> OCRResult:
    picture = tiny.png(tiny.page(lines))
    result = asyncio.run(service.predict(service.models.get("ocr"), picture, Ask(Options(**options)))).result
    assert isinstance(result, OCRResult)
    return result


class TestReading:
    @pytest.mark.parametrize("seed", range(12))
    def test_a_page_is_read_line_by_line(self, service: Service, seed: int) -> None:
        lines = tiny.written(seed)
        result = read(service, lines)
        assert list(result.text) == tiny.text_of(lines)
        assert list(result.cls_labels) == [int(line.startswith("-")) for line in lines]
        assert len(result.boxes) == len(result.rec_scores) == len(result.cls_scores) == len(lines)
        for i, (box, line) in enumerate(zip(result.boxes, lines, strict=True)):
            wide = 16 + len(line.removeprefix("-")) * 2 * tiny.CELL - 1
            expected = (16, 16 + 48 * i, wide, 16 + 48 * i, wide, 48 + 48 * i, 16, 48 + 48 * i)
            np.testing.assert_allclose(box, expected, atol=1)  # OpenCV's 446.99998, cut to a whole number

    def test_the_steps_say_the_same_when_they_are_asked_alone(self, service: Service) -> None:
        picture = tiny.png(tiny.page(["ACE", "-BD", "FEDCBA"]))
        found = asyncio.run(service.predict(service.models.get("ocr.detect"), picture)).result
        assert isinstance(found, OCRResult)
        assert found.boxes == read(service, ["ACE", "-BD", "FEDCBA"]).boxes
        assert found.text == ()
        line = tiny.png(tiny.bar("FACE")[:-1])
        told = asyncio.run(service.predict(service.models.get("ocr.read"), line)).result
        assert isinstance(told, OCRResult)
        assert (told.text, told.boxes) == (("FACE",), ((0, 0, 191, 0, 191, 31, 0, 31),))
        seen = asyncio.run(service.predict(service.models.get("ocr.classify"), line)).result
        assert isinstance(seen, ClassifyResult)
        assert (seen.labels, seen.label_ids) == (("0",), (0,))

    def test_a_turned_page_is_read_as_who_turns_it_back_would(self, service: Service) -> None:
        lines = ["FACED", "ABE", "DEAFBEEF"]
        page = tiny.page(lines)
        model = service.models.get("ocr")
        for quarters in (1, 2, 3):
            turned = asyncio.run(service.predict(model, tiny.png(np.rot90(page, quarters)))).result
            assert isinstance(turned, OCRResult)
            assert list(turned.text) == lines

    def test_where_nothing_is_found_the_whole_picture_is_read(self, service: Service) -> None:
        dim = (tiny.bar("BEAD")[:-1].astype(float) * 0.0 + 40).astype(np.uint8)
        model = service.models.get("ocr")
        nothing = asyncio.run(service.predict(model, tiny.png(dim))).result
        assert nothing == OCRResult()
        everything = asyncio.run(service.predict(model, tiny.png(dim), Ask(Options(score_threshold=0.0)))).result
        assert isinstance(everything, OCRResult)
        assert everything.boxes == ((0, 0, 191, 0, 191, 31, 0, 31),)

    def test_lines_under_the_threshold_are_dropped(self, service: Service) -> None:
        result = read(service, ["ABC", "FED"], score_threshold=0.0)
        assert len(result.text) == 2
        assert read(service, ["ABC", "FED"], score_threshold=1.0) == OCRResult()

    def test_other_options_mean_nothing_to_it(self, service: Service) -> None:
        with pytest.raises(InvalidOption, match="iou_threshold means nothing") as refused:
            read(service, ["A"], iou_threshold=0.5)
        assert refused.value.hint == "it takes score_threshold"

    def test_timings_and_statistics_count_pictures_and_lines(self, fresh: Service) -> None:
        model = fresh.models.get("ocr")
        picture = tiny.png(tiny.page(["AB", "CD", "EF"]))
        (prediction,) = asyncio.run(fresh.predict_many(model, [picture]))
        assert list(prediction.timings) == ["decode", "prepare", "queue", "infer", "finish"]
        assert all(ms > 0 for ms in prediction.timings.values())
        counts = {m.name: m.pool.statistics.snapshot().inference_count for m in fresh.models}
        assert counts == {"ocr": 1, "ocr.detect": 1, "ocr.classify": 3, "ocr.read": 3}

    def test_without_a_classifier_nothing_is_turned(self, tmp_path: Path) -> None:
        tiny.pipeline(tmp_path / "ocr", classify=False)
        with offline([tmp_path / "ocr"], Defaults(), max_pixels=50_000_000) as service:
            result = read(service, ["ABC", "DEF"])
            assert (result.text, result.cls_scores, result.cls_labels) == (("ABC", "DEF"), (), ())


@pytest.fixture(scope="module")
def picture() -> bytes:
    return tiny.png(tiny.page(["FACADE", "-BE", "DEAF", "ABCDEF"]))


@pytest.fixture(scope="module")
def expected(server: Server, picture: bytes) -> str:
    answer = httpx.post(f"{server.url}/v1/models/ocr/predict", content=picture, timeout=60)
    assert answer.status_code == 200, answer.text
    result = answer.json()["results"][0]
    assert result["text"] == ["FACADE", "BE", "DEAF", "ABCDEF"]
    start = answer.text.index("[", answer.text.index('"results"')) + 1
    return answer.text[start : answer.text.index("}", start) + 1]


class TestKserve:
    @pytest.mark.parametrize("shape", [[2], [2, 1]])
    def test_kserve_over_http(self, server: Server, picture: bytes, expected: str, shape: list[int]) -> None:
        sent = triton_http.InferInput("image", shape, "BYTES")
        sent.set_data_from_numpy(np.array([picture, picture], object).reshape(shape))
        with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
            told = client.infer("ocr", [sent]).as_numpy("result")
        assert [text.decode() for text in told.ravel()] == [expected] * 2
        assert list(told.shape) == shape


class TestManyAtOnce:
    def test_no_picture_gets_anothers_text(self, server: Server) -> None:
        """32 different pictures at a time, three rounds, against their own text and the answers they get one by one."""
        pages = [tiny.written(seed, 5) for seed in range(3 * AT_ONCE)]
        bodies = [tiny.png(tiny.page(lines)) for lines in pages]

        async def ask(client: httpx.AsyncClient, body: bytes) -> Any:
            answer = await client.post(f"{server.url}/v1/models/ocr/predict", content=body)
            assert answer.status_code == 200, answer.text
            return answer.json()["results"][0]

        async def all_at_once() -> tuple[list[Any], list[Any]]:
            limits = httpx.Limits(max_connections=AT_ONCE)
            async with httpx.AsyncClient(timeout=120, limits=limits) as client:
                alone = [await ask(client, body) for body in bodies]
                return alone, list(await asyncio.gather(*(ask(client, body) for body in bodies)))

        alone, together = asyncio.run(all_at_once())
        assert [result["text"] for result in together] == [tiny.text_of(lines) for lines in pages]
        assert together == alone

    def test_lines_of_different_pictures_share_batches(self, fresh: Service) -> None:
        model, reader = fresh.models.get("ocr"), fresh.models.get("ocr.read")
        pages = [tiny.written(seed, 1) for seed in range(AT_ONCE)]
        pictures = [tiny.png(tiny.page(lines)) for lines in pages]

        async def ask() -> list[Any]:
            return await asyncio.gather(*(fresh.predict(model, picture) for picture in pictures))

        texts = [prediction.result.text for prediction in asyncio.run(ask())]
        assert texts == [tuple(lines) for lines in pages]  # one line a picture: who shares a batch is of another one
        sizes = Counter({batch.size: batch.compute_infer.count for batch in reader.pool.statistics.snapshot().batches})
        assert sum(size * count for size, count in sizes.items()) == AT_ONCE
        assert max(sizes) > 1

    def test_a_line_reads_the_same_in_a_batch_and_alone(self, service: Service) -> None:
        """Its neighbours may be wider, and change nothing."""
        wide, narrow = "ABCDEFABCDE", "FAB"
        together = read(service, [narrow, wide, narrow, "BEAD"])
        assert together.rec_scores[0] == together.rec_scores[2] == read(service, [narrow]).rec_scores[0]

    def test_more_lines_than_the_reader_has_places(self, tmp_path: Path) -> None:
        folder = tiny.pipeline(tmp_path / "ocr")
        for step in ("tiny_cls", "tiny_rec"):
            (folder / step / "model.yaml").write_text("batching: {max_queue_size: 1}\n", encoding="utf-8")
        lines = [tiny.written(seed, 1)[0] for seed in range(18)]
        with offline([folder], Defaults(), max_pixels=50_000_000) as service:
            model = service.models.get("ocr")
            picture = tiny.png(tiny.page(lines, size=(960, 320)))

            async def ask() -> list[Any]:
                return await asyncio.gather(*(service.predict(model, picture) for _ in range(6)))

            assert [prediction.result.text for prediction in asyncio.run(ask())] == [tuple(lines)] * 6
            assert [m.pool.statistics.snapshot().fail.count for m in service.models] == [0, 0, 0, 0]

    def test_a_step_that_others_fill_is_waited_for(self, fresh: Service) -> None:
        reader, model = fresh.models.get("ocr.read"), fresh.models.get("ocr")

        async def ask() -> Any:
            with reader.pool.places(free_places(reader.pool)):  # whoever else asks it now is refused
                with pytest.raises(QueueFull):
                    await fresh.predict(reader, tiny.png(tiny.bar("FACE")[:-1]))
                task = asyncio.create_task(fresh.predict(model, tiny.png(tiny.page(["FACE", "BED"]))))
                await asyncio.sleep(0.2)
                assert not task.done()
            return (await task).result

        assert asyncio.run(ask()).text == ("FACE", "BED")

    def test_whoever_comes_when_it_is_full_is_refused_before_a_picture_is_decoded(self, tmp_path: Path) -> None:
        folder = tiny.pipeline(tmp_path / "ocr", batching={"max_queue_size": 2})
        with offline([folder], Defaults(), max_pixels=50_000_000) as service:
            model = service.models.get("ocr")
            picture = tiny.png(tiny.page(["AB"]))

            async def ask() -> list[Any]:
                work = [service.predict(model, picture) for _ in range(5)]
                return await asyncio.gather(*work, return_exceptions=True)

            answers = asyncio.run(ask())
            assert sum(isinstance(answer, QueueFull) for answer in answers) == 3
            assert service.models.get("ocr.detect").pool.statistics.snapshot().inference_count == 2


class TestHostilePictures:
    def test_a_hundred_lines(self, service: Service) -> None:
        lines = [tiny.written(seed, 1)[0] for seed in range(72)]
        columns = [tiny.page(lines[i::4], size=(896, 224)) for i in range(4)]
        result = asyncio.run(service.predict(service.models.get("ocr"), tiny.png(np.hstack(columns)))).result
        assert isinstance(result, OCRResult)
        assert list(result.text) == lines  # row by row, each from left to right

    def test_thousands_of_specks_are_a_thousand_boxes_at_most(self, service: Service) -> None:
        specks = np.where(np.random.default_rng(3).random((80, 80, 1)) < 0.5, 240, 20).astype(np.uint8)
        noise = cv2.resize(specks, (960, 960), interpolation=cv2.INTER_NEAREST)[:, :, None].repeat(3, axis=2)
        noise[::12] = noise[1::12] = noise[:, ::12] = noise[:, 1::12] = 20
        model = service.models.get("ocr")
        ask = Ask(Options(score_threshold=0.0), timeout=120)
        result = asyncio.run(service.predict(model, tiny.png(noise), ask)).result
        assert isinstance(result, OCRResult)
        assert 900 < len(result.boxes) <= 1000
        assert read(service, ["FACE"]).text == ("FACE",)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (33, 20_000)])
    def test_odd_shapes(self, service: Service, shape: tuple[int, int]) -> None:
        picture = tiny.png(np.full((*shape, 3), 230, np.uint8))
        result = asyncio.run(service.predict(service.models.get("ocr"), picture)).result
        assert isinstance(result, OCRResult)


class TestFailures:
    def test_of_several_pictures_the_one_that_fails_is_named_and_places_are_given_back(self, service: Service) -> None:
        model = service.models.get("ocr")
        good = tiny.png(tiny.page(["AB"]))
        for _ in range(3):
            with pytest.raises(InvalidImage, match="picture 2 of 3"):
                asyncio.run(service.predict_many(model, [good, good[:60], good]))
        with model.pool.places(model.pool.options.max_queue_size):
            """All places are free again."""

    def test_the_deadline_holds_for_all_steps_together(self, service: Service) -> None:
        model = service.models.get("ocr")
        picture = tiny.png(tiny.page(["ABCDEFABCDE"] * 60, size=(3000, 640)))
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.002 s"):
            asyncio.run(service.predict(model, picture, Ask(timeout=0.002)))
        for name in ("ocr", "ocr.detect", "ocr.classify", "ocr.read"):
            with service.models.get(name).pool.places(100):
                """Nothing is left behind."""

    def test_a_caller_who_goes_away_leaves_nothing_behind(self, service: Service) -> None:
        model = service.models.get("ocr")
        picture = tiny.png(tiny.page(["ABCDEFABCDE"] * 60, size=(3000, 640)))

        async def leave() -> None:
            task = asyncio.create_task(service.predict(model, picture))
            await asyncio.sleep(0.03)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(leave())
        assert model.pool.drain(0.0)
        assert read(service, ["FACE"]).text == ("FACE",)

    def test_a_step_that_is_named_and_goes_away(self, folder: Path, tmp_path: Path) -> None:
        named = steps_by_name(folder, tmp_path / "models")
        with offline([named], Defaults(), max_pixels=50_000_000) as service:
            assert [model.name for model in service.models] == ["finder", "ocr", "speller"]
            assert read(service, ["FACE"]).text == ("FACE",)
            service.models.remove("speller").close()
            with pytest.raises(Unavailable, match="ocr needs the model 'speller' to read"):
                read(service, ["FACE"])

    def test_a_step_that_is_named_and_loaded_anew_loses_no_picture(self, folder: Path, tmp_path: Path) -> None:
        named = steps_by_name(folder, tmp_path / "models")
        with offline([named], Defaults(), max_pixels=50_000_000) as service:
            old = service.models.get("speller")

            async def ask() -> Any:
                with old.pool.places(free_places(old.pool)):  # the picture waits for it
                    page = tiny.png(tiny.page(["FACE"]))
                    task = asyncio.create_task(service.predict(service.models.get("ocr"), page))
                    await asyncio.sleep(0.2)
                    (files,) = locate([named / "speller"])
                    assert service.models.replace(load_model(files, Defaults())) is old
                old.close()
                return (await task).result

            assert asyncio.run(ask()).text == ("FACE",)
            assert service.models.get("speller").pool.statistics.snapshot().inference_count == 1

    def test_a_step_that_cannot_be_loaded_leaves_none_of_the_others_open(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tiny.pipeline(tmp_path / "ocr")
        (folder / "tiny_rec" / "model.onnx").write_bytes(b"")
        closed: list[str] = []
        monkeypatch.setattr(Model, "close", lambda model: closed.append(model.name))
        with pytest.raises(InvalidModel, match=r"ocr: steps\.read \(tiny_rec\)"):
            load_model(locate([folder])[0], Defaults())
        assert closed == ["ocr.detect", "ocr.classify"]


def steps_by_name(folder: Path, models: Path) -> Path:
    """A repository of the pipeline `ocr`, and its steps `finder` and `speller`."""
    for name, source in (("finder", "tiny_det"), ("speller", "tiny_rec")):
        copy_of(folder / source / "model.onnx", models / name / "model.onnx")
        (models / name / "model.yaml").write_text("task: ocr\npostprocess: {unclip_ratio: 0}\n", encoding="utf-8")
    (models / "speller" / "model.yaml").write_text("task: ocr\nlabels: [A, B, C, D, E, F]\n", encoding="utf-8")
    (models / "ocr").mkdir()
    steps = {"detect": "finder", "read": "speller"}
    (models / "ocr" / "model.yaml").write_text(yaml.safe_dump({"task": "ocr", "steps": steps}), encoding="utf-8")
    return models


def copy_of(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


class TestWhatItSays:
    def test_of_itself(self, server: Server) -> None:
        told = httpx.get(f"{server.url}/v1/models/ocr").json()
        assert (told["task"], told["family"], told["options"]) == ("ocr", "ocr", ["score_threshold"])
        assert told["steps"] == {"detect": "ocr.detect", "classify": "ocr.classify", "read": "ocr.read"}
        assert told["defaults"] == {"score_threshold": 0.5}
        assert told["inputs"] == [{"name": "image", "shape": [None], "dtype": "bytes"}]
        names = [model["name"] for model in httpx.get(f"{server.url}/v1/models").json()["models"]]
        assert names == ["ocr.detect", "ocr.classify", "ocr.read", "ocr"]
        with visionpool.GrpcClient(server.grpc) as client:
            assert client.model("ocr").task == "ocr"

    def test_over_kserve(self, server: Server) -> None:
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            metadata = client.get_model_metadata("ocr", as_json=True)
            assert metadata["platform"] == "ensemble"
            assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": ["-1"]}]
            assert metadata["outputs"] == [{"name": "result", "datatype": "BYTES", "shape": ["-1"]}]
            config = client.get_model_config("ocr", as_json=True)["config"]
            steps = [step["model_name"] for step in config["ensemble_scheduling"]["step"]]
            assert steps == ["ocr.detect", "ocr.classify", "ocr.read"]
            assert client.is_model_ready("ocr")
            stats = client.get_inference_statistics("ocr", as_json=True)["model_stats"][0]
            assert stats["name"] == "ocr"

    def test_at_the_start(self, server: Server) -> None:
        log = server.log()
        assert "ocr  ocr (ocr, from model.yaml)  steps: ocr.detect, ocr.classify, ocr.read" in log
        assert "ocr.read  ocr (ocr_recognition, from model.yaml)" in log

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ([("image", [1, 3], "FP32")], "is BYTES, not FP32"),
            ([("x", [1], "BYTES")], "has no input 'x'"),
        ],
    )
    def test_tensors_are_refused(self, server: Server, inputs: list[tuple[str, list[int], str]], message: str) -> None:
        body = {
            "inputs": [
                {"name": name, "shape": shape, "datatype": kind, "data": [0.0] * 3 if kind == "FP32" else ["a"]}
                for name, shape, kind in inputs
            ]
        }
        answer = httpx.post(f"{server.url}/v2/models/ocr/infer", json=body)
        assert answer.status_code == 400, answer.text
        assert message in answer.text


class TestControl:
    def test_a_pipeline_comes_and_goes_with_its_steps(self, folder: Path) -> None:
        with (
            serving(folder, "--model-control-mode", "explicit") as server,
            triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client,
        ):
            assert not client.is_model_ready("ocr.read")
            for _ in range(2):  # the second takes the place of the first
                client.load_model("ocr")
                assert client.is_model_ready("ocr") and client.is_model_ready("ocr.read")
                page = tiny.png(tiny.page(["FACE"]))
                answer = httpx.post(f"{server.url}/v1/models/ocr/predict", content=page, timeout=60)
                assert answer.json()["results"][0]["text"] == ["FACE"]
            with pytest.raises(Exception, match=r"ocr\.read is a part of ocr"):
                client.unload_model("ocr.read")
            client.unload_model("ocr")
            assert not client.is_model_ready("ocr") and not client.is_model_ready("ocr.read")

    def test_a_model_called_like_a_part_does_not_take_its_place(self, folder: Path, tmp_path: Path) -> None:
        reader = tmp_path / "ocr.read"
        copy_of(folder / "tiny_rec" / "model.onnx", reader / "model.onnx")
        (reader / "model.yaml").write_text("task: ocr\nlabels: [A, B, C, D, E, F]\n", encoding="utf-8")
        with (
            serving(folder, str(reader), "--model-control-mode", "explicit", "--load-model", "ocr") as server,
            triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client,
        ):
            with pytest.raises(Exception, match=r"failed to load 'ocr\.read'.*two models are called"):
                client.load_model("ocr.read")
            answer = httpx.post(
                f"{server.url}/v1/models/ocr/predict", content=tiny.png(tiny.page(["FACE"])), timeout=60
            )
            assert answer.json()["results"][0]["text"] == ["FACE"]

    def test_a_pipeline_that_goes_lets_its_steps_answer_who_asked_them(self, folder: Path) -> None:
        with offline([folder], Defaults(), max_pixels=50_000_000) as service:
            reader = service.models.get("ocr.read")
            model = service.models.remove("ocr")
            with reader.pool.places(1):  # of a picture that is being decoded
                retiring = Thread(target=retire, args=(model,))
                retiring.start()
                retiring.join(0.3)
                assert retiring.is_alive()
                reader.pool.admit(1)  # not closed yet
                reader.pool.release(1)
            retiring.join(30)
            assert not retiring.is_alive()

    def test_all_widths_of_lines_stay_compiled_unless_somebody_says_how_many(self, tmp_path: Path) -> None:
        folder = tiny.pipeline(tmp_path / "ocr")
        (folder / "tiny_cls" / "model.yaml").write_text("runtime: {max_shapes: 3}\n", encoding="utf-8")
        with offline([folder], Defaults(), max_pixels=50_000_000) as service:
            uses = {model.name: model.pool.groups[0].engine.shape_use() for model in service.models if model.family}
        assert uses["ocr.read"] and uses["ocr.read"].limit >= len(WIDTHS)
        assert uses["ocr.classify"] is None or uses["ocr.classify"].limit == 3


class TestModelYaml:
    def test_what_the_documentation_shows_is_taken(self) -> None:
        page = (Path(__file__).parent.parent / "docs" / "ocr.md").read_text(encoding="utf-8")
        (example,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        bundle = Bundle.model_validate(yaml.safe_load(example))
        assert bundle.steps and bundle.steps.classify == "directions"
        assert ", ".join(map(str, WIDTHS[:-1])) + f" and {WIDTHS[-1]}" in page

    def load(self, folder: Path) -> Any:
        with offline([folder], Defaults(), max_pixels=50_000_000) as service:
            return [(model.name, model.family_name) for model in service.models]

    def test_an_empty_folder_says_what_belongs_there(self, tmp_path: Path) -> None:
        (tmp_path / "model.yaml").write_text("task: ocr\n", encoding="utf-8")
        with pytest.raises(InvalidModel, match="no model to detect and none to read"):
            self.load(tmp_path)

    def test_two_that_could_be_one_step(self, tmp_path: Path) -> None:
        folder = tiny.pipeline(tmp_path / "ocr")
        tiny.detector(folder / "other_det" / "model.onnx")
        with pytest.raises(InvalidModel, match="which one is to detect: other_det or tiny_det"):
            self.load(folder)
        steps = {"detect": "tiny_det", "read": "tiny_rec"}
        (folder / "model.yaml").write_text(yaml.safe_dump({"task": "ocr", "steps": steps}), encoding="utf-8")
        assert self.load(folder) == [("ocr.detect", "ocr_detection"), ("ocr.read", "ocr_recognition"), ("ocr", "ocr")]

    def test_files_beside_each_other_as_rapidocr_has_them(self, tmp_path: Path) -> None:
        folder = tmp_path / "rapid"
        tiny.detector(folder / "ch_PP-OCRv4_det_infer.onnx")
        tiny.classifier(folder / "ch_ppocr_mobile_v2.0_cls_infer.onnx")
        tiny.recogniser(folder / "ch_PP-OCRv4_rec_infer.onnx")
        (folder / "keys.txt").write_text("A\nB\nC\nD\nE\nF\n", encoding="utf-8")
        (folder / "model.yaml").write_text("task: ocr\npostprocess: {unclip_ratio: 0}\n", encoding="utf-8")
        with offline([folder], Defaults(), max_pixels=50_000_000) as service:
            page = tiny.png(tiny.page(["FACE", "-AB"]))
            result = asyncio.run(service.predict(service.models.get("rapid"), page)).result
        assert isinstance(result, OCRResult)
        assert result.text == ("FACE", "AB")

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            ({"steps": {"detect": "nowhere/det", "read": "tiny_rec"}}, "nowhere/det is not in"),
            ({"steps": {"detect": "nobody", "read": "tiny_rec"}}, "steps.detect names 'nobody'"),
            ({"steps": {"detect": "tiny_rec", "read": "tiny_rec"}}, "gives one map"),
            ({"steps": {"detect": "tiny_det", "read": "tiny_det"}}, "gives (lines, steps, classes)"),
            ({"steps": {"read": "tiny_rec"}}, "no model to detect"),
            ({"steps": {"spell": "x"}}, "unknown key 'steps.spell'"),
            ({"preprocess": ["gray"]}, "preprocess means nothing to a pipeline"),
            ({"postprocess": {"top_k": 3}}, "postprocess.top_k means nothing"),
            ({"labels": "missing.txt"}, "cannot read missing.txt"),
            ({"labels": ["A", "B"]}, "the dictionary has 2 characters, and the model 7 classes"),
            ({"task": "detection", "steps": {"detect": "tiny_det", "read": "tiny_rec"}}, "detection has no steps"),
        ],
    )
    def test_mistakes_are_told(self, tmp_path: Path, said: dict[str, Any], message: str) -> None:
        folder = tiny.pipeline(tmp_path / "ocr")
        (folder / "model.yaml").write_text(yaml.safe_dump({"task": "ocr", **said}), encoding="utf-8")
        with pytest.raises(InvalidModel) as refused:
            self.load(folder)
        assert message in str(refused.value)

    def test_what_it_says_holds_for_its_steps_unless_they_say_otherwise(self, tmp_path: Path) -> None:
        folder = tiny.pipeline(
            tmp_path / "ocr",
            runtime={"backend": "onnxruntime"},
            postprocess={
                "box_threshold": 0.77,
                "map_threshold": 0.4,
                "direction_threshold": 0.2,
                "score_threshold": 0.1,
            },
        )
        (folder / "tiny_rec" / "model.yaml").write_text("runtime: {backend: openvino}\n", encoding="utf-8")
        with offline([folder], Defaults(), max_pixels=50_000_000) as service:
            backends = {model.name: [place.backend for place in model.pool.placements] for model in service.models}
            assert backends == {
                "ocr.detect": ["onnxruntime"],
                "ocr.classify": ["onnxruntime"],
                "ocr.read": ["openvino"],
                "ocr": [],
            }
            detector = service.models.get("ocr.detect").family
            assert detector and detector.defaults.score_threshold == 0.77
            pipeline = service.models.get("ocr").pipeline
            assert pipeline and (pipeline.direction_threshold, pipeline.defaults.score_threshold) == (0.2, 0.1)
            assert read(service, ["FACE", "-AB"]).text == ("FACE", "AB")

    def test_inference_yml_of_paddleocr_3(self, tmp_path: Path) -> None:
        folder = tiny.pipeline(tmp_path / "ocr")
        (folder / "tiny_dict.txt").unlink()
        resize = {"DetResizeForTest": {"resize_long": 640}}
        normalize = {
            "NormalizeImage": {
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "scale": "1./255.",
                "order": "hwc",
            }
        }
        detection = {
            "Global": {"model_name": "PP-OCRv5_mobile_det"},
            "PreProcess": {
                "transform_ops": [
                    {"DecodeImage": {"img_mode": "BGR"}},
                    {"DetLabelEncode": None},
                    resize,
                    normalize,
                    {"ToCHWImage": None},
                ]
            },
            "PostProcess": {
                "name": "DBPostProcess",
                "thresh": 0.3,
                "box_thresh": 0.55,
                "max_candidates": 1000,
                "unclip_ratio": 0,
            },
        }
        recognition = {
            "Global": {"model_name": "PP-OCRv5_mobile_rec"},
            "PreProcess": {"transform_ops": [{"RecResizeImg": {"image_shape": [3, 32, 320]}}]},
            "PostProcess": {"name": "CTCLabelDecode", "character_dict": list(tiny.LETTERS)},
        }
        for step, config in (("tiny_det", detection), ("tiny_rec", recognition)):
            (folder / step / "inference.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        (folder / "model.yaml").write_text("task: ocr\n", encoding="utf-8")
        with offline([folder], Defaults(), max_pixels=50_000_000) as service:
            detector = service.models.get("ocr.detect")
            assert detector.family and detector.family.defaults.score_threshold == 0.55
            assert detector.source == "inference.yml"
            page = cv2.copyMakeBorder(tiny.page(["FACE", "BED"]), 0, 0, 0, 0, cv2.BORDER_CONSTANT)
            result = asyncio.run(service.predict(service.models.get("ocr"), tiny.png(page))).result
            assert isinstance(result, OCRResult)
            assert result.text == ("FACE", "BED")
