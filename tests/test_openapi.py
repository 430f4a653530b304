"""The OpenAPI document of a running server: valid, complete, and true to what the server answers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openapi_schema_validator import validate as validate_instance
from openapi_spec_validator import validate

from tests.real_server import Server, picture


@pytest.fixture(scope="module")
def document(shared_server: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{shared_server.url}/openapi.json", timeout=30).json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def schema_of(document: dict[str, Any], path: str, method: str, status: str = "200") -> dict[str, Any]:
    """The schema of a JSON answer, which finds what it refers to."""
    content = document["paths"][path][method]["responses"][status]["content"]
    return {**content["application/json"]["schema"], "components": document["components"]}


def references(value: Any) -> Iterator[str]:
    match value:
        case {"$ref": str(reference)}:
            yield reference
        case dict():
            for inner in value.values():
                yield from references(inner)
        case list():
            for inner in value:
                yield from references(inner)


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in references(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in found, reference
            found = found[part]


def test_every_route_is_described(document: dict[str, Any]) -> None:
    assert {name for name, _ in operations(document) if " /v2" not in name} == {
        "POST /v1/models/{model}/predict",
        "GET /v1/models",
        "GET /v1/models/{model}",
        "GET /v1/devices",
        "POST /fd/{model}",
        "GET /health/live",
        "GET /health/ready",
        "GET /metrics",
    }
    assert {"GET /v2", "POST /v2/models/{model}/infer", "GET /v2/models/{model}/config"} <= {
        n for n, _ in operations(document)
    }
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["tags"], name


def test_predict_has_its_bodies_options_answers_and_examples(document: dict[str, Any]) -> None:
    predict = document["paths"]["/v1/models/{model}/predict"]["post"]
    parameters = {parameter["name"] for parameter in predict["parameters"]}
    assert parameters == {
        *("model", "score_threshold", "iou_threshold", "top_k", "max_detections", "classes", "timeout_ms"),
        *("compact", "score_map"),
    }
    assert set(predict["requestBody"]["content"]) == {
        *("image/jpeg", "image/png", "multipart/form-data", "application/json")
    }
    assert set(predict["responses"]) >= {"200", "400", "404", "408", "413", "415", "422", "429", "500", "503", "504"}
    assert set(predict["responses"]["200"]["content"]) == {"application/json", "image/jpeg", "image/png"}


def test_the_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    seen = 0
    for name, operation in operations(document):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (content for body in bodies for content in body.get("content", {}).values()):
            if "example" in content:
                assert "schema" in content, name
                validate_instance(content["example"], {**content["schema"], "components": document["components"]})
                seen += 1
    assert seen >= 3


def test_what_the_server_answers_fits_its_schema(document: dict[str, Any], shared_server: Server) -> None:
    path = "/v1/models/{model}/predict"
    body = {"images": [{"base64": base64.b64encode(picture((200, 20, 30))).decode()}]}
    accepted = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validate_instance(body, {**accepted, "components": document["components"]})
    with httpx.Client(base_url=shared_server.url, timeout=30) as client:
        for template, method, status, response in [
            (path, "post", "200", client.post("/v1/models/colours/predict", json=body)),
            (path, "post", "422", client.post("/v1/models/colours/predict?top_k=0", json=body)),
            (path, "post", "404", client.post("/v1/models/nobody/predict", json=body)),
            ("/v1/models", "get", "200", client.get("/v1/models")),
            ("/v1/models/{model}", "get", "200", client.get("/v1/models/colours")),
            (
                "/fd/{model}",
                "post",
                "200",
                client.post("/fd/colours", json={"data": {"image": body["images"][0]["base64"]}}),
            ),
        ]:
            assert str(response.status_code) == status
            validate_instance(response.json(), schema_of(document, template, method, status))
