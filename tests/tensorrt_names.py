"""Which of TensorRT's names a piece of source touches, read off its syntax tree.

Three kinds are found: what is taken from the module (`trt.BuilderFlag.TF32`, whatever stands before `trt`), what is taken from
a variable whose class is known (by what it was assigned from, by a comment `# trt.X` beside its annotation, or by its usual
name), and any other attribute whose name belongs to TensorRT.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

API = Path(__file__).with_name("tensorrt_api.json")
MADE_BY = {  # method or class -> what it returns
    "Builder": "Builder",
    "OnnxParser": "OnnxParser",
    "Runtime": "Runtime",
    "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile",
    "create_timing_cache": "ITimingCache",
    "get_timing_cache": "ITimingCache",
    "build_serialized_network": "IHostMemory",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext",
    "create_engine_inspector": "EngineInspector",
    "create_runtime_config": "IRuntimeConfig",
    "get_plugin_registry": "IPluginRegistry",
    "get_input": "ITensor",
    "get_output": "ITensor",
    "get_layer": "ILayer",
    "get_error": "ParserError",
}
NAMED = {  # what variables of these names hold in backends/tensorrt
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "registry": "IPluginRegistry",
    "inspector": "EngineInspector",
}
_COMMENT = re.compile(r"(\w+)\s*:\s*Any\b[^#\n]*#\s*trt\.(\w+)")


@dataclass(frozen=True, slots=True)
class Touch:
    """`name` of `owner`; owner "" is the module, "*" any class."""

    owner: str
    name: str
    line: int = field(compare=False, default=0)


def listing() -> dict[str, dict[str, list[str]]]:
    """Version -> class -> members, of TensorRT 10.16, 11.4 and RTX."""
    found: dict[str, dict[str, list[str]]] = json.loads(API.read_text())
    return found


def touches(source: str) -> Iterator[Touch]:
    tree = ast.parse(source)
    known = NAMED | dict(_COMMENT.findall(source)) | _assigned(tree)
    ours = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))} | _fields(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        value = node.value
        if _is_module(value):
            yield Touch("", node.attr, node.lineno)
        elif isinstance(value, ast.Attribute) and _is_module(value.value):
            yield Touch(value.attr, node.attr, node.lineno)
        elif (name := _variable(value)) in known:
            yield Touch(known[name], node.attr, node.lineno)
        elif node.attr not in ours:
            yield Touch("*", node.attr, node.lineno)


def _fields(tree: ast.AST) -> set[str]:
    """What classes here declare to hold."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    lines = [line for body in bodies for line in body if isinstance(line, ast.AnnAssign)]
    return {line.target.id for line in lines if isinstance(line.target, ast.Name)}


def _is_module(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "trt") or (isinstance(node, ast.Attribute) and node.attr == "trt")


def _variable(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _assigned(tree: ast.AST) -> dict[str, str]:
    """Variables and attributes that are assigned from a call in MADE_BY."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Call):
            made = MADE_BY.get(_variable(node.value.func))
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update({_variable(target): made for target in targets if made})
    return found


def missing_from(api: Mapping[str, list[str]], touched: Touch, of_any: set[str]) -> bool:
    """Whether this version lacks what is touched. `of_any`: the members that some version's classes have."""
    if touched.owner == "":
        return touched.name not in api
    if touched.owner == "*":
        return touched.name in of_any and not any(touched.name in members for members in api.values())
    if touched.name.startswith("__"):
        return False
    members = api.get(touched.owner)
    return members is None or (bool(members) and touched.name not in members)
