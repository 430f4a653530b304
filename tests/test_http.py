"""Pictures in, results out, over HTTP against a real server: every form of a body, every option, every answer.

The model is fake: its answer is the picture's mean colour, so that each answer is held against its own picture.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from visionpool.results import ClassifyResult, result_from_dict
from visionpool_server.app import DEMO_MODELS

from tests.conftest import Serve
from tests.raw_http import error_of
from tests.real_server import COLOURS, Server, picture, scores, shares

RED, GREEN, BLUE = (200, 20, 30), (10, 220, 20), (30, 20, 210)
PREDICT = "/v1/models/colours/predict"
STAGES = ["decode", "prepare", "queue", "infer", "finish"]


@pytest.fixture(scope="module")
def http(shared_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_server.url, timeout=30) as client:
        yield client


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def answered(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of an answer, which must have this status and code."""
    error = error_of(response.content, response.headers["content-type"])
    assert (response.status_code, error["code"]) == (status, code), response.text
    return error


def assert_shows(answer: Any, *colours: tuple[int, int, int]) -> None:
    assert len(answer["results"]) == len(colours)
    for index, colour in enumerate(colours):
        assert scores(answer, index) == pytest.approx(shares(colour), abs=0.01)


class TestBodies:
    @pytest.mark.parametrize(
        ("suffix", "kind"), [(".jpg", "jpeg"), (".png", "png"), (".bmp", "bmp"), (".webp", "webp")]
    )
    def test_the_picture_itself_is_the_body(self, http: httpx.Client, suffix: str, kind: str) -> None:
        body = picture(RED, (64, 48), suffix)
        assert_shows(answered(http.post(PREDICT, content=body, headers={"Content-Type": f"image/{kind}"})), RED)

    @pytest.mark.parametrize("kind", ["image/png", "IMAGE/JPEG; q=1", "image/whatever", "application/octet-stream"])
    def test_what_kind_of_picture_it_is_shows_in_its_bytes_not_in_its_label(
        self, http: httpx.Client, kind: str
    ) -> None:
        answer = http.post(PREDICT, content=picture(RED, kind=".jpg"), headers={"Content-Type": kind})
        assert_shows(answered(answer), RED)

    def test_a_body_without_a_type_is_read_where_it_is_a_picture(self, http: httpx.Client) -> None:
        response = http.post(PREDICT, content=picture(GREEN))
        assert "content-type" not in response.request.headers
        assert_shows(answered(response), GREEN)

    def test_a_body_without_a_type_that_is_no_picture_is_refused_with_what_to_send(self, http: httpx.Client) -> None:
        error = refused(http.post(PREDICT, content=b"hello there, this is not a picture"), 415, "unsupported_media")
        assert "curl --data-binary" in error["hint"]

    @pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
    def test_the_shortest_curl_works(self, shared_server: Server, tmp_path: Path) -> None:
        file = tmp_path / "picture.png"
        file.write_bytes(picture(BLUE))
        command = ["curl", "-sS", "--max-time", "30", "--data-binary", f"@{file}", shared_server.url + PREDICT]
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
        assert_shows(json.loads(done.stdout), BLUE)

    def test_a_form_takes_several_pictures_and_keeps_their_order(self, http: httpx.Client) -> None:
        colours = [RED, GREEN, BLUE, (90, 80, 70)]
        files = [("image", (f"{i}.png", picture(colour, (20 + i, 30)))) for i, colour in enumerate(colours)]
        assert_shows(answered(http.post(PREDICT, files=files)), *colours)

    def test_the_name_of_a_forms_field_does_not_matter(self, http: httpx.Client) -> None:
        assert_shows(answered(http.post(PREDICT, files={"anything": picture(RED)}, data={"note": "a text"})), RED)

    def test_an_option_in_a_form_is_not_lost_in_silence(self, http: httpx.Client) -> None:
        error = refused(http.post(PREDICT, files={"image": picture(RED)}, data={"top_k": "1"}), 400, "invalid_request")
        assert "query" in error["message"] and "top_k" in error["message"]

    def test_a_form_without_a_picture_is_refused(self, http: httpx.Client) -> None:
        files = {"image": (None, "just a text")}
        error = refused(http.post(PREDICT, files=files), 400, "invalid_request")
        assert "curl -F" in error["hint"]

    def test_a_form_that_is_broken_is_refused(self, http: httpx.Client) -> None:
        for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
            error = refused(
                http.post(PREDICT, content=b"nonsense", headers={"Content-Type": kind}), 400, "invalid_request"
            )
            assert "form" in error["message"]

    def test_json_takes_base64_and_data_urls(self, http: httpx.Client) -> None:
        images = [{"base64": text(picture(RED))}, {"base64": "data:image/png;base64," + text(picture(GREEN))}]
        assert_shows(answered(http.post(PREDICT, json={"images": images})), RED, GREEN)

    @pytest.mark.parametrize(
        ("body", "names"),
        [
            (b"{", "JSON"),
            (b"[]", "body"),
            (b"{}", "images"),
            (b'{"images": []}', "images"),
            (b'{"images": [{}]}', "images.0"),
            (b'{"images": [{"base64": "!!"}]}', "images.0.base64"),
            (b'{"images": [{"base64": "AAAA", "url": "http://x/"}]}', "images.0"),
            (b'{"images": [{"base46": "AAAA"}]}', "images.0.base46"),
            (b'{"images": [{"base64": "AAAA"}], "more": 1}', "more"),
            (b'{"images": [{"base64": 5}]}', "images.0.base64"),
            (b"\xff\xfe", "JSON"),
            (b"[" * 5000, "JSON"),
        ],
    )
    def test_json_that_says_something_else_is_refused_and_the_place_is_named(
        self, http: httpx.Client, body: bytes, names: str
    ) -> None:
        response = http.post(PREDICT, content=body, headers={"Content-Type": "application/json"})
        error = refused(response, 400, "invalid_request")
        assert names in error["message"]

    def test_urls_are_refused_unless_they_are_allowed(self, http: httpx.Client) -> None:
        response = http.post(PREDICT, json={"images": [{"url": "http://127.0.0.1:1/picture.png"}]})
        error = refused(response, 400, "invalid_request")
        assert "--allow-urls" in error["hint"]

    def test_more_pictures_than_a_request_may_hold_are_refused(self, http: httpx.Client) -> None:
        images = [{"base64": text(picture(RED))}] * 65
        assert "64" in refused(http.post(PREDICT, json={"images": images}), 413, "too_large")["hint"]

    def test_many_pictures_of_a_request_are_all_answered(self, http: httpx.Client) -> None:
        colours = [(200 - i, 20 + i, 30) for i in range(64)]
        images = [{"base64": text(picture(colour))} for colour in colours]
        assert_shows(answered(http.post(PREDICT, json={"images": images})), *colours)

    def test_one_bad_picture_of_several_fails_the_request_and_is_named(self, http: httpx.Client) -> None:
        files = [("image", picture(RED)), ("image", picture(RED)[:40]), ("image", picture(RED))]
        error = refused(http.post(PREDICT, files=files), 422, "invalid_image")
        assert "picture 2 of 3" in error["message"]


class TestBadPictures:
    @pytest.mark.parametrize("kind", [".png", ".jpg"])
    def test_a_truncated_picture_is_refused(self, http: httpx.Client, kind: str) -> None:
        body = picture(RED, (300, 200), kind)
        response = http.post(PREDICT, content=body[: len(body) // 2], headers={"Content-Type": "image/*"})
        refused(response, 422, "invalid_image")

    def test_an_empty_body_is_refused(self, http: httpx.Client) -> None:
        refused(http.post(PREDICT, headers={"Content-Type": "image/png"}), 422, "invalid_image")

    def test_something_else_under_the_name_of_a_picture_is_refused(self, http: httpx.Client) -> None:
        response = http.post(PREDICT, content=b"%PDF-1.7 ...", headers={"Content-Type": "image/png"})
        refused(response, 415, "unsupported_media")


class TestOptions:
    def test_top_k_bounds_the_classes(self, http: httpx.Client) -> None:
        answer = answered(http.post(PREDICT, params={"top_k": 2}, content=picture(RED)))
        assert answer["results"][0]["labels"] == ["red", "blue"]

    def test_a_score_threshold_leaves_out_what_is_below(self, http: httpx.Client) -> None:
        answer = answered(http.post(PREDICT, params={"score_threshold": 0.5}, content=picture(RED)))
        assert answer["results"][0]["labels"] == ["red"]

    @pytest.mark.parametrize("classes", ["green,blue", "1,2", "green, 2", " green ,blue,"])
    def test_classes_are_chosen_by_name_or_number(self, http: httpx.Client, classes: str) -> None:
        answer = answered(http.post(PREDICT, params={"classes": classes}, content=picture(RED)))
        assert set(answer["results"][0]["labels"]) == {"green", "blue"}

    def test_classes_may_be_given_one_by_one(self, http: httpx.Client) -> None:
        answer = answered(http.post(PREDICT + "?classes=green&classes=blue", content=picture(RED)))
        assert set(answer["results"][0]["labels"]) == {"green", "blue"}

    def test_options_hold_for_every_picture_of_a_request(self, http: httpx.Client) -> None:
        files = [("image", picture(RED)), ("image", picture(GREEN))]
        answer = answered(http.post(PREDICT, params={"top_k": 1}, files=files))
        assert [result["labels"] for result in answer["results"]] == [["red"], ["green"]]

    def test_an_unknown_class_is_refused_with_where_to_look(self, http: httpx.Client) -> None:
        error = refused(http.post(PREDICT, params={"classes": "purple"}, content=picture(RED)), 422, "invalid_option")
        assert "purple" in error["message"]
        assert "labels" in error["hint"]

    def test_an_unknown_option_is_refused_with_the_known_ones(self, http: httpx.Client) -> None:
        error = refused(http.post(PREDICT, params={"treshold": 0.5}, content=picture(RED)), 422, "invalid_option")
        assert "treshold" in error["message"]
        for known in ("score_threshold", "iou_threshold", "top_k", "max_detections", "classes", "timeout_ms"):
            assert known in error["hint"]

    @pytest.mark.parametrize("name", ["iou_threshold", "max_detections"])
    def test_an_option_that_means_nothing_to_the_model_is_refused(self, http: httpx.Client, name: str) -> None:
        error = refused(http.post(PREDICT, params={name: 1}, content=picture(RED)), 422, "invalid_option")
        assert name in error["message"]
        assert "top_k" in error["hint"]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("score_threshold", "1.5"),
            ("score_threshold", "-0.1"),
            ("score_threshold", "high"),
            ("score_threshold", "nan"),
            ("score_threshold", ""),
            ("iou_threshold", "2"),
            ("top_k", "0"),
            ("top_k", "2.5"),
            ("top_k", "99999999999999999999"),
            ("max_detections", "-1"),
            ("timeout_ms", "0"),
            ("timeout_ms", "inf"),
        ],
    )
    def test_a_value_out_of_range_is_refused_and_named(self, http: httpx.Client, name: str, value: str) -> None:
        error = refused(http.post(PREDICT, params={name: value}, content=picture(RED)), 422, "invalid_option")
        assert error["message"].startswith(name)

    def test_a_value_given_twice_is_refused(self, http: httpx.Client) -> None:
        refused(http.post(PREDICT + "?top_k=1&top_k=2", content=picture(RED)), 422, "invalid_option")


class TestAnswers:
    def test_an_answer_names_model_version_and_times(self, http: httpx.Client) -> None:
        answer = answered(http.post(PREDICT, content=picture(RED)))
        assert set(answer) == {"model", "version", "results", "timings_ms"}
        assert (answer["model"], answer["version"]) == ("colours", "1")
        assert list(answer["timings_ms"]) == STAGES
        assert all(value >= 0 for value in answer["timings_ms"].values())
        assert isinstance(result_from_dict(answer["results"][0]), ClassifyResult)

    @pytest.mark.parametrize("accept", ["application/json", "image/png"])
    def test_server_timing_has_the_five_stages(self, http: httpx.Client, accept: str) -> None:
        response = http.post(PREDICT, content=picture(RED), headers={"Accept": accept})
        timing = response.headers["server-timing"].split(", ")
        assert [entry.partition(";")[0] for entry in timing] == STAGES
        assert all(re.fullmatch(r"\w+;dur=\d+\.\d+", entry) for entry in timing)

    @pytest.mark.parametrize(
        ("accept", "kind"),
        [
            ("image/jpeg", "image/jpeg"),
            ("image/png", "image/png"),
            ("IMAGE/PNG", "image/png"),
            ("image/*", "image/jpeg"),
            ("image/webp, image/png;q=0.5", "image/png"),
            ("image/jpeg;q=0.5, image/png;q=0.9", "image/png"),
            ("application/json;q=0.2, image/jpeg", "image/jpeg"),
            ("image/png;q=0.5, */*;q=0.1", "image/png"),
            ("application/json, image/jpeg;q=0.9", "application/json"),
            ("image/jpeg;q=0", "application/json"),
            ("image/png;q=0.3, */*", "application/json"),
            ("*/*", "application/json"),
            ("text/html, image/webp, */*;q=0.8", "application/json"),
            ("image/png;q=nonsense, application/json", "application/json"),
            ("", "application/json"),
        ],
    )
    def test_the_answer_is_of_the_kind_that_the_caller_likes_best(
        self, http: httpx.Client, accept: str, kind: str
    ) -> None:
        response = http.post(PREDICT, content=picture(RED, (90, 70)), headers={"Accept": accept})
        assert response.status_code == 200
        assert response.headers["content-type"] == kind
        if kind != "application/json":
            shown = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR)
            assert shown is not None
            assert shown.shape == (70, 90, 3)
            magic = {"image/png": b"\x89PNG", "image/jpeg": b"\xff\xd8"}[kind]
            assert response.content.startswith(magic)

    def test_an_annotated_picture_is_of_one_picture(self, http: httpx.Client) -> None:
        files = [("image", picture(RED)), ("image", picture(GREEN))]
        response = http.post(PREDICT, files=files, headers={"Accept": "image/png"})
        assert "one by one" in refused(response, 400, "invalid_request")["hint"]

    def test_errors_are_json_whatever_the_caller_likes(self, http: httpx.Client) -> None:
        response = http.post(PREDICT, content=picture(RED)[:40], headers={"Accept": "image/png"})
        refused(response, 422, "invalid_image")


class TestModels:
    def test_the_models_are_listed(self, http: httpx.Client) -> None:
        summary = {"version": "1", "task": "classification", "family": "classification", "state": "ready"}
        assert answered(http.get("/v1/models")) == {"models": [{"name": "colours", **summary}]}

    def test_a_model_is_described(self, http: httpx.Client) -> None:
        model = answered(http.get("/v1/models/colours"))
        assert model["labels"] == list(COLOURS)
        assert model["options"] == ["classes", "score_threshold", "top_k"]
        assert model["inputs"] == [{"name": "images", "shape": [None, 3, None, None], "dtype": "float32"}]
        assert model["outputs"] == [{"name": "output0", "shape": [None, 3], "dtype": "float32"}]
        assert model["source"] == "model.yaml"
        assert model["restarts"] == 0
        assert model["batching"] == {"max_queue_size": 128, "max_queue_delay_us": 0, "timeout_ms": 60000}
        (workers,) = model["workers"]
        assert (workers["backend"], workers["count"]) == ("fake", 2)

    def test_an_unknown_model_is_refused_with_the_known_ones(self, http: httpx.Client) -> None:
        for response in (http.get("/v1/models/colors"), http.post("/v1/models/colors/predict", content=picture(RED))):
            error = refused(response, 404, "model_not_found")
            assert "colors" in error["message"]
            assert "colours" in error["hint"]


class TestHealth:
    def test_a_server_with_its_models_loaded_is_live_and_ready(self, http: httpx.Client) -> None:
        assert answered(http.get("/health/live")) == {"status": "live"}
        assert answered(http.get("/health/ready")) == {"status": "ready"}

    def test_the_front_page_leads_to_the_documentation(self, http: httpx.Client) -> None:
        response = http.get("/", follow_redirects=True)
        assert response.status_code == 200
        assert response.url.path == "/docs"
        assert "swagger" in response.text

    @pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/v1/models", "/v1/models/colours", "/docs"])
    def test_head_is_get_without_the_body(self, http: httpx.Client, path: str) -> None:
        got, head = http.get(path), http.head(path)
        assert head.status_code == got.status_code == 200
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
        assert head.headers["content-length"] == str(len(got.content))

    @pytest.mark.parametrize(("path", "method"), [(PREDICT, "POST"), ("/v1/models", "GET")])
    def test_options_says_what_is_allowed(self, http: httpx.Client, path: str, method: str) -> None:
        response = http.options(path)
        assert method in response.headers["allow"]
        refused(response, 405, "method_not_allowed")


class TestFastDeploy:
    """simple_serving's client posts `{"data": {"image": <base64>}, "parameters": {}}` and reads `result`, a string."""

    def ask(self, http: httpx.Client, body: Any) -> httpx.Response:
        return http.post("/fd/colours", json=body, headers={"Content-Type": "application/json"})

    def test_its_clients_go_on_working(self, http: httpx.Client) -> None:
        answer = answered(self.ask(http, {"data": {"image": text(picture(RED))}, "parameters": {}}))
        assert set(answer) == {"result"}
        result = json.loads(answer["result"])
        assert result["label_ids"] == [0, 2, 1]
        assert result["scores"] == pytest.approx([0.8, 0.12, 0.08], abs=0.01)

    @pytest.mark.parametrize("parameters", [None, {"top_k": 1}])
    def test_parameters_are_our_options(self, http: httpx.Client, parameters: Any) -> None:
        answer = answered(self.ask(http, {"data": {"image": text(picture(RED))}, "parameters": parameters}))
        assert json.loads(answer["result"])["label_ids"] == ([0] if parameters else [0, 2, 1])

    @pytest.mark.parametrize(
        "body", [{}, [], {"data": {}}, {"data": {"image": 5}}, {"data": {"image": "!"}}, {"data": None}]
    )
    def test_another_format_is_refused(self, http: httpx.Client, body: Any) -> None:
        refused(self.ask(http, body), 400, "invalid_request")

    def test_a_wrong_parameter_and_a_broken_picture_are_refused(self, http: httpx.Client) -> None:
        image = text(picture(RED))
        refused(self.ask(http, {"data": {"image": image}, "parameters": {"top_k": -1}}), 422, "invalid_option")
        refused(self.ask(http, {"data": {"image": image[:40]}}), 422, "invalid_image")

    def test_an_unknown_model_is_refused(self, http: httpx.Client) -> None:
        refused(http.post("/fd/nothing", json={"data": {"image": ""}}), 404, "model_not_found")


@pytest.mark.skipif(
    not all((DEMO_MODELS / name).is_dir() for name in ("shapes", "digits")),
    reason="the demo models are not trained yet",
)
def test_the_demo_models_are_served_where_no_path_is_given(serve: Serve) -> None:
    server = serve()
    listed = httpx.get(f"{server.url}/v1/models").json()["models"]
    assert {(model["name"], model["task"]) for model in listed} == {
        ("shapes", "detection"),
        ("digits", "classification"),
    }
    for name in ("shapes", "digits"):
        answered(httpx.post(f"{server.url}/v1/models/{name}/predict", content=picture(RED, (320, 240)), timeout=60))
