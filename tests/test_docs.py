"""What the docs show of model.yaml is what the loader takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from visionpool_server.models.bundle import Bundle
from visionpool_server.models.preprocess import STEPS, recipe_from

PAGE = (Path(__file__).parent.parent / "docs/models.md").read_text(encoding="utf-8")


def written_steps() -> list[str]:
    """The first column of the table of steps, each alternative by itself."""
    table = PAGE.partition("### preprocess")[2].partition("###")[0]
    rows = re.findall(r"^\| (`.+?`.*?) \|", table, re.MULTILINE)
    return [code for row in rows for code in re.findall(r"`([a-z_]+: ?[^`]*|gray)`", row)]


def test_the_example_is_one() -> None:
    examples = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)]
    for example in examples:
        recipe_from(Bundle.model_validate(example).preprocess or ())
    assert set(Bundle.model_fields) in map(set, examples)


@pytest.mark.parametrize("step", written_steps())
def test_each_step_is_one(step: str) -> None:
    filled = step.replace("[H, W]", "[64, 96]").replace("[...]", "[0.5, 0.5, 0.5]")
    said: Any = yaml.safe_load(filled)
    recipe_from([said])


def test_no_step_is_left_out() -> None:
    assert {step.partition(":")[0] for step in written_steps()} == {*STEPS, "normalize"}
