"""Which TensorRT is taken, what is said where there is none that will do, and what its options may be."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from visionpool.errors import BackendUnavailable, InvalidModel
from visionpool_server.backends.tensorrt.api import Api, find_api
from visionpool_server.backends.tensorrt.log import errors, in_short, logger
from visionpool_server.backends.tensorrt.settings import read_settings


class Broken:
    """An importer of packages that are there, and whose libraries are not."""

    def __init__(self, **reasons: Exception) -> None:
        self.reasons = reasons

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in self.reasons:
            raise self.reasons[name]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`installed(tensorrt="10.16.1.11", tensorrt_rtx=ImportError(...))`: only these, of these versions."""

    def install(**packages: str | Exception) -> None:
        reasons: dict[str, Exception] = {}
        for name in ("tensorrt", "tensorrt_rtx"):
            said = packages.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))
            monkeypatch.delitem(sys.modules, name, raising=False)
            if isinstance(said, Exception):
                reasons[name] = said
                continue
            module = ModuleType(name)
            module.__version__ = said  # type: ignore[attr-defined]  # modules have what one gives them
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(sys, "meta_path", [Broken(**reasons), *sys.meta_path])

    return install


@pytest.mark.parametrize(
    "version", ["10.16.1.11", "10.16.0", "10.20.3.4", "11.0.0.1", "11.4.0.106", "11.4.0.106.post1"]
)
def test_supported_versions_are_taken(installed: Any, version: str) -> None:
    installed(tensorrt=version, tensorrt_rtx="1.7.1.116")
    api = find_api()
    assert (api.name, api.rtx) == ("tensorrt", False)
    assert api.title.startswith(f"TensorRT {version[:4]}")


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.15.9.9", "12.0.0.1", "13.1"])
def test_a_wrong_version_is_named(installed: Any, version: str) -> None:
    installed(tensorrt=version)
    with pytest.raises(BackendUnavailable, match=rf"wrong major version: TensorRT {version}; 10\.16 to 11") as caught:
        find_api()
    assert "'tensorrt>=10.16,<12'" in str(caught.value.hint)


def test_rtx_is_taken_where_the_other_will_not_do(installed: Any, caplog: pytest.LogCaptureFixture) -> None:
    installed(tensorrt="8.6.1", tensorrt_rtx="1.7.1.116")
    with caplog.at_level(logging.WARNING):
        assert find_api().title == "TensorRT-RTX 1.7.1.116"
    assert "TensorRT-RTX 1.7.1.116 is used, since this is the wrong major version: TensorRT 8.6.1" in caplog.text


def test_without_either_it_says_what_to_install(installed: Any) -> None:
    installed()
    with pytest.raises(BackendUnavailable, match="needs the Python package tensorrt or tensorrt_rtx") as caught:
        find_api()
    assert "pip install 'visionpool[server,tensorrt]'" in str(caught.value)
    assert "pip install 'visionpool[server,tensorrt-rtx]'" in str(caught.value)
    assert "from NVIDIA" in str(caught.value)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_the_one_that_is_asked_for_is_missed(installed: Any, name: str) -> None:
    installed(**{"tensorrt" if name == "tensorrt_rtx" else "tensorrt_rtx": "10.16.1"})
    with pytest.raises(BackendUnavailable, match=f"needs the Python package {name}$|package {name} "):
        find_api(name)


@pytest.mark.parametrize(
    "reason",
    [
        ImportError("libnvinfer.so.10: cannot open shared object file: No such file or directory"),
        OSError("libnvinfer.so.10: file too short"),
        ModuleNotFoundError("No module named 'tensorrt_bindings'", name="tensorrt_bindings"),
        RuntimeError("TensorRT currently does not build wheels for this platform"),
    ],
    ids=["library", "damaged", "bindings", "stub"],
)
def test_bindings_without_their_library_say_so(installed: Any, reason: Exception) -> None:
    installed(tensorrt=reason)
    with pytest.raises(BackendUnavailable, match=r"tensorrt is installed, but its libraries \(libnvinfer\)") as caught:
        find_api()
    assert str(reason) in caught.value.message
    assert "LD_LIBRARY_PATH" in str(caught.value.hint)


def test_a_package_of_that_name_without_a_version_is_none_of_it(
    installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed()
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(BackendUnavailable, match="cannot be loaded"):
        find_api()


def test_an_unknown_library_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="no TensorRT is called 'trt'"):
        find_api("trt")


@pytest.mark.skipif(not find_spec("tensorrt_rtx"), reason="TensorRT-RTX is not installed")
def test_the_real_rtx_tells_what_it_builds_for() -> None:
    api = find_api("tensorrt_rtx")
    assert api.rtx
    assert api.version >= (1, 7)
    assert (8, 6) in api.targets()
    assert (9, 0) not in api.targets()
    assert not api.plugins
    assert not api.timing_cache
    assert api.builds_without_gpu


def test_tensorrt_itself_builds_for_the_gpu_at_hand(installed: Any) -> None:
    installed(tensorrt="11.4.0.106")
    api = find_api()
    assert api.targets() == ()
    assert api.plugins
    assert api.timing_cache
    assert not api.builds_without_gpu
    assert api.unfit(None, b"") is None


@pytest.mark.parametrize(
    ("validity", "flags", "said"),
    [
        (0, 0, None),
        (1, 1, None),
        (2, 1, "version mismatch"),
        (2, 6, "unsupported compute capability, old cuda driver"),
        (2, 0, "invalid"),
    ],
)
def test_rtx_tells_before_loading_why_a_plan_does_not_fit(validity: int, flags: int, said: str | None) -> None:
    """Its diagnostics are bits of a number."""
    trt = pytest.importorskip("tensorrt_rtx")
    api = Api(trt, "tensorrt_rtx", (1, 7, 1, 116), rtx=True)
    answer = (trt.EngineValidity(validity), flags)
    assert api.unfit(SimpleNamespace(get_engine_validity=lambda _: answer), b"") == said


# Options.


def test_the_options_of_model_yaml() -> None:
    settings = read_settings(
        {
            **{"workspace_mb": 512, "builder_level": 5, "hardware_compatibility": "ampere_plus", "tf32": True},
            **{"weight_streaming": 100, "timing_cache": "/var/t", "cuda_graphs": False, "aux_streams": 0},
        }
    )
    assert settings.timing_cache == Path("/var/t")
    assert settings.weight_streaming == 100
    assert settings.streams_weights
    assert read_settings({"compute_capability": 8.6}).capabilities == ((8, 6),)
    assert read_settings({"compute_capability": ["8.6", 12.0]}).capabilities == ((8, 6), (12, 0))
    assert read_settings({"compute_capability": "current"}).current
    assert not read_settings({}).tf32
    assert not read_settings({"weight_streaming": False}).streams_weights


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"workspce_mb": 1}, "unknown key 'workspce_mb'; allowed with the tensorrt backend: library, workspace_mb"),
        ({"workspace_mb": 0}, "workspace_mb: Input should be greater than or equal to 1"),
        ({"workspace_mb": True}, "workspace_mb: Input should be a valid integer"),
        ({"builder_level": 6}, "builder_level: Input should be less than or equal to 5"),
        ({"tf32": "no"}, "tf32: Input should be a valid boolean"),
        ({"hardware_compatibility": "all"}, "hardware_compatibility: Input should be 'none', 'ampere_plus'"),
        ({"compute_capability": ["current", "8.6"]}, "compute_capability: current stands alone"),
        ({"compute_capability": "sm_86"}, "compute_capability: String should match"),
        ({"weight_streaming": "a lot"}, "weight_streaming: Input should be"),
        ({"profiling_verbosity": "loud"}, "profiling_verbosity: Input should be"),
    ],
)
def test_wrong_options_are_explained(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidModel, match=r"runtime\.options: ") as caught:
        read_settings(options)
    assert complaint in caught.value.message


def test_options_that_a_library_does_not_have_are_refused(installed: Any) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    api = Api(rtx, "tensorrt_rtx", (1, 7, 1, 116), rtx=True)
    read_settings({"compute_capability": ["8.6", "12.0"], "hardware_compatibility": "none"}).check(api)
    with pytest.raises(InvalidModel, match=r"TensorRT-RTX 1\.7\.1\.116 has no hardware_comp"):
        read_settings({"hardware_compatibility": "ampere_plus"}).check(api)
    with pytest.raises(InvalidModel, match=r"does not build for 9\.0") as caught:
        read_settings({"compute_capability": ["8.6", "9.0"]}).check(api)
    assert "it has 7.5, 8.0, 8.6, 8.9, 12.0, 12.1" in str(caught.value.hint)
    installed(tensorrt="10.16.1.11")
    with pytest.raises(InvalidModel, match=r"TensorRT 10\.16\.1\.11 has no compute_capability"):
        read_settings({"compute_capability": "8.6"}).check(find_api())


# The log.


@pytest.fixture
def api() -> Iterator[Api]:
    """With a logger of its own: they are kept for the module's life."""

    class ILogger:
        pass

    module = ModuleType("tensorrt")
    module.ILogger = ILogger  # type: ignore[attr-defined]  # modules have what one gives them
    yield Api(module, "tensorrt", (10, 16), rtx=False)


def say(api: Api, severity: str, message: str) -> None:
    logger(api).log(SimpleNamespace(name=severity), message)


def test_errors_become_the_reason_of_who_tries(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), errors(api) as found:
        say(api, "WARNING", "Make sure input x has Int64 binding.")
        say(api, "INTERNAL_ERROR", "Thread context has not been set! Using global log stream.")
        assert found.reason == "TensorRT does not say why"
        say(api, "ERROR", "IBuilder::x: Error Code 4: API Usage Error (No profile. In validate at /_src/a/b.cpp:12)")
        say(api, "ERROR", "IBuilder::x: Error Code 4: API Usage Error (No profile. In validate at /_src/a/b.cpp:12)")
    assert found.reason == "API Usage Error (No profile.)"
    levels = [record.levelno for record in caplog.records]
    assert set(levels) == {logging.INFO}  # who tries says it, once


def test_errors_that_nobody_waits_for_are_logged_as_such(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        say(api, "ERROR", "the device is lost")
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.ERROR, "the device is lost")]


def test_what_threads_try_is_told_apart(api: Api) -> None:
    from threading import Thread

    def other() -> None:
        with errors(api) as theirs:
            say(api, "ERROR", "theirs")
        found.append(theirs.messages)

    found: list[list[str]] = []
    with errors(api) as ours:
        thread = Thread(target=other)
        thread.start()
        thread.join()
        own = Thread(target=say, args=(api, "ERROR", "of TensorRT's own thread"))
        own.start()
        own.join()
    assert found == [["theirs"]]
    assert ours.messages == ["of TensorRT's own thread"]


def test_there_is_one_logger(api: Api) -> None:
    assert logger(api) is logger(api)


def test_messages_are_shortened() -> None:
    said = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (no device In x::y at /_src/z.cpp:3)"
    assert in_short(said) == "Cuda Runtime (no device)"
