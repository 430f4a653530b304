"""The dashboard's queries and the rules against a real Prometheus that scrapes a real server under load.

Panels and rules of GPUs have no data where there is no GPU: their queries are only read by Prometheus.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
import yaml
from visionpool.errors import VisionpoolError
from visionpool.grpc import GrpcClient

from tests.deploy.prometheus_server import MISSING, Prometheus, installed, prometheus
from tests.prometheus_text import scrape
from tests.real_server import Server, picture, serving, write_model

FILES = Path(__file__).parents[2] / "helm" / "visionpool" / "files"
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
DASHBOARD: dict[str, Any] = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))
RULES: dict[str, Any] = yaml.safe_load((FILES / "rules.yaml").read_text(encoding="utf-8"))
RED, DEADLY, POISON = (255, 0, 0), (250, 0, 0), (240, 0, 0)
needs_prometheus = pytest.mark.skipif(not installed, reason=MISSING)


def panels() -> list[tuple[str, dict[str, Any]]]:
    """Each panel that shows something, with the title of its row."""
    found, row = [], ""
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            found.append((row, panel))
    return found


def queries(*, gpu: bool) -> list[tuple[str, str]]:
    """(panel: query), of the GPUs' row or of all others; and those of the annotations."""
    of = [(f"{row} / {p['title']}", t["expr"]) for row, p in panels() if ("GPU" in row) == gpu for t in p["targets"]]
    notes = [
        (f"annotation {note['name']}", note["expr"]) for note in DASHBOARD["annotations"]["list"] if "expr" in note
    ]
    return of + ([] if gpu else notes)


def substituted(query: str, **chosen: str) -> str:
    """As Grafana does, with All chosen unless said: a regular expression for variables of several values."""
    for variable in DASHBOARD["templating"]["list"]:
        value = chosen.get(variable["name"], variable.get("allValue", ""))
        query = query.replace(f"${variable['name']}", value)
    return query.replace("$__rate_interval", "5s")


def rules(*, gpu: bool = False) -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"] if ("gpu" in group["name"]) == gpu]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    write_model(models / "colours", {"latency_ms": 5}, batching={"max_batch_size": 4, "max_queue_size": 2}, workers=1)
    write_model(models / "fragile", {"die": DEADLY, "fail": POISON})
    with serving(Path(__file__).parents[2] / "server/visionpool_server/demo/digits", models) as running:
        yield running


@pytest.fixture(scope="module")
def watching(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, with a server that is under load as long as it is asked."""
    folder, over = tmp_path_factory.mktemp("prometheus"), Event()
    target = server.url.removeprefix("http://")
    with prometheus(folder, target, FILES / "rules.yaml") as running, ThreadPoolExecutor(9) as threads:
        load = [threads.submit(_load, server, over) for _ in range(8)]
        load.append(threads.submit(_grpc_load, server, over))
        try:
            names = [rule["record"] for rule in rules() if "record" in rule]
            running.until(lambda: all(map(running.query, names)), f"data of {names}")
            yield running
        finally:
            over.set()
            wait(load)
    assert [one.exception() for one in load] == [None] * len(load)


def _load(server: Server, over: Event) -> None:
    """What is answered, what is refused, what is wrong, and what kills a worker."""
    with httpx.Client(base_url=f"{server.url}/v1/models", timeout=30) as client:
        while not over.is_set():
            for _ in range(10):
                client.post("/colours/predict", content=picture(RED))
            client.post("/digits/predict", content=picture(RED, (28, 28)))
            client.post("/colours/predict", content=b"no picture")
            client.post("/nobody/predict", content=picture(RED))
            client.post("/fragile/predict", content=picture(POISON))
            client.post("/fragile/predict", content=picture(DEADLY))


def _grpc_load(server: Server, over: Event) -> None:
    with GrpcClient(server.grpc) as client:
        while not over.is_set():
            with suppress(VisionpoolError):
                client.predict("colours", picture(RED))


@needs_prometheus
@pytest.mark.parametrize(("panel", "query"), queries(gpu=False), ids=lambda value: value if "/" in value else "")
def test_each_panel_has_data(watching: Prometheus, panel: str, query: str) -> None:
    expression = substituted(query)
    if panel.startswith("annotation"):  # marks what has happened: nothing, as a rule
        expression = expression.replace(" > 0", " >= 0")
    watching.until(lambda: bool(watching.query(expression)), f"data for {panel}: {expression}")


@needs_prometheus
def test_a_panel_shows_the_model_and_instance_that_are_chosen(watching: Prometheus, server: Server) -> None:
    (query,) = (query for panel, query in queries(gpu=False) if panel == "Traffic / Pictures by model")
    instance = server.url.removeprefix("http://")
    chosen = watching.query(substituted(query, namespace="vision", instance=instance, model="(digits|colours)"))
    assert {series["metric"]["model"] for series in chosen} == {"digits", "colours"}
    assert not watching.query(substituted(query, namespace="elsewhere"))


def _has_data(watching: Prometheus, query: str) -> bool:
    return bool(watching.query(query))


@needs_prometheus
def test_the_queries_of_the_docs_have_data(watching: Prometheus) -> None:
    text = DOCS.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)\n```$", text, re.M | re.S)
    found = [code for language, code in blocks if not language] + re.findall(r"`(rate\(.*?)`", text)
    assert len(found) >= 5
    for query in found:
        watching.until(partial(_has_data, watching, query), f"data for {query}")


@needs_prometheus
def test_both_transports_are_seen(watching: Prometheus) -> None:
    (query,) = (query for panel, query in queries(gpu=False) if panel == "Traffic / Requests by transport")

    def moving() -> bool:
        found = watching.query(f"{substituted(query)} > 0")
        return {series["metric"]["transport"] for series in found} == {"http", "grpc"}

    watching.until(moving, "load on both transports")


@needs_prometheus
def test_the_variables_offer_what_there_is(watching: Prometheus, server: Server) -> None:
    offered = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            matched = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert matched is not None
            assert variable["query"]["query"] == variable["definition"]
            selector, label = matched.groups()
            values = watching.ask(f"label/{label}/values", **{"match[]": substituted(selector)})
            offered[variable["name"]] = set(values)
    assert offered == {
        "namespace": {"vision"},
        "instance": {server.url.removeprefix("http://")},
        "model": {"colours", "digits", "fragile"},
    }


@needs_prometheus
@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("record") or rule["alert"])
def test_each_rule_has_data(watching: Prometheus, rule: dict[str, Any]) -> None:
    """An alert's: what it compares."""
    expression = rule["expr"]
    if "alert" in rule:
        compared = re.fullmatch(r"absent\((.*)\)|(.*) (?:>|==) [\d.]+", expression)
        assert compared is not None, "an alert is a comparison with a number"
        expression = compared[1] or compared[2]
    watching.until(lambda: bool(watching.query(expression)), f"data for {expression}")


@needs_prometheus
def test_rules_are_evaluated_without_errors_and_alerts_go_off(watching: Prometheus) -> None:
    def found() -> dict[str, dict[str, Any]]:
        groups = watching.ask("rules")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    assert found().keys() == {rule.get("record") or rule["alert"] for rule in (*rules(), *rules(gpu=True))}
    assert {rule["health"] for rule in found().values()} <= {"ok", "unknown"}  # unknown: not evaluated yet
    watching.until(lambda: found()["VisionpoolWorkerRestarts"]["state"] == "firing", "alert for a worker that died")
    watching.until(lambda: found()["VisionpoolErrors"]["state"] == "pending", "alert for errors on its way")
    assert found()["VisionpoolNoneReady"]["state"] == "inactive"


@needs_prometheus
def test_the_queries_for_gpus_are_promql(watching: Prometheus) -> None:
    for _, query in queries(gpu=True):
        assert watching.ask("query", query=substituted(query))["resultType"] == "vector"
    for rule in rules(gpu=True):
        assert watching.ask("query", query=rule["expr"])["resultType"] == "vector"


def test_the_queries_for_gpus_are_about_figures_that_there_are(server: Server) -> None:
    known = scrape(server.url).families()
    asked = [query for _, query in queries(gpu=True)] + [rule["expr"] for rule in rules(gpu=True)]
    names = {name for query in asked for name in re.findall(r"visionpool_\w+", query)}
    assert names
    assert names <= known


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", FILES / "rules.yaml"), ("test", "rules", Path(__file__).parent / "prometheus_rules_test.yaml")],
    ids=["check", "test"],
)
def test_promtool_takes_the_rules(arguments: tuple[Any, ...]) -> None:
    said = subprocess.run(["promtool", *map(str, arguments)], check=False, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stdout + said.stderr


def test_every_alert_is_tested_and_says_what_it_is_about() -> None:
    text = (Path(__file__).parent / "prometheus_rules_test.yaml").read_text(encoding="utf-8")
    tested = {alert for alert, then in re.findall(r"alertname: (\w+)\n +(\w+):", text) if then == "exp_alerts"}
    alerts = [rule for gpu in (False, True) for rule in rules(gpu=gpu) if "alert" in rule]
    assert {alert["alert"] for alert in alerts} == tested
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"].keys() == {"summary", "description"}


def test_the_docs_explain_every_alert_and_recorded_figure_they_name() -> None:
    text = DOCS.read_text(encoding="utf-8")
    alerts = {rule["alert"] for gpu in (False, True) for rule in rules(gpu=gpu) if "alert" in rule}
    records = {rule["record"] for rule in rules() if "record" in rule}
    assert set(re.findall(r"`(Visionpool\w+)`", text)) == alerts
    assert set(re.findall(r"visionpool:\w+:\w+", text)) <= records


def test_the_dashboard_is_whole() -> None:
    """Units are set, panels do not overlap, and ids are unique."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for row, panel in panels():
        assert row
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["type"] in ("table", "heatmap") or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    assert DASHBOARD["id"] is None
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
