"""Every name of TensorRT that the code touches is there in each major version that it says it works with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tensorrt_names import Touch, listing, missing_from, touches

ROOT = Path(__file__).parent.parent
SOURCES = [
    *sorted((ROOT / "server/visionpool_server/backends/tensorrt").glob("*.py")),
    ROOT / "server/visionpool_server/building/tensorrt.py",
    *sorted((ROOT / "examples/tensorrt_plugin").glob("*.py")),
    ROOT / "benchmarks/on_gpu/bare_enqueue.py",
    ROOT / "benchmarks/on_gpu/tensor_rt.py",
]
MAJORS = ("10.16.1.11", "11.4.0.106")
RTX = "rtx-1.7.1"


def found_missing(source: str, *versions: str) -> list[Touch]:
    api = listing()
    of_any = {member for names in api.values() for members in names.values() for member in members}
    return [touch for touch in touches(source) for version in versions if missing_from(api[version], touch, of_any)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_name_is_in_both_major_versions(path: Path) -> None:
    rtx_alone = path.name == "api.py"  # which knows the difference; nothing else may
    missing = found_missing(path.read_text(), *MAJORS)
    if rtx_alone:
        missing = [touch for touch in missing if touch in found_missing(path.read_text(), RTX)]
    assert missing == []


def test_the_walk_sees_the_calls() -> None:
    """An empty list above must not come from a walk that finds nothing."""
    seen = {touch for path in SOURCES for touch in touches(path.read_text()) if touch.owner != "*"}
    wanted = {
        Touch("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        Touch("Builder", "build_serialized_network"),
        Touch("IBuilderConfig", "set_memory_pool_limit"),
        Touch("OnnxParser", "parse_from_file"),
        Touch("Runtime", "deserialize_cuda_engine"),
        Touch("ICudaEngine", "create_execution_context"),
        Touch("IExecutionContext", "execute_async_v3"),
        Touch("IExecutionContext", "set_tensor_address"),
        Touch("", "IOutputAllocator"),
    }
    assert wanted <= seen


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", Touch("BuilderFlag", "FP16")),
        ("trt.IInt8Calibrator", Touch("", "IInt8Calibrator")),
        ("def f(api, builder):\n    return builder.platform_has_fast_fp16", Touch("Builder", "platform_has_fast_fp16")),
        (
            "made = self._thing.deserialize_cuda_engine(plan)\nmade.device_memory_size",
            Touch("ICudaEngine", "device_memory_size"),
        ),
        (
            "def f(x: Any):  # trt.IExecutionContext\n    return x.execute_async_v2(1)",
            Touch("IExecutionContext", "execute_async_v2"),
        ),
        ("whoever.set_calibration_profile(1)", Touch("*", "set_calibration_profile")),
        ("config.set_compute_capability(1)", Touch("IBuilderConfig", "set_compute_capability")),
    ],
)
def test_a_name_that_a_version_lacks_is_found(code: str, missing: Touch) -> None:
    assert missing in found_missing(code, *MAJORS)


def test_plain_code_is_left_alone() -> None:
    assert found_missing("import json\njson.dumps(x.y.z).strip()\nself.close()", *MAJORS) == []
