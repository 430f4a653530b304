"""Kubernetes' own schemas, from kubernetes-validate, with the parsed ones kept: a hundred renders take seconds."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import referencing
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents

Registry = referencing.Registry[Any]


@cache
def definitions(version: str) -> tuple[Any, Registry]:
    contents = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    resource = referencing.Resource.from_contents(contents)
    return contents, resource @ referencing.Registry()


@cache
def _validator(kind: str, api_version: str, version: str) -> Draft202012Validator | None:
    short = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    try:
        schema = schema_contents(
            f"kubernetes-json-schema/v{version}.0-local-strict/{kind.lower()}-{short}.json", version
        )
    except FileNotFoundError:
        return None
    registry = referencing.Resource.from_contents(schema) @ definitions(version)[1]
    return Draft202012Validator(schema, registry=registry)


def is_known(document: dict[str, Any], version: str) -> bool:
    return _validator(document["kind"], document["apiVersion"], version) is not None


def faults(document: dict[str, Any], version: str) -> list[str]:
    """What that version of Kubernetes would refuse, unknown fields included; document has to be of a kind it knows."""
    validator = _validator(document["kind"], document["apiVersion"], version)
    assert validator is not None
    errors = validator.iter_errors(document)
    return [f"{document['kind']}.{'.'.join(map(str, error.path))}: {error.message}" for error in errors]
