"""KServe's types as a JSON schema: read off the classes that its Python package generates from its CRDs' OpenAPI.

The package is not installed, which would bring half a data centre along: its files are read, never imported. What they take from
Kubernetes (containers, volumes) is what Kubernetes' own schemas say.
"""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from tests.deploy.chart_cache import kept
from tests.deploy.chart_kubernetes import definitions

PACKAGE = "kserve==0.21.0"
KUBERNETES = "1.36"
PLAIN: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "bool": {"type": "boolean"},
    "float": {"type": "number"},
    "object": {},
    "ResourceQuantity": {"type": ["string", "number"]},
    "V1beta1MetricQuantity": {"type": ["string", "number"]},
}
ROOTS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}


def _wheel() -> Path:
    """KServe's package; skips the test where it cannot be had."""
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "--dest")
    (wheel,) = kept(PACKAGE.replace("==", "-"), *pip).glob("*.whl")
    return wheel


def _classes(wheel: Path) -> dict[str, tuple[dict[str, str], dict[str, str], set[str]]]:
    """By name: the attributes' types, their names in JSON, and those that may not be left out."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if re.fullmatch(r"kserve/models/v1(alpha|beta)1_\w+\.py", name):
                (made,) = [node for node in ast.parse(archive.read(name)).body if isinstance(node, ast.ClassDef)]
                found[made.name] = _fields(made)
    return found


def _fields(made: ast.ClassDef) -> tuple[dict[str, str], dict[str, str], set[str]]:
    said = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in made.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    required = set(re.findall(r"Invalid value for `(\w+)`, must not be `None`", ast.unparse(made)))
    return said["openapi_types"], said["attribute_map"], required


class _Schema:
    def __init__(self, wheel: Path) -> None:
        self._classes = _classes(wheel)
        self._kubernetes = definitions(KUBERNETES)[0]
        self.definitions: dict[str, Any] = {}

    def of(self, name: str) -> dict[str, Any]:
        """The schema of a type as the package writes it: list[V1Container], dict(str, str), V1beta1ModelSpec."""
        if match := re.fullmatch(r"list\[(.+)\]", name):
            return {"type": "array", "items": self.of(match[1])}
        if match := re.fullmatch(r"dict\(str, (.+)\)", name):
            return {"type": "object", "additionalProperties": self.of(match[1])}
        if name in PLAIN:
            return PLAIN[name]
        return {"$ref": f"#/definitions/{self._definition(name)}"}

    def _definition(self, name: str) -> str:
        if name not in self._classes:
            return self._from_kubernetes(name)
        if name not in self.definitions:
            self.definitions[name] = {}  # types may hold themselves
            types, names, required = self._classes[name]
            properties = {names[key]: self.of(types[key]) for key in types}
            self.definitions[name] = {
                "type": "object",
                "additionalProperties": False,
                "properties": properties,
                "required": sorted(names[key] for key in required if key in names),
            }
        return name

    def _from_kubernetes(self, name: str) -> str:
        """V1Container is io.k8s.api.core.v1.Container, K8sIoApiAppsV1DeploymentStrategy io.k8s.api.apps.v1.DeploymentStrategy.

        What that Kubernetes does not have yet fits nothing."""
        apps = name.removeprefix("K8sIoApiAppsV1")
        group = ["api.apps.v1"] if apps != name else ["api.core.v1", "apimachinery.pkg.apis.meta.v1"]
        short = apps if apps != name else re.sub(r"^V1", "", name)
        names = [full for each in group if (full := f"io.k8s.{each}.{short}") in self._kubernetes["$defs"]]
        self.definitions[name] = {"$ref": f"{self._kubernetes['$id']}#/$defs/{names[0]}"} if names else {"not": {}}
        return name


def validators() -> dict[str, Draft202012Validator]:
    schema = _Schema(_wheel())
    roots = {kind: schema.of(name) for kind, name in ROOTS.items()}
    registry = definitions(KUBERNETES)[1]
    return {
        kind: Draft202012Validator({**root, "definitions": schema.definitions}, registry=registry)
        for kind, root in roots.items()
    }


def faults(document: dict[str, Any], validator: Draft202012Validator) -> list[str]:
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]
