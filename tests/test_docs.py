"""What the docs show of model.yaml is what the loader takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from visionpool_server.api.options import PredictOptions
from visionpool_server.families import TASKS
from visionpool_server.models import discovery
from visionpool_server.models.bundle import Bundle, Postprocess
from visionpool_server.models.preprocess import STEPS, recipe_from

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "models.md").read_text(encoding="utf-8")
FAMILIES_PAGE = (DOCS / "families.md").read_text(encoding="utf-8")


def written_steps() -> list[str]:
    """The first column of the table of steps, each alternative by itself."""
    table = PAGE.partition("### preprocess")[2].partition("###")[0]
    rows = re.findall(r"^\| (`.+?`.*?) \|", table, re.MULTILINE)
    return [code for row in rows for code in re.findall(r"`([a-z_]+: ?[^`]*|gray|crop_square)`", row)]


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


def keys_of_table(text: str, header: str) -> list[str]:
    """What stands in backquotes in the first column of the table with that header, up to a colon."""
    rows = text.partition(header)[2].partition("\n\n")[0]
    cells = re.findall(r"^\| ([^|]*) \|", rows, re.MULTILINE)
    return [key for cell in cells for key in re.findall(r"`([a-z0-9_]+)", cell)]


def test_every_key_of_postprocess_is_there() -> None:
    assert sorted(keys_of_table(PAGE, "| Key | For | |")) == sorted(Postprocess.model_fields)


def test_every_option_of_a_request_is_there() -> None:
    page = (DOCS / "http.md").read_text(encoding="utf-8")
    assert sorted(keys_of_table(page, "| Query | For | |")) == sorted(PredictOptions.model_fields)


def test_every_family_is_there_with_its_task_and_what_was_verified() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\(#\w+\)[^|]*\| (\w+) \|", FAMILIES_PAGE, re.MULTILINE)
    assert dict(rows) == {**TASKS, "ocr": "ocr"}
    assert set(keys_of_table(FAMILIES_PAGE, "| Family | ONNX, openvino |")) == {*TASKS, "ocr"}


def test_the_models_that_the_families_show_can_be_written() -> None:
    for text in re.findall(r"^```yaml\n(.*?)^```$", FAMILIES_PAGE, re.DOTALL | re.MULTILINE):
        recipe_from(Bundle.model_validate(yaml.safe_load(text)).preprocess or ())


def test_every_file_that_exporters_write_is_there() -> None:
    page = (DOCS / "formats.md").read_text(encoding="utf-8")
    table = page.partition("| File | Written by |")[2].partition("\n\n")[0]
    assert [*discovery._CONFIGS, "metadata.yaml"] == re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
