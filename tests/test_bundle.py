"""model.yaml: what it may say, what it overrides, and messages that name the wrong key and the ones allowed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from visionpool.errors import InvalidModel, SetupError
from visionpool_server.models.bundle import Bundle, read_bundle
from visionpool_server.models.labels import read_labels, resolve_labels
from visionpool_server.models.preprocess import recipe_from

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["1.0/255.0", "__import__('os')", "../../x", "\x00", "yolov8", "openvino", "CPU", 10**4000, -1, 0]),
)
KEYS = st.one_of(
    st.sampled_from([*Bundle.model_fields, "device", "count", "size", "sizes"]), st.text(max_size=4), st.integers()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


def written(folder: Path, content: object) -> Path:
    path = folder / "model.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def refusal(folder: Path, content: object) -> str:
    with pytest.raises(InvalidModel) as caught:
        read_bundle(written(folder, content))
    return str(caught.value)


def test_everything_that_the_design_shows_can_be_written(tmp_path: Path) -> None:
    text = """
    task: detection
    family: yolov8
    weights: yolov8n.onnx
    labels: coco.names
    runtime:
      backend: openvino
      device: HETERO:GPU,CPU
      cpu_operators: [MulticlassNms]
      shapes: {images: [1, 3, 640, 640]}
      precision: f16
    workers:
      - {device: GPU, count: 2}
      - {device: cuda:0, backend: tensorrt, precision: f16, cores: near}
      - {device: CPU, cores: "0-3,8", options: {NUM_STREAMS: 1}}
      - {device: CPU, cores: 5}
    batching: {max_batch_size: 8, max_queue_delay_us: 0, max_queue_size: 128, timeout_ms: 2000}
    preprocess: [{letterbox: 640}]
    postprocess: {score_threshold: 0.25, iou_threshold: 0.45}
    """
    bundle = read_bundle(written(tmp_path, text))
    assert bundle.runtime.cpu_operators == ("MulticlassNms",)
    assert bundle.runtime.shapes == {"images": (1, 3, 640, 640)}
    assert isinstance(bundle.workers, tuple)
    assert bundle.workers[0].count == 2
    assert [entry.cores for entry in bundle.workers] == [None, "near", "0-3,8", "5"]
    assert bundle.workers[1].backend == "tensorrt"
    assert bundle.workers[2].options == {"NUM_STREAMS": 1}
    assert bundle.batching.max_batch_size == 8


@pytest.mark.parametrize("page", ["models", "nvidia", "ocr", "intel", "fastdeploy"])
def test_what_the_documentation_shows_can_be_written(page: str) -> None:
    text = (Path(__file__).parent.parent / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        Bundle.checked(page, yaml.safe_load(block))
    assert blocks


@pytest.mark.parametrize("url", ["grpc://host:8001", "grpcs://10.0.0.1:443", "grpc://[::1]:8001", "grpc://a-b.c_d:1"])
def test_the_address_of_a_remote_server_is_a_url(tmp_path: Path, url: str) -> None:
    bundle = read_bundle(written(tmp_path, {"runtime": {"backend": "remote", "url": url, "model": "m"}}))
    assert (bundle.runtime.url, bundle.runtime.model) == (url, "m")


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_says_nothing(tmp_path: Path, text: str) -> None:
    assert read_bundle(written(tmp_path, text)) == Bundle()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"#": 1}, r"unknown key '#'; allowed here: name"),
        ({"lables": ["a"]}, r"unknown key 'lables'; allowed here: name, task, family, weights, labels"),
        (
            {"runtime": {"devise": "CPU"}},
            r"unknown key 'runtime.devise'; allowed here: backend, url, model, device, precision, shapes",
        ),
        ({"workers": [{"device": "CPU"}, {"n": 2}]}, r"unknown key 'workers.1.n'; allowed here: device, count"),
        ({"batching": {"size": 2}}, r"unknown key 'batching.size'; allowed here: max_batch_size, sizes, "),
        ({"postprocess": {"nms": 1}}, r"unknown key 'postprocess.nms'; allowed here: score_threshold, iou_threshold"),
        ({"task": "detektion"}, r"task: .*'classification', 'detection'"),
        ({"family": "yolov99"}, r"family: unknown 'yolov99'; allowed: classification, .*yolov5, "),
        ({"workers": [{"count": 1}, {"backend": "torch"}]}, r"workers.1.backend: unknown 'torch'; allowed: openvino, "),
        (
            {"workers": [{"backend": "remote"}]},
            r"workers: remote is a backend for all of a model; say runtime.backend: rem",
        ),
        ({"workers": [{"precision": "f8"}]}, r"workers.0.precision: .*'f32', 'bf16', 'f16' or 'int8'"),
        ({"workers": [{"cores": [0, 1]}]}, r"workers.0.cores: numbers and ranges are expected, as 0-3,8, or near$"),
        ({"workers": [{"cores": True}]}, r"workers.0.cores: numbers and ranges"),
        ({"workers": [{"cores": -1}]}, r"workers.0.cores: numbers and ranges"),
        ({"workers": [{"options": ["a"]}]}, r"workers.0.options: [^;]*$"),
        ({"runtime": {"plugins": "lib.so"}}, r"runtime.plugins: Input should be a valid list$"),
        ({"runtime": {"profiles": {"x": {}}}}, r"runtime.profiles: .*list$"),
        (
            {"runtime": {"profiles": [{"x": {"min": [1], "opt": [1], "mx": [1]}}]}},
            r"profiles.0.x.max: Field required; unknown key 'runtime.profiles.0.x.mx'; allowed here: min, opt, max$",
        ),
        (
            {"runtime": {"profiles": [{"x": {"min": [2], "opt": [1], "max": [4]}}]}},
            r"runtime.profiles.0.x: in each dimension min is at most opt, and opt at most max$",
        ),
        ({"runtime": {"profiles": [{"x": {"min": [1], "opt": [1, 3], "max": [4]}}]}}, r"profiles.0.x: .*as many dim"),
        (
            {"runtime": {"profiles": [{"x": {"min": [0], "opt": [1], "max": [4]}}]}},
            r"profiles.0.x.min.0: .*equal to 1$",
        ),
        ({"runtime": {"prepare_on": "GPU"}}, r"runtime.prepare_on: .*'cpu' or 'gpu'$"),
        ({"runtime": {"backend": "torch"}}, r"runtime.backend: unknown 'torch'; allowed: openvino, onnxruntime"),
        (
            {"runtime": {"backend": "remote"}},
            r"runtime.backend: remote needs the server's address; say runtime.url: grpc://",
        ),
        ({"runtime": {"url": "grpc://host:8001"}}, r"runtime.url means nothing without runtime.backend: remote"),
        (
            {"runtime": {"backend": "openvino", "model": "m"}},
            r"runtime.model means nothing without runtime.backend: rem",
        ),
        ({"runtime": {"backend": "remote", "url": "http://host:1"}}, r"runtime.url: .*pattern"),
        ({"runtime": {"backend": "remote", "url": "grpc://host"}}, r"runtime.url: .*pattern"),
        ({"runtime": {"backend": "remote", "url": "grpc://a b:1"}}, r"runtime.url: .*pattern"),
        ({"raw_pictures": "grb"}, r"raw_pictures: .*'rgb' or 'bgr'"),
        ({"aliases": ["a"]}, r"aliases: "),
        ({"runtime": {"precision": "f8"}}, r"runtime.precision: .*'f32', 'bf16', 'f16' or 'int8'"),
        ({"runtime": {"shapes": {"x": [1, "many"]}}}, r"runtime.shapes.x.1: "),
        ({"runtime": {"shapes": {"x": [1, 10**30]}}}, r"runtime.shapes.x.1: "),
        ({"runtime": "CPU"}, r"runtime: "),
        ({"workers": 0}, r"workers: .*greater than or equal to 1"),
        ({"workers": []}, r"workers: an empty list makes no workers"),
        ({"workers": "two"}, r"workers: .*integer"),
        ({"workers": [{"count": "two"}]}, r"workers.0.count: .*integer"),
        ({"batching": {"max_batch_size": 0}}, r"batching.max_batch_size: .*greater than or equal to 1"),
        ({"batching": {"sizes": [1, 0]}}, r"batching.sizes.1: "),
        ({"batching": {"timeout_ms": 10**400}}, r"batching.timeout_ms: "),
        ({"postprocess": {"score_threshold": 2}}, r"postprocess.score_threshold: .*less than or equal to 1"),
        ({"postprocess": {"score_threshold": float("nan")}}, r"postprocess.score_threshold: "),
        ({"name": "../x"}, r"name: "),
        ({"labels": {"zero": "a"}}, r"labels.zero"),
        ({"labels": {-1: "a"}}, r"labels.-1"),
        ({"labels": {10**9: "a"}}, r"labels.1000000000"),
        ({"labels": 3}, r"labels: .*string"),
        ({"input_size": [640]}, r"input_size"),
        ({"input_size": [640, 0]}, r"input_size.1: "),
        ({"preprocess": {"resize": 3}}, r"preprocess: "),
        (["a", "list"], r"a map of keys is expected \(allowed: name, task"),
        ("just text", r"a map of keys is expected"),
        ("a: [1, 2", r"not readable as YAML"),
        ("when: 2024-99-99", r"not readable as YAML"),
        ("x: !!python/object/apply:os.system ['true']", r"not readable as YAML"),
        ("x: &a [*a]", r"unknown key 'x'|not readable"),
        ("[" * 5000, r"not readable as YAML"),
        ("{a: b}: c", r"."),
        ("labels: [0x" + "f" * 5000 + "]", r"labels"),
        ("workers: 0x" + "f" * 5000, r"workers"),
        ("runtime: {shapes: {x: [0x" + "f" * 5000 + "]}}", r"runtime.shapes.x.0"),
        ("name: \x00", r"not readable as YAML"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(tmp_path: Path, content: object, says: str) -> None:
    message = refusal(tmp_path, content)
    assert "model.yaml" in message
    assert not re.search("#(plain|list|map)", message)
    assert re.search(says, message), message


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"lables": [], "task": "x", "runtime": {"devise": 1}})
    assert all(key in message for key in ("'lables'", "task", "'runtime.devise'"))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(InvalidModel, match="not readable as YAML"):
        read_bundle(tmp_path / "model.yaml")
    with pytest.raises(InvalidModel, match="not readable as YAML"):
        read_bundle(tmp_path)


def test_an_alias_bomb_costs_nothing(tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for i in range(9):
        bomb += f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n"
    assert len(refusal(tmp_path, bomb + "labels: *j\npreprocess: *j\ntask: *j")) < 4000


def test_what_is_written_wins_key_by_key_over_what_was_found() -> None:
    found = Bundle.model_validate(
        {
            "task": "detection",
            "labels": ["a", "b"],
            "runtime": {"device": "GPU", "precision": "f16"},
            "postprocess": {"score_threshold": 0.5},
        }
    )
    said = Bundle.model_validate({"labels": ["c"], "runtime": {"device": "CPU"}, "postprocess": {"iou_threshold": 0.3}})
    both = said.over(found)
    assert (both.task, both.labels) == ("detection", ("c",))
    assert (both.runtime.device, both.runtime.precision) == ("CPU", "f16")
    assert (both.postprocess.score_threshold, both.postprocess.iou_threshold) == (0.5, 0.3)


@given(VALUES)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_says_only_setup_errors_come_out(tmp_path: Path, content: Any) -> None:
    try:
        path = written(tmp_path, yaml.safe_dump(content))
    except (ValueError, TypeError, yaml.YAMLError):
        return  # PyYAML does not write every value
    try:
        bundle = read_bundle(path)
        resolve_labels(bundle.labels, tmp_path)
        recipe_from(bundle.preprocess or ())
    except SetupError as error:
        assert error.message


@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bytes_a_file_has_only_setup_errors_come_out(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.yaml").write_bytes(data)
    try:
        read_bundle(tmp_path / "model.yaml")
    except SetupError as error:
        assert error.message


# Labels


def test_labels_are_a_file_a_list_or_a_map(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n\n", encoding="utf-8")
    assert resolve_labels("names.txt", tmp_path) == ("cat", "dog")
    assert resolve_labels(("cat", "dog"), tmp_path) == ("cat", "dog")
    assert resolve_labels({1: "dog", 3: "cow"}, tmp_path) == ("0", "dog", "2", "cow")
    assert resolve_labels(None, tmp_path) == ()


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("0 tench, Tinca\n1 goldfish\n", ("tench, Tinca", "goldfish")),  # PaddleClas
        ("\ufeffcat\r\ndog\r\n", ("cat", "dog")),  # Windows
        ("1 one\n2 two\n", ("1 one", "2 two")),  # not its own number: kept
        ("a\n\nb", ("a", "", "b")),
        ("", ()),
    ],
)
def test_label_files_have_one_name_a_line(tmp_path: Path, text: str, labels: tuple[str, ...]) -> None:
    (tmp_path / "labels.txt").write_bytes(text.encode())
    assert read_labels(tmp_path / "labels.txt") == labels


@pytest.mark.parametrize("name", ["missing.txt", "a\0b", ".", "binary"])
def test_a_label_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(InvalidModel, match="labels: cannot read"):
        resolve_labels(name, tmp_path)
