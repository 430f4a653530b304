"""What happens around a conversion: the cache, several processes, and a converter that crashes, hangs or is not there.

The converter is a stand-in that does as it is told; `test_pir.py` has the real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from visionpool.errors import BackendUnavailable, InvalidModel
from visionpool_server.models.conversion import cache, paddle3, readable
from visionpool_server.models.conversion.parameters import truncated
from visionpool_server.models.files import find_models
from visionpool_server.models.loader import Defaults, Model, load_model
from visionpool_server.user_cache import user_cache

from tests import format_models
from tests.format_models import BIAS

STAND_IN = """
import os, pathlib, sys, time
here = pathlib.Path(__file__).parent.parent

def export(program, parameters, **options):
    with (here / "calls").open("a") as calls:
        calls.write(f"{program} {parameters}\\n")
    print("[Paddle2ONNX] Start parsing the Paddle model file...", flush=True)
    how = (here / "behaviour").read_text()
    if how == "crash":
        os.abort()
    if how == "hang":
        time.sleep(600)
    if how == "refuse":
        print("[ERROR] Failed to convert PaddlePaddle model: operator warp_drive is not supported yet.", flush=True)
        raise UnboundLocalError("onnx_model_str")
    if how == "colour":
        sys.exit("\\x1b[31m[ERROR] in red\\x1b[0m")
    if how == "leave":
        os._exit(7)
    if how == "write junk":
        return b"junk"
    return (here / "model.onnx").read_bytes()
"""


class StandIn:
    """A `paddle2onnx` that converts everything into the small model of `format_models`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for package, content in (("paddle", ""), ("paddle2onnx", STAND_IN)):
            (folder / package).mkdir(parents=True)
            (folder / package / "__init__.py").write_text(content)
        format_models.onnx(folder)
        self.does("convert")

    def does(self, behaviour: str) -> None:
        (self.folder / "behaviour").write_text(behaviour)

    @property
    def calls(self) -> int:
        calls = self.folder / "calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(tmp_path / "site")
    monkeypatch.syspath_prepend(str(stand_in.folder))
    monkeypatch.setenv("PYTHONPATH", str(stand_in.folder), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    return stand_in


@pytest.fixture
def program(tmp_path: Path) -> Path:
    folder = tmp_path / "means"
    folder.mkdir()
    (folder / "inference.pdiparams").write_bytes(format_models.pdiparams(BIAS))
    (folder / "inference.json").write_text('{"base_code":{"magic":"pir","version":1},"program":{}}')
    return folder / "inference.json"


def load(path: Path, **defaults: Any) -> Model:
    (files,) = find_models(path)
    return load_model(files, Defaults(**{"workers": 1, **defaults}))


def refused(path: Path, **defaults: Any) -> str:
    with pytest.raises(InvalidModel) as caught:
        load(path, **defaults)
    return str(caught.value)


def entries(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


# The cache


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_converted_model_keeps_its_name_and_is_served_by_either_backend(
    converter: StandIn, program: Path, tmp_path: Path, backend: str
) -> None:
    model = load(program.parent, backend=backend, cache_dir=tmp_path / "kept")
    assert (model.name, model.task) == ("means", "tensor")
    pictures = np.random.default_rng(0).random((2, 3, 8, 8)).astype(np.float32)
    engine = model.pool.groups[0].engine
    (answer,) = engine.clone().infer({"picture": pictures}).values()
    assert np.allclose(answer, format_models.means(pictures, "NCHW"), atol=1e-6)


def test_a_model_is_converted_once(converter: StandIn, program: Path, tmp_path: Path) -> None:
    first = readable(program, tmp_path / "kept")
    assert first.read_bytes() == (converter.folder / "model.onnx").read_bytes()
    assert first.name.startswith("inference-")
    assert [readable(path, tmp_path / "kept") for path in (program, program)] == [first, first]
    assert converter.calls == 1
    assert entries(tmp_path / "kept") == [".onnx", ".sha256"]


@pytest.mark.parametrize("changed", ["program", "weights", "converter"])
def test_what_a_conversion_depends_on_makes_it_another(
    converter: StandIn, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    first = readable(program, tmp_path / "kept")
    if changed == "program":
        program.write_text(program.read_text() + " ")
    elif changed == "weights":
        program.with_suffix(".pdiparams").write_bytes(format_models.pdiparams(BIAS * 2))
    else:
        monkeypatch.setattr(paddle3, "_version", lambda package: "99.0")
    assert readable(program, tmp_path / "kept") != first
    assert converter.calls == 2


def test_any_other_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = format_models.onnx(tmp_path)
    assert readable(path, tmp_path / "kept") == path
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "no digest", "another digest", "gone"])
def test_a_damaged_entry_is_made_anew(converter: StandIn, program: Path, tmp_path: Path, damage: str) -> None:
    path = readable(program, tmp_path / "kept")
    good, digest = path.read_bytes(), path.with_suffix(".sha256")
    match damage:
        case "cut":
            path.write_bytes(good[:-1])
        case "changed":
            path.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
        case "empty":
            path.write_bytes(b"")
        case "no digest":
            digest.unlink()
        case "another digest":
            digest.write_bytes(b"\xff" * 64)
        case _:
            path.unlink()
    assert readable(program, tmp_path / "kept").read_bytes() == good
    assert converter.calls == 2
    readable(program, tmp_path / "kept")
    assert converter.calls == 2


def test_it_is_kept_where_the_model_the_flag_or_the_user_says(
    converter: StandIn, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(program.parent)
    assert entries(tmp_path / "users" / "visionpool") == [".onnx", ".sha256"]
    load(program.parent, cache_dir=tmp_path / "flag")
    assert ".onnx" in entries(tmp_path / "flag")
    (program.parent / "model.yaml").write_text(f"runtime: {{cache_dir: {tmp_path / 'own'}}}")
    load(program.parent, cache_dir=tmp_path / "other")
    assert ".onnx" in entries(tmp_path / "own")
    assert not (tmp_path / "other").exists()
    for said in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", said)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert user_cache() == tmp_path / "home" / ".cache" / "visionpool"


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert user_cache() is None


KEEPS_NOTHING = """
import sys
from pathlib import Path
from visionpool_server.models.conversion import readable
paths = {readable(Path(sys.argv[1]), None) for _ in range(2)}
print(paths.pop(), len(paths))
"""


def test_without_a_cache_it_lasts_as_long_as_the_process(converter: StandIn, program: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")  # no folder can be made in a file, whoever asks
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file")}
    command = [sys.executable, "-c", KEEPS_NOTHING, str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    path, others = done.stdout.split()
    assert others == "0"
    assert converter.calls == 1
    assert not Path(path).exists()
    assert not Path(path).parent.exists()


def test_a_cache_that_somebody_named_must_be_writable_unless_the_model_is_in_it(
    converter: StandIn, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be kept in" in refused(program.parent, cache_dir=tmp_path / "file" / "kept")
    readable(program, tmp_path / "kept")
    monkeypatch.setattr(
        cache, "_writable", lambda folder: None
    )  # as on a disk that is read-only; root may write anywhere
    readable(program, tmp_path / "kept")
    assert converter.calls == 1


AT_ONCE = """
import sys
from pathlib import Path
from visionpool_server.models.conversion import readable
sys.stdin.readline()
print(readable(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def test_processes_that_convert_at_once_all_get_a_good_model(converter: StandIn, program: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", AT_ONCE, str(program), str(tmp_path / "kept")]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    paths = {process.communicate(timeout=120)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0] * 4
    (path,) = paths
    assert Path(path).read_bytes() == (converter.folder / "model.onnx").read_bytes()
    assert entries(tmp_path / "kept") == [".onnx", ".sha256"]
    before = converter.calls
    readable(program, tmp_path / "kept")
    assert converter.calls == before


# The converter


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("crash", "the converter crashed (SIGABRT)"),
        ("refuse", "operator warp_drive is not supported yet."),
        ("leave", "the converter ended with status 7"),
        ("write junk", "cannot be converted to ONNX: "),
        ("colour", "cannot be converted to ONNX: in red (is it"),
    ],
)
def test_what_goes_wrong_in_the_converter_is_told_and_not_kept(
    converter: StandIn, program: Path, tmp_path: Path, behaviour: str, says: str
) -> None:
    converter.does(behaviour)
    message = refused(program.parent, cache_dir=tmp_path / "kept")
    assert message.startswith("means: inference.json cannot be converted to ONNX: ")
    assert says in message
    assert "paddle2onnx --model_dir . --model_filename inference.json" in message
    assert entries(tmp_path / "kept") == []
    converter.does("convert")
    assert load(program.parent, cache_dir=tmp_path / "kept").name == "means"


def test_a_converter_that_hangs_is_ended(
    converter: StandIn, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paddle3, "TIME_LIMIT", 3.0)
    converter.does("hang")
    assert "took longer than 3 seconds" in refused(program.parent, cache_dir=tmp_path / "kept")
    assert entries(tmp_path / "kept") == []


def test_without_the_converter_the_message_says_how_to_get_on(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paddle3, "find_spec", lambda module: None)
    with pytest.raises(BackendUnavailable) as caught:
        load(program.parent)
    assert "paddle2onnx and paddlepaddle" in caught.value.message
    assert caught.value.hint is not None
    assert "pip install 'visionpool[paddle]'" in caught.value.hint
    assert "--save_file inference.onnx" in caught.value.hint
    format_models.onnx(tmp_path)
    (tmp_path / "model.onnx").rename(program.with_suffix(".onnx"))  # what the hint says to do
    for path in (program.parent, tmp_path):
        (files,) = find_models(path)
        assert (files.name, files.weights) == ("means", program.with_suffix(".onnx"))
    assert load(program.parent).name == "means"


def test_weights_that_are_not_beside_the_program_are_missed_by_name(
    converter: StandIn, program: Path, tmp_path: Path
) -> None:
    program.with_suffix(".pdiparams").rename(program.parent / "other.pdiparams")
    (program.parent / "model.yaml").write_text("weights: inference.json")
    assert "weights in inference.pdiparams, which is not beside it" in refused(program.parent)


# .pdiparams


@pytest.mark.parametrize("shapes", [[(3,)], [(2, 3), (), (4, 1, 1)], [(300, 7)]])
def test_a_file_of_weights_that_ends_too_soon_is_known(tmp_path: Path, shapes: list[tuple[int, ...]]) -> None:
    whole = format_models.pdiparams(*(np.ones(shape, np.float32) for shape in shapes))
    ends = {
        len(format_models.pdiparams(*(np.ones(shape, np.float32) for shape in shapes[:n])))
        for n in range(len(shapes) + 1)
    }
    path = tmp_path / "w.pdiparams"
    for size in range(len(whole) + 1) if len(whole) < 1000 else range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        assert truncated(path) == (size not in ends), size  # what ends after a tensor is whole as far as it goes


def test_a_file_of_another_form_is_left_to_the_converter(tmp_path: Path) -> None:
    path = tmp_path / "w.pdiparams"
    random = np.random.default_rng(0)
    for size in (0, 40, 5000):
        path.write_bytes(b"\x01" + random.bytes(size))
        assert truncated(path) in (True, False)
    path.write_bytes(b"\x01" + bytes(100))  # another version
    assert not truncated(path)


def test_cut_weights_are_refused_before_the_converter_fills_them_up(
    converter: StandIn, program: Path, tmp_path: Path
) -> None:
    weights = program.with_suffix(".pdiparams")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "inference.pdiparams is damaged: it ends within a tensor" in refused(
        program.parent, cache_dir=tmp_path / "kept"
    )
    assert converter.calls == 0
