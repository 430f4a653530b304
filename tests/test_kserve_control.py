"""Models loaded, reloaded and unloaded while others ask for them: nothing is lost, and what is broken changes nothing."""

from __future__ import annotations

import asyncio
import gc
import shutil
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from visionpool.errors import InvalidModel, InvalidRequest, ModelNotFound, Unavailable, Unimplemented
from visionpool.results import Result
from visionpool_server.api.kserve.catalog import Catalog
from visionpool_server.api.kserve.control import Control
from visionpool_server.models.loader import Defaults
from visionpool_server.models.repository import Repository
from visionpool_server.service import Service

from tests.real_server import Server, picture, write_model

BOUND = 30.0  # seconds that anything here may take at most
BLUE = picture((0, 0, 200))


class Place:
    """A folder of models, what is served of it, and who controls that."""

    def __init__(self, folder: Path, *, explicit: bool = True) -> None:
        self.folder = folder
        self.models = Repository()
        self.service = Service(self.models, threads=2)
        self.control = Control(self.models, [folder], Defaults(), explicit=explicit)

    async def index(self, *, ready: bool = False) -> dict[str, tuple[str, str, str]]:
        """Name -> version, state, reason."""
        index = await self.control.index(ready)
        return {entry.name: (entry.version, entry.state, entry.reason) for entry in index.models}

    async def ask(self, name: str) -> Result:
        return (await self.service.predict(self.models.get(name), BLUE)).result

    def close(self) -> None:
        self.control.close()
        self.service.close()
        self.models.close()


@contextmanager
def place_of(folder: Path, *, explicit: bool = True) -> Iterator[Place]:
    place = Place(folder, explicit=explicit)
    try:
        yield place
    finally:
        place.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """With the model `a`, not loaded."""
    write_model(tmp_path / "a")
    with place_of(tmp_path) as made:
        yield made


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(BOUND):
            await work()

    asyncio.run(bounded())


def label_of(result: Any) -> str:
    return str(result.labels[0])


def test_a_model_is_loaded_served_and_unloaded(place: Place) -> None:
    async def work() -> None:
        assert await place.index() == {"a": ("1", "UNAVAILABLE", "not loaded")}
        await place.control.load("a")
        assert await place.index() == {"a": ("1", "READY", "")}
        assert label_of(await place.ask("a")) == "blue"
        await place.control.unload("a", {"unload_dependents": True})
        assert await place.index() == {"a": ("1", "UNAVAILABLE", "unloaded")}
        with pytest.raises(ModelNotFound):
            place.models.get("a")
        await place.control.unload("a")  # again: it is so already
        await place.control.load("a")
        assert await place.index() == {"a": ("1", "READY", "")}

    run(work)


def test_the_index_of_ready_models_leaves_the_others_out(place: Place) -> None:
    async def work() -> None:
        write_model(place.folder / "b")
        await place.control.load("b")
        assert await place.index(ready=True) == {"b": ("1", "READY", "")}
        assert sorted(await place.index()) == ["a", "b"]

    run(work)


def test_a_server_without_explicit_control_refuses_and_says_how_to_get_it(tmp_path: Path) -> None:
    write_model(tmp_path / "a")
    with place_of(tmp_path, explicit=False) as place:

        async def work() -> None:
            for call in (place.control.load, place.control.unload):
                with pytest.raises(InvalidRequest, match="--model-control-mode explicit"):
                    await call("a")
            assert await place.index() == {"a": ("1", "UNAVAILABLE", "not loaded")}

        run(work)


def test_while_the_server_starts_its_models_are_loading(place: Place) -> None:
    async def work() -> None:
        place.models.loading = True
        assert await place.index() == {"a": ("1", "LOADING", "")}

    run(work)


def test_a_model_that_appeared_later_is_found(place: Place) -> None:
    async def work() -> None:
        with pytest.raises(ModelNotFound, match="failed to load 'new'") as caught:
            await place.control.load("new")
        assert "models there: a" in str(caught.value)
        assert "new" not in await place.index()
        write_model(place.folder / "new")
        await place.control.load("new")
        assert label_of(await place.ask("new")) == "blue"

    run(work)


def test_a_model_goes_by_the_name_in_its_own_file(place: Place) -> None:
    async def work() -> None:
        write_model(place.folder / "folder", name="other")
        await place.control.load("other")
        assert sorted(await place.index()) == ["a", "other"]
        with pytest.raises(ModelNotFound, match="'folder'"):
            await place.control.load("folder")

    run(work)


def test_a_name_that_two_models_share_is_refused(place: Place) -> None:
    async def work() -> None:
        write_model(place.folder / "twin", name="a")
        with pytest.raises(InvalidModel, match="failed to load 'a': 2 models are called so"):
            await place.control.load("a")

    run(work)


def test_a_new_version_takes_the_place_of_the_old_one(place: Place) -> None:
    async def work() -> None:
        write_model(place.folder / "v" / "1")
        await place.control.load("v")
        write_model(place.folder / "v" / "2", labels=["rot", "grün", "blau"])
        assert (await place.index())["v"] == ("1", "READY", "")
        await place.control.load("v")
        assert (await place.index())["v"] == ("2", "READY", "")
        assert label_of(await place.ask("v")) == "blau"

    run(work)


def test_a_broken_model_is_refused_and_the_old_one_goes_on(place: Place) -> None:
    async def work() -> None:
        await place.control.load("a")
        (place.folder / "a" / "model.yaml").write_text("nonsense: true")
        with pytest.raises(InvalidModel, match=r"failed to load 'a': .*unknown key 'nonsense'"):
            await place.control.load("a")
        assert label_of(await place.ask("a")) == "blue"
        assert (await place.index())["a"] == ("1", "READY", "")
        await place.control.unload("a")
        with pytest.raises(InvalidModel):
            await place.control.load("a")
        version, state, reason = (await place.index())["a"]
        assert (version, state) == ("1", "UNAVAILABLE")
        assert "nonsense" in reason

    run(work)


@pytest.mark.parametrize("content", ["- a list", "name: [", "family: nothing", "labels: nowhere.txt"])
def test_a_broken_neighbour_hides_no_model(place: Place, content: str) -> None:
    async def work() -> None:
        broken = place.folder / "broken"
        broken.mkdir()
        (broken / "model.yaml").write_text(content)
        several = place.folder / "several"
        several.mkdir()
        for name in ("x.onnx", "y.onnx"):
            (several / name).write_bytes(b"")
        await place.control.load("a")
        assert sorted(await place.index()) == ["a", "broken"]
        with pytest.raises(ModelNotFound, match="several models"):
            await place.control.load("nothing")

    run(work)


def test_a_path_that_is_gone_is_an_empty_one(place: Place) -> None:
    async def work() -> None:
        await place.control.load("a")
        shutil.rmtree(place.folder)
        assert await place.index() == {"a": ("1", "READY", "")}
        with pytest.raises(ModelNotFound, match="does not exist"):
            await place.control.load("a")
        assert label_of(await place.ask("a")) == "blue"

    run(work)


@pytest.mark.parametrize("key", ["config", "file:1/model.onnx"])
def test_overrides_in_the_request_are_refused(place: Place, key: str) -> None:
    async def work() -> None:
        with pytest.raises(Unimplemented, match="failed to load 'a'"):
            await place.control.load("a", {key: "{}"})

    run(work)


def test_unknown_parameters_are_refused(place: Place) -> None:
    async def work() -> None:
        for call in (place.control.load, place.control.unload):
            with pytest.raises(InvalidRequest, match="'nonsense'"):
                await call("a", {"nonsense": 1})

    run(work)


def test_a_model_that_was_never_loaded_cannot_be_unloaded(place: Place) -> None:
    async def work() -> None:
        with pytest.raises(ModelNotFound):
            await place.control.unload("a")

    run(work)


def test_the_event_loop_goes_on_while_a_model_loads(place: Place) -> None:
    async def work() -> None:
        await place.control.load("a")
        write_model(place.folder / "slow", {"load_ms": 600})
        loading = asyncio.create_task(place.control.load("slow"))
        await asyncio.sleep(0.1)
        assert (await place.index())["slow"] == ("1", "LOADING", "")
        for _ in range(5):
            assert label_of(await place.ask("a")) == "blue"
        assert not loading.done()
        await loading
        assert (await place.index())["slow"] == ("1", "READY", "")

    run(work)


def test_loads_of_one_name_at_once_are_shared(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(place.folder / "slow", {"load_ms": 200})
    loads = counted_loads(monkeypatch)

    async def work() -> None:
        await asyncio.gather(*(place.control.load("slow") for _ in range(10)))
        assert loads == ["slow", "slow"]  # the second for those who came when the first had begun to read

    run(work)


def test_a_caller_that_leaves_does_not_end_a_load(place: Place) -> None:
    write_model(place.folder / "slow", {"load_ms": 300})

    async def work() -> None:
        first, second = (asyncio.create_task(place.control.load("slow")) for _ in range(2))
        await asyncio.sleep(0.1)
        first.cancel()
        await asyncio.wait([first])
        await second
        assert (await place.index())["slow"] == ("1", "READY", "")

    run(work)


def test_loading_and_unloading_at_once_end_in_the_last_wish(place: Place) -> None:
    async def work() -> None:
        for last, state in ((place.control.unload, "UNAVAILABLE"), (place.control.load, "READY")):
            await place.control.load("a")
            calls: Sequence[Any] = (place.control.unload, place.control.load, last)
            tasks = []
            for call in calls:
                tasks.append(asyncio.create_task(call("a")))
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            assert (await place.index())["a"][1] == state

    run(work)


def test_no_request_is_lost_while_its_model_is_reloaded(place: Place) -> None:
    async def work() -> None:
        write_model(place.folder / "busy", {"latency_ms": 5}, workers=2)
        await place.control.load("busy")
        answers: list[str] = []
        stopped = asyncio.Event()

        async def caller() -> None:
            while not stopped.is_set():
                answers.append(label_of(await place.ask("busy")))

        callers = [asyncio.create_task(caller()) for _ in range(6)]
        for _ in range(8):
            await asyncio.sleep(0.05)
            await place.control.load("busy")
        stopped.set()
        await asyncio.gather(*callers)
        assert len(answers) > 50
        assert set(answers) == {"blue"}

    run(work)


def test_requests_in_flight_finish_when_their_model_is_unloaded(place: Place) -> None:
    async def work() -> None:
        write_model(place.folder / "slow", {"latency_ms": 300}, workers=1)
        await place.control.load("slow")
        asked = [asyncio.create_task(place.ask("slow")) for _ in range(3)]
        await asyncio.sleep(0.05)
        unloading = asyncio.create_task(place.control.unload("slow"))
        await asyncio.sleep(0.05)
        with pytest.raises((ModelNotFound, Unavailable)):
            await place.ask("slow")
        assert (await place.index())["slow"] == ("1", "UNLOADING", "")
        assert [label_of(await one) for one in asked] == ["blue"] * 3
        await unloading
        assert (await place.index())["slow"] == ("1", "UNAVAILABLE", "unloaded")

    run(work)


def test_an_unloaded_model_is_gone_even_where_it_was_frozen(place: Place) -> None:
    """`App` freezes what is loaded at the start: the collector does not look at it again."""

    async def work() -> None:
        await place.control.load("a")
        engine = weakref.ref(place.models.get("a").pool.groups[0].engine)
        gc.freeze()
        try:
            await place.control.unload("a")
            await asyncio.sleep(0.1)  # for threads that were just ending
            assert engine() is None
        finally:
            gc.unfreeze()

    run(work)


def counted_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    find = Catalog.find

    def counting(self: Catalog, name: str) -> Any:
        found.append(name)
        return find(self, name)

    monkeypatch.setattr(Catalog, "find", counting)
    return found


def test_a_file_and_a_folder_are_both_listed(tmp_path: Path) -> None:
    write_model(tmp_path / "one")
    other = write_model(tmp_path / "elsewhere" / "two") / "model.yaml"
    assert yaml.safe_load(other.read_text())
    listing = Catalog([tmp_path / "one", other, tmp_path / "nowhere"]).scan()
    assert sorted(listing.models) == ["one", "two"]
    assert len(listing.broken) == 1


def test_there_is_no_repository_to_choose_over_either_transport(shared_server: Server) -> None:
    with grpc.insecure_channel(shared_server.grpc) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        calls: dict[str, Callable[[], Any]] = {
            "index": lambda: stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="other")),
            "models/colours/load": lambda: stub.RepositoryModelLoad(
                pb.RepositoryModelLoadRequest(repository_name="other", model_name="colours")
            ),
            "models/colours/unload": lambda: stub.RepositoryModelUnload(
                pb.RepositoryModelUnloadRequest(repository_name="other", model_name="colours")
            ),
        }
        for path, call in calls.items():
            answer = httpx.post(f"{shared_server.url}/v2/repository/other/{path}")
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert (answer.status_code, caught.value.code()) == (501, grpc.StatusCode.UNIMPLEMENTED)
            assert answer.json()["error"] == caught.value.details()
            assert "'other'" in answer.json()["error"]
        assert [one.name for one in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models] == ["colours"]


def test_the_servers_metadata_are_there_with_and_without_a_slash(shared_server: Server) -> None:
    with httpx.Client(base_url=shared_server.url) as http:
        answers = [http.get(path) for path in ("/v2", "/v2/")]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        assert http.post("/v2/").status_code == 405
        assert "/v2/" not in http.get("/openapi.json").json()["paths"]
