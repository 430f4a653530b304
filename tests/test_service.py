"""The whole flow of a prediction without a transport: what a caller who gives up leaves behind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from visionpool.errors import DeadlineExceeded, InvalidImage, InvalidOption, TooLarge, Unavailable
from visionpool.results import ClassifyResult
from visionpool_server.app import offline
from visionpool_server.backends.fake import FakeContext, FakeEngine
from visionpool_server.families import Options
from visionpool_server.imaging.decode import decode
from visionpool_server.models.loader import Defaults, Model
from visionpool_server.service import Ask, Service

from tests.real_server import picture, write_model

RED = (200, 20, 30)
LARGE = (5000, 5000)  # a tenth of a second to decode


@pytest.fixture(params=["stages", "workers"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """With pictures that stage threads prepare, and with ones that the workers prepare."""
    on_cpu = request.param == "workers"
    folder = write_model(tmp_path / "colours", {"latency_ms": 1, "on_cpu": on_cpu}, workers=64 if on_cpu else 1)
    with offline([folder], Defaults(), max_pixels=50_000_000) as made:
        yield made


@pytest.fixture
def model(service: Service) -> Model:
    return service.models.get("colours")


def batches(model: Model) -> list[int]:
    """The sizes of the batches that its engine has run."""
    engine = model.pool.groups[0].engine
    assert isinstance(engine, FakeEngine)
    return engine.batches


def test_a_prediction_has_its_result_and_the_times_of_all_stages(service: Service, model: Model) -> None:
    prediction = asyncio.run(service.predict(model, picture(RED)))
    assert isinstance(prediction.result, ClassifyResult)
    assert prediction.result.labels[0] == "red"
    assert list(prediction.timings) == ["decode", "prepare", "queue", "infer", "finish"]
    assert prediction.timings["infer"] >= 1


def test_an_annotated_picture_comes_with_its_prediction_while_the_place_is_held(service: Service, model: Model) -> None:
    prediction, drawn = asyncio.run(service.annotate(model, picture(RED, (30, 20)), Ask(), "png"))
    assert isinstance(prediction.result, ClassifyResult)
    assert decode(drawn).shape == (20, 30, 3)


def test_of_several_pictures_the_one_that_fails_is_named_and_the_places_are_given_back(
    service: Service, model: Model
) -> None:
    for _ in range(3):
        with pytest.raises(InvalidImage, match="picture 2 of 3"):
            asyncio.run(service.predict_many(model, [picture(RED), picture(RED)[:40], picture(RED)]))
    with model.pool.places(model.pool.options.max_queue_size):
        """All places are free again."""


def test_more_pictures_than_there_are_places_are_too_many_at_any_time(service: Service, model: Model) -> None:
    with pytest.raises(TooLarge, match="has room for"):
        asyncio.run(service.predict_many(model, [picture(RED)] * 10_000))


@pytest.mark.parametrize("wrong", ["9" * 5000, "3", "-1", "\u0663", "nothing"])
def test_a_class_that_the_model_does_not_have_costs_nothing(service: Service, model: Model, wrong: str) -> None:
    with pytest.raises(InvalidOption, match="no class"):
        asyncio.run(service.predict(model, picture(RED), Ask(Options(classes=(wrong,)))))
    assert batches(model) == []


def test_a_class_named_twice_is_answered_once(service: Service, model: Model) -> None:
    prediction = asyncio.run(service.predict(model, picture(RED), Ask(Options(classes=("red", "0", "red")))))
    assert isinstance(prediction.result, ClassifyResult)
    assert prediction.result.labels == ("red",)


def test_a_caller_who_leaves_while_its_picture_is_decoded_costs_no_inference(service: Service, model: Model) -> None:
    async def leave() -> None:
        task = asyncio.ensure_future(service.predict(model, picture(RED, LARGE)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    asyncio.run(service.predict(model, picture(RED, LARGE)))  # decoded after the other: the stages take turns
    assert batches(model) == [1]


def test_who_leaves_is_counted_as_not_answered(service: Service, model: Model) -> None:
    async def leave() -> None:
        call = asyncio.ensure_future(service.predict(model, picture(RED, LARGE)))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(leave())
    seen = model.pool.statistics.snapshot()
    assert (seen.fail.count, seen.success.count) == (1, 0)


def test_of_one_failure_each_caller_reads_its_own_words(
    service: Service, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Unavailable("the far server is gone")

    def infer(*_: object) -> None:
        raise gone

    monkeypatch.setattr(FakeContext, "infer", infer)

    async def ask() -> list[object]:
        calls = [service.predict_many(model, [picture(RED)] * count) for count in (2, 3, 1)]
        return await asyncio.gather(*calls, return_exceptions=True)

    said = [str(error) for error in asyncio.run(ask())]
    assert said[2] == "the far server is gone"
    for text, count in zip(said, (2, 3), strict=False):
        assert re.fullmatch(rf"picture \d of {count}: the far server is gone", text)


def test_a_deadline_that_passes_gives_up_the_place(service: Service, model: Model) -> None:
    with pytest.raises(DeadlineExceeded, match=r"0\.005 s"):
        asyncio.run(service.predict(model, picture(RED, LARGE), Ask(timeout=0.005)))
    for _ in range(300):  # more than there are places
        with pytest.raises(InvalidImage):
            asyncio.run(service.predict(model, b""))
    asyncio.run(service.predict(model, picture(RED)))


def test_an_option_that_means_nothing_to_the_model_is_refused(service: Service, model: Model) -> None:
    with pytest.raises(InvalidOption, match="iou_threshold"):
        asyncio.run(service.predict(model, picture(RED), Ask(Options(iou_threshold=0.5))))
