"""What docs/kubernetes.md and the chart's README show is what the chart takes."""

from __future__ import annotations

import json
import re
from typing import Any

import chart_readme
import pytest
import yaml

from tests.deploy.chart_rendering import CHART, helm, kind, manifests, merged, objects

ROOT = CHART.parents[1]
PAGE = (ROOT / "docs/kubernetes.md").read_text("utf-8")
BLOCKS = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)]
EXAMPLES = [block for block in BLOCKS if "rules" not in block]
COMMANDS = re.findall(r"^helm (?:install|upgrade) .*$", PAGE + (CHART / "README.md").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("values", EXAMPLES, ids="+".join)
def test_an_example_can_be_installed(values: dict[str, Any]) -> None:
    assert manifests(values)


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 10
    assert len(COMMANDS) >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_sets_what_there_is(command: str) -> None:
    values: dict[str, Any] = {}
    for said in re.findall(r"--set (\S+)", command):
        values = merged(values, helm.parse_set_string(said))
    assert values
    assert manifests(values)


def test_the_adapter_makes_the_metric_that_the_hpa_waits_for() -> None:
    (rule,) = next(block for block in BLOCKS if "rules" in block)["rules"]["custom"]
    (metric,) = kind(objects({"autoscaling": {"mode": "hpa"}}), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    asked = set(re.findall(r"visionpool_\w+", rule["metricsQuery"]))
    assert asked == {"visionpool_slots_used", "visionpool_queue_length", "visionpool_slots"}


def test_every_value_that_the_page_names_is_there() -> None:
    """`a.b` in backquotes, where `a` is a value's name."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    for name in re.findall(r"`([a-z][A-Za-z-]*(?:\.[A-Za-z-]+)+)(?:: [^`]+)?`", PAGE):
        here: Any = defaults
        for part in name.split(".") if name.split(".")[0] in defaults else []:
            assert part in here, name
            here = here[part]


def test_the_table_and_the_schema_are_what_values_yaml_gives() -> None:
    for path, text in chart_readme.made(CHART).items():
        assert path.read_text("utf-8") == text, f"{path.name} is out of date: run scripts/chart-readme"


def test_every_value_has_a_row_and_a_description() -> None:
    readme = (CHART / "README.md").read_text("utf-8")
    found = list(chart_readme.values((CHART / "values.yaml").read_text("utf-8")))
    assert len(found) > 150
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    for each in found:
        node = schema
        for name in each.path:
            node = node["properties"][name]
        assert node.get("description", "") == each.comment
        assert (f"| `{'.'.join(each.path)}` |" in readme) == (each.default is not None)


def test_a_value_without_a_comment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values\.yaml:4: b\.d has no comment"):
        list(chart_readme.values("b:\n  # Has one.\n  c: 1\n  d: 2\n"))


def test_images_are_called_by_the_projects_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert set(re.findall(r"visionpool:(\S+)-cpu", PAGE)) == {about["appVersion"]}
