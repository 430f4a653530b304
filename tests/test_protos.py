"""protos/: the generated code is current, everything in it is explained, and results pass through it unchanged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from hypothesis import given
from visionpool.messages import read_result, write_result
from visionpool.results import RESULT_TYPES, Result, SegmentationResult, result_from_dict
from visionpool.v1 import vision_pb2 as v1

from tests.test_results import results

ROOT = Path(__file__).parent.parent
SOURCE = "visionpool/v1/vision.proto"
COMMITTED = ROOT / "client/visionpool/v1"


def compiled(*arguments: str) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'protos'}", *arguments, SOURCE]
    subprocess.run(command, check=True, timeout=60)


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    file = tmp_path_factory.mktemp("protos") / "vision.bin"
    compiled(f"--descriptor_set_out={file}", "--include_source_info")
    return FileDescriptorSet.FromString(file.read_bytes()).file[0]


def test_the_committed_code_is_what_the_protos_give(tmp_path: Path) -> None:
    compiled(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}")
    fresh = {file.name: file.read_text("utf-8") for file in (tmp_path / "visionpool/v1").iterdir()}
    assert len(fresh) == 3
    for name, text in fresh.items():
        assert (COMMITTED / name).read_text("utf-8") == text, f"{name} is old: run scripts/protos"


def test_the_script_that_generates_it_takes_the_same_protos_and_options() -> None:
    script = (ROOT / "scripts/protos").read_text("utf-8")
    assert SOURCE in script
    assert set(re.findall(r"--\w+_out", script)) == {"--python_out", "--pyi_out", "--grpc_python_out"}


def test_everything_is_explained(description: FileDescriptorProto) -> None:
    told = {tuple(place.path): place.leading_comments.strip() for place in description.source_code_info.location}
    silent = [name for path, name in declared(description).items() if not told.get(path)]
    assert silent == []


def declared(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """Path in the descriptor (descriptor.proto, SourceCodeInfo) -> name, of all that a file declares."""
    names: dict[tuple[int, ...], str] = {}
    for i, message in enumerate(file.message_type):
        names[4, i] = message.name
        names |= {(4, i, 2, j): f"{message.name}.{field.name}" for j, field in enumerate(message.field)}
    for i, enum in enumerate(file.enum_type):
        names[5, i] = enum.name
        names |= {(5, i, 2, j): value.name for j, value in enumerate(enum.value)}
    for i, service in enumerate(file.service):
        names[6, i] = service.name
        names |= {(6, i, 2, j): f"{service.name}.{method.name}" for j, method in enumerate(service.method)}
    return names


def test_conventions_that_keep_an_api_extensible(description: FileDescriptorProto) -> None:
    for service in description.service:
        for method in service.method:
            assert method.input_type == f".visionpool.v1.{method.name}Request"
            assert method.output_type == f".visionpool.v1.{method.name}Response"
    for enum in description.enum_type:
        assert (enum.value[0].number, enum.value[0].name.endswith("_UNSPECIFIED")) == (0, True)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", field.name) for m in description.message_type for field in m.field)


def test_options_know_whether_they_were_given(description: FileDescriptorProto) -> None:
    (options,) = [message for message in description.message_type if message.name == "PredictOptions"]
    assert all(field.proto3_optional or is_repeated(field) for field in options.field)


def test_numbers_keep_all_their_digits(description: FileDescriptorProto) -> None:
    def floats(message: DescriptorProto) -> list[str]:
        return [field.name for field in message.field if field.type == FieldDescriptorProto.TYPE_FLOAT]

    assert [floats(message) for message in description.message_type if floats(message)] == []


def is_repeated(field: FieldDescriptorProto) -> bool:
    return field.label == FieldDescriptorProto.LABEL_REPEATED


def test_every_type_of_result_has_a_message_of_its_name() -> None:
    kinds = v1.Result.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert {field.name: field.message_type.name for field in kinds} == {
        name: kind.__name__ for name, kind in RESULT_TYPES.items()
    }


def sent(result: Result) -> Result:
    """`result` as it comes out at the other side."""
    message = v1.Result()
    write_result(result, message)
    return read_result(v1.Result.FromString(message.SerializeToString()))


@given(results)
def test_results_pass_unchanged_and_equal_those_of_json(result: Result) -> None:
    received = sent(result)
    assert received == result == result_from_dict(result.to_dict())
    assert received.to_json() == result.to_json()  # the types of numbers, too: 1 is not 1.0


@pytest.mark.parametrize("kind", RESULT_TYPES.values(), ids=lambda kind: kind.type)
def test_a_result_without_content_keeps_its_type(kind: Any) -> None:
    assert sent(kind()) == kind()


def test_a_kind_of_result_that_is_not_known_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown type"):
        read_result(v1.Result())


def test_a_label_map_takes_one_byte_a_pixel() -> None:
    message = v1.Result()
    write_result(SegmentationResult(label_map=(127,) * 10_000, shape=(100, 100)), message)
    assert message.ByteSize() < 10_050
