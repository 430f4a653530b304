"""The chart's table of values, in its README, and the descriptions in its schema: both from the comments in values.yaml.

Run by scripts/chart-readme.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent.parent / "helm/visionpool"
BEGIN, END = "<!-- values: made by scripts/chart-readme -->", "<!-- end of values -->"
LONGEST = 60  # characters of a default in the table


@dataclass(frozen=True, slots=True)
class Value:
    """A key of values.yaml: `path` to it, and the text above it. `default` is None in JSON for a section, whose keys follow."""

    path: tuple[str, ...]
    comment: str
    default: str | None


def values(text: str) -> Iterator[Value]:
    """All keys of values.yaml that have a comment, sections before their keys. Raises ValueError for a key without one."""
    root = yaml.compose(text, yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    yield from _values(root, text.splitlines(), ())


def _values(mapping: yaml.MappingNode, lines: list[str], above: tuple[str, ...]) -> Iterator[Value]:
    for key, value in mapping.value:
        path = (*above, key.value)
        comment = _comment(lines, key.start_mark.line, key.start_mark.column)
        if _is_section(value, lines):
            yield Value(path, comment, None)
            yield from _values(value, lines, path)
        elif comment:
            yield Value(path, comment, json.dumps(yaml.SafeLoader("").construct_document(value)))
        else:
            raise ValueError(f"values.yaml:{key.start_mark.line + 1}: {'.'.join(path)} has no comment")


def _is_section(node: yaml.Node, lines: list[str]) -> bool:
    """Whether the keys in it are explained one by one."""
    return isinstance(node, yaml.MappingNode) and any(
        _comment(lines, key.start_mark.line, key.start_mark.column) or _is_section(value, lines)
        for key, value in node.value
        if not node.flow_style
    )


def _comment(lines: list[str], line: int, column: int) -> str:
    """The lines of comment right above a key, as one."""
    start, mark = line, " " * column + "# "
    while start and lines[start - 1].startswith(mark):
        start -= 1
    return " ".join(text.removeprefix(mark).strip() for text in lines[start:line])


def table(found: list[Value]) -> str:
    rows = [
        f"| `{'.'.join(each.path)}` | {_shown(each.default)} | {_cell(each.comment)} |"
        for each in found
        if each.default
    ]
    return "\n".join(["| Value | Default | |", "|---|---|---|", *rows])


def _shown(default: str | None) -> str:
    if default is None or default in ('""', "null"):
        return "unset"
    return f"`{_cell(default)}`" if len(default) <= LONGEST else "see values.yaml"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def described(schema: dict[str, Any], found: list[Value]) -> str:
    """The schema with the comments as descriptions. Raises KeyError for a value that it does not have."""
    for each in found:
        node = schema
        for name in each.path:
            node = node["properties"][name]
        rest = {key: value for key, value in node.items() if key != "description"}
        node.clear()
        node.update({"description": each.comment} if each.comment else {}, **rest)
    return json.dumps(schema, indent=2) + "\n"


def made(chart: Path) -> dict[Path, str]:
    """What README.md and values.schema.json should be."""
    found = list(values((chart / "values.yaml").read_text("utf-8")))
    readme, schema = chart / "README.md", chart / "values.schema.json"
    head, _, rest = readme.read_text("utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    return {
        readme: f"{head}{BEGIN}\n{table(found)}\n{END}{tail}",
        schema: described(json.loads(schema.read_text("utf-8")), found),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Write the chart's table of values and the descriptions of its schema."
    )
    parser.add_argument("--check", action="store_true", help="change nothing, fail where something would be")
    check = parser.parse_args().check
    stale = {path: text for path, text in made(CHART).items() if path.read_text("utf-8") != text}
    for path, text in stale.items():
        if check:
            print(f"{path} is not what values.yaml gives: run scripts/chart-readme", file=sys.stderr)
        else:
            path.write_text(text, "utf-8")
    return bool(stale) and check


if __name__ == "__main__":
    sys.exit(main())
