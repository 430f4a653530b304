"""Tracing and logging switched while the server runs: what is sampled, where it is written, and what a client may not say."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from visionpool.errors import InvalidRequest, InvalidSetting, ModelNotFound, Unimplemented
from visionpool_server.api.kserve.switches import LogSwitches, Tracing
from visionpool_server.api.kserve.trace_files import Trace, TraceWriter
from visionpool_server.models.loader import Defaults
from visionpool_server.models.repository import Repository, load_all, locate

from tests.real_server import write_model

BOUND = 20.0  # seconds that anything here may take at most
TIMES = [("REQUEST_START", 100), ("COMPUTE_START", 150), ("REQUEST_END", 200)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "a")
    write_model(folder / "b")
    made = Repository()
    for model in load_all(locate([folder]), Defaults()):
        made.add(model)
    yield made
    made.close()


@pytest.fixture
def tracing(models: Repository, tmp_path: Path) -> Iterator[Tracing]:
    made = Tracing(tmp_path, models)
    yield made
    made.close()


def shown(response: Any) -> dict[str, str]:
    assert all(len(setting.value) == 1 for setting in response.settings.values())
    return {name: setting.value[0] for name, setting in response.settings.items()}


def sampled(tracing: Tracing, model: str, requests: int) -> list[int]:
    return [i for i in range(1, requests + 1) if tracing.sampled(model)]


def test_nothing_is_traced_unless_asked_for(tracing: Tracing) -> None:
    assert shown(tracing.update("", {})) == {
        "trace_level": "OFF",
        "trace_rate": "1000",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_file": "trace.json",
        "trace_mode": "triton",
    }
    assert not tracing.on
    assert not sampled(tracing, "a", 5)


def test_every_so_manieth_request_is_traced_and_no_more_than_asked_for(tracing: Tracing) -> None:
    said = tracing.update("", {"trace_level": ["TIMESTAMPS"], "trace_rate": ["3"], "trace_count": ["2"]})
    assert shown(said)["trace_count"] == "2"
    assert sampled(tracing, "a", 20) == [3, 6]
    assert not tracing.on
    assert shown(tracing.update("", {}))["trace_count"] == "0"
    tracing.update("", {"trace_count": "1"})
    assert len(sampled(tracing, "a", 20)) == 1


def test_a_model_follows_the_others_in_what_it_does_not_say_itself(tracing: Tracing) -> None:
    tracing.update("a", {"trace_rate": "2"})
    assert (shown(tracing.update("a", {}))["trace_rate"], shown(tracing.update("b", {}))["trace_rate"]) == ("2", "1000")
    tracing.update("", {"trace_level": "TIMESTAMPS", "trace_rate": "5"})
    assert shown(tracing.update("a", {}))["trace_level"] == "TIMESTAMPS"
    assert sampled(tracing, "a", 4) == [2, 4]
    assert sampled(tracing, "b", 5) == [5]
    assert shown(tracing.update("a", {"trace_rate": None}))["trace_rate"] == "5"
    assert shown(tracing.update("", {"trace_rate": []}))["trace_rate"] == "1000"


def test_one_model_can_be_traced_alone_or_spared(tracing: Tracing) -> None:
    tracing.update("a", {"trace_level": ["TIMESTAMPS"], "trace_rate": 1})
    assert (tracing.sampled("a"), tracing.sampled("b")) == (True, False)
    tracing.update("", {"trace_level": ["TIMESTAMPS"], "trace_rate": 1})
    tracing.update("a", {"trace_level": ["OFF"]})
    assert (tracing.sampled("a"), tracing.sampled("b")) == (False, True)


def test_traces_are_tritons(tracing: Tracing, tmp_path: Path) -> None:
    tracing.update("", {"trace_level": "TIMESTAMPS", "trace_rate": "1", "trace_file": "mine.json"})
    for request in ("one", 'two "quoted" é'):
        assert tracing.sampled("a")
        tracing.write("a", "1", request, TIMES)
    tracing.close()
    first, second = json.loads((tmp_path / "mine.json").read_text())
    assert first == {
        "id": 1,
        "model_name": "a",
        "model_version": 1,
        "request_id": "one",
        "timestamps": [{"name": name, "ns": ns} for name, ns in TIMES],
    }
    assert (second["id"], second["request_id"]) == (2, 'two "quoted" é')


def test_a_file_of_traces_is_whole_at_any_time(tracing: Tracing, tmp_path: Path) -> None:
    tracing.update("", {"trace_level": "TIMESTAMPS", "trace_rate": "1"})
    (tmp_path / "trace.json").write_text("of an earlier server")
    written = threading.Event()
    for i in range(3):
        tracing.write("a", "1", str(i), TIMES)
        for _ in range(200):
            text = (tmp_path / "trace.json").read_text()
            with contextlib.suppress(json.JSONDecodeError):  # read in the middle of a write
                if len(json.loads(text)) == i + 1:
                    break
            written.wait(0.01)
        assert [trace["request_id"] for trace in json.loads(text)] == [str(n) for n in range(i + 1)]
    assert len(text.splitlines()) == 5  # brackets, and one line for each


def test_files_are_changed_after_so_many_traces(tracing: Tracing, tmp_path: Path) -> None:
    tracing.update("", {"trace_level": "TIMESTAMPS", "trace_rate": "1", "log_frequency": "2"})
    for i in range(5):
        tracing.write("a", "1", str(i), TIMES)
    tracing.close()
    found = {path.name: len(json.loads(path.read_text())) for path in tmp_path.iterdir()}
    assert found == {"trace.json.0": 2, "trace.json.1": 2, "trace.json.2": 1}


@pytest.mark.parametrize(
    "name", ["../out.json", "/etc/passwd", "sub/trace.json", "", ".", "..", ".hidden", "a\0b", "x" * 300, "a b"]
)
def test_a_client_cannot_say_where_traces_go(tracing: Tracing, name: str) -> None:
    with pytest.raises(InvalidRequest, match="trace_file"):
        tracing.update("", {"trace_file": name})


def test_the_whole_path_of_a_file_in_the_folder_is_taken_too(tracing: Tracing, tmp_path: Path) -> None:
    assert shown(tracing.update("", {"trace_file": str(tmp_path / "t.json")}))["trace_file"] == "t.json"


def test_a_link_in_the_folder_is_not_followed(
    tracing: Tracing, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "file"
    outside.write_text("keep me")
    (tmp_path / "link").symlink_to(outside)
    tracing.update("", {"trace_level": "TIMESTAMPS", "trace_file": "link"})
    tracing.write("a", "1", "", TIMES)
    tracing.close()
    assert outside.read_text() == "keep me"
    assert "traces were lost" in caplog.text


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"trace_level": ["TENSORS"]}, Unimplemented),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, InvalidRequest),
        ({"trace_level": ["LOUD"]}, InvalidRequest),
        ({"trace_level": [["OFF"]]}, InvalidRequest),
        ({"trace_rate": "0"}, InvalidRequest),
        ({"trace_rate": "often"}, InvalidRequest),
        ({"trace_rate": ["1", "2"]}, InvalidRequest),
        ({"trace_rate": str(2**31)}, InvalidRequest),
        ({"trace_count": "-2"}, InvalidRequest),
        ({"trace_count": 1.5}, InvalidRequest),
        ({"log_frequency": "-1"}, InvalidRequest),
        ({"trace_mode": "opentelemetry"}, Unimplemented),
        ({"nonsense": "1"}, InvalidRequest),
    ],
)
def test_what_makes_no_sense_changes_nothing(tracing: Tracing, changes: dict[str, Any], error: type[Exception]) -> None:
    before = shown(tracing.update("", {}))
    with pytest.raises(error):
        tracing.update("", {"trace_rate": "7", **changes})
    assert shown(tracing.update("", {})) == before


def test_an_unknown_model_has_no_settings(tracing: Tracing) -> None:
    with pytest.raises(ModelNotFound):
        tracing.update("nothing", {"trace_rate": "1"})


def test_a_server_without_a_folder_for_traces_says_how_to_get_one(models: Repository) -> None:
    tracing = Tracing(None, models)
    assert not tracing.possible
    for changes in ({"trace_level": ["TIMESTAMPS"]}, {"trace_file": "x"}):
        with pytest.raises(InvalidRequest, match="--trace-dir"):
            tracing.update("", changes)
    assert shown(tracing.update("", {"trace_level": ["OFF"], "trace_mode": ["triton"]}))["trace_file"] == ""
    tracing.close()


def test_a_folder_that_is_none_stops_the_start(models: Repository, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="--trace-dir"):
        Tracing(tmp_path / "nowhere", models)


def test_traces_do_not_fill_the_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = TraceWriter(tmp_path, max_bytes=10_000)
    for i in range(200):
        writer.put(Trace(f"t{i % 3}", 0, {"id": i, "text": "x" * 50}))
    writer.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 10_000
    assert "all the room" in caplog.text


def test_a_slow_disk_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()
    monkeypatch.setattr("visionpool_server.api.kserve.trace_files._WAITING", 5)
    monkeypatch.setattr(TraceWriter, "_append", lambda *_: going_on.wait(BOUND))
    writer = TraceWriter(tmp_path)
    for i in range(50):
        writer.put(Trace("t", 0, {"id": i}))
    going_on.set()
    writer.close()


@pytest.fixture
def switches(caplog: pytest.LogCaptureFixture) -> Iterator[LogSwitches]:
    logging.getLogger("vp_switches").setLevel(logging.INFO)
    made = LogSwitches("vp_switches")
    yield made
    made.close()


def logged(caplog: pytest.LogCaptureFixture, name: str = "vp_switches.part") -> list[str]:
    caplog.clear()
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(logging.getLogger(name), level)(level)
    return [record.message for record in caplog.records]


def values(response: Any) -> dict[str, Any]:
    settings = response.settings
    return {name: getattr(settings[name], settings[name].WhichOneof("parameter_choice")) for name in settings}


def test_log_settings_show_what_is_so(switches: LogSwitches, caplog: pytest.LogCaptureFixture) -> None:
    assert values(switches.update({})) == {
        "log_verbose_level": 0,
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_file": "",
        "log_format": "default",
    }
    assert logged(caplog) == ["info", "warning", "error", "critical"]


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({"log_verbose_level": 1}, ["debug", "info", "warning", "error", "critical"]),
        ({"log_info": False}, ["warning", "error", "critical"]),
        ({"log_warning": False}, ["info", "error", "critical"]),
        ({"log_error": False}, ["info", "warning"]),
        ({"log_info": False, "log_warning": False, "log_error": False}, []),
        ({"log_verbose_level": 2, "log_info": False, "log_warning": False, "log_error": False}, ["debug"]),
        ({"log_file": "", "log_format": "default"}, ["info", "warning", "error", "critical"]),
    ],
)
def test_each_level_is_switched_by_itself(
    switches: LogSwitches, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], written: list[str]
) -> None:
    said = values(switches.update(changes))
    assert said == said | changes
    assert logged(caplog) == written
    switches.update({"log_verbose_level": 0, "log_info": True, "log_warning": True, "log_error": True})
    assert logged(caplog) == ["info", "warning", "error", "critical"]


def test_the_logs_of_others_are_left_alone(switches: LogSwitches, caplog: pytest.LogCaptureFixture) -> None:
    switches.update({"log_info": False, "log_warning": False, "log_error": False})
    assert logged(caplog, "vp_others") == ["warning", "error", "critical"]


@pytest.mark.parametrize(
    "changes",
    [
        {"log_file": "/tmp/log"},
        {"log_format": "ISO8601"},
        {"log_info": 1},
        {"log_info": None},
        {"log_verbose_level": True},
        {"log_verbose_level": -1},
        {"log_verbose_level": 2**32},
        {"log_verbose_level": "1"},
        {"nonsense": True},
    ],
)
def test_log_settings_that_make_no_sense_change_nothing(
    switches: LogSwitches, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    before = values(switches.update({}))
    with pytest.raises(InvalidRequest):
        switches.update({"log_info": False, **changes})
    assert values(switches.update({})) == before
    assert "info" in logged(caplog)


def test_closing_leaves_no_trace_in_the_logging_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("vp_switches")
    logger.setLevel(logging.INFO)
    made = LogSwitches("vp_switches")
    made.update({"log_verbose_level": 1, "log_error": False})
    made.close()
    assert logger.level == logging.INFO
    assert logged(caplog) == ["info", "warning", "error", "critical"]
