"""The chart as Helm's own code renders it: values to the objects that Kubernetes would get."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

helm = pytest.importorskip("helm_python", reason="Helm's own code (helm-python-sdk) is for Linux only")

CHART = Path(__file__).parents[2] / "helm/visionpool"
RELEASE, NAMESPACE = "demo", "vision"
Object = dict[str, Any]


class _Strict(yaml.CSafeLoader):  # twenty times as fast as the one in Python
    """YAML as Kubernetes reads it: a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{', '.join(twice)} stands twice{node.start_mark}"
        return super().construct_mapping(node, deep)


@cache
def chart() -> Any:  # helm_python.Chart
    return helm.Chart.load(CHART)


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Helm joins several -f files: mappings by their keys, all else from the last."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def nested(path: str, value: object) -> dict[str, Any]:
    """`--set path=value` as values."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def manifests(values: Mapping[str, Any], release: str = RELEASE) -> dict[str, str]:
    """What each template gives. Raises HelmError with the chart's or the schema's message."""
    rendered: dict[str, str] = chart().render(dict(values), name=release, namespace=NAMESPACE)
    return rendered


def objects(values: Mapping[str, Any], release: str = RELEASE) -> list[Object]:
    texts = [text for path, text in manifests(values, release).items() if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.load_all(text, _Strict) if document]


def kind(found: list[Object], wanted: str, ending: str = "") -> Object:
    """The one object of that kind; where there are several, the one whose name ends so."""
    (one,) = [each for each in found if each["kind"] == wanted and each["metadata"]["name"].endswith(ending)]
    return one


def pod_spec(found: list[Object]) -> Object:
    spec: Object = kind(found, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(found: list[Object]) -> Object:
    (server,) = pod_spec(found)["containers"]
    assert isinstance(server, dict)
    return server


def environment(found: list[Object]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(found)["env"]}
