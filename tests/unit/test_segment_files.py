"""Segments as files are read whole or not at all, with every fault named."""

from __future__ import annotations

import pytest
from caudal.projections.criteria import parse
from caudal.projections.membership.definitions import BadSegment, Draft
from caudal.projections.membership.files import read


def test_a_file_is_called_after_or_names_its_segment_and_has_text_a_tree_or_a_list(tmp_path):
    (tmp_path / "loyal.yaml").write_text(
        'description: Often here\ncriteria: orders_count >= 2 and\n  city = "Recife"\n'
    )
    (tmp_path / "one.yml").write_text("name: other\ncriteria: {field: age, op: '>', value: 3}\n")
    (tmp_path / "vips.yaml").write_text("list: true\n")
    (tmp_path / "README.md").write_text("no segment")
    assert read(tmp_path) == [
        Draft("loyal", parse('orders_count >= 2 and city = "Recife"'), "Often here"),
        Draft("other", parse("age > 3"), ""),
        Draft("vips", None, ""),
    ]
    assert read(tmp_path / "vips.yaml") == [Draft("vips", None, "")]


def test_every_fault_is_named_with_its_file(tmp_path):
    for name, text in {
        "a": "criteria: agee > 3", "b": "criteria: {all: []}", "c": "list: true\ncriteria: age > 3", "d": "colour: red", "e": "[",
        "f": "name: 3\nlist: true", "g": "list: maybe", "h": "criteria: age > 3", "i": "x: &a [*a]",
    }.items():  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(BadSegment) as fault:
        read(tmp_path)
    told = str(fault.value).split("; ")
    assert {line.partition(":")[0] for line in told if ".yaml:" in line} == {f"{name}.yaml" for name in "abcdefgi"}
    assert "a.yaml: at character 1: unknown field" in str(fault.value)


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(BadSegment, match="holds no"):
        read(tmp_path)
    with pytest.raises(BadSegment, match=r"none\.yaml: No such file"):
        read(tmp_path / "none.yaml")
