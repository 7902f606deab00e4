"""Columns for the terminal."""

import pytest

from engine.runs.text_table import LONGEST, clip, text_table, width


def test_columns_line_up_also_with_wide_signs():
    table = text_table(("name", "n"), [("日本", "1"), ("e\u0301a", "22"), ("plain", "333")])
    assert {width(line) for line in table.splitlines()} == {10}


def test_first_columns_flush_left_numbers_right():
    assert text_table(("a", "b", "n"), [("x", "yy", "1"), ("xx", "y", "10")], left=2) == (
        "a   b    n\nx   yy   1\nxx  y   10"
    )


def test_a_name_cannot_steer_the_terminal():
    assert clip("a\x1b[31mb\nc\td") == "a�[31mb�c�d"


def test_long_names_are_cut():
    assert width(clip("x" * 300)) == LONGEST
    assert width(clip("日" * 300)) <= LONGEST
    assert clip("x" * LONGEST) == "x" * LONGEST


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells"):
        text_table(("a", "b"), [("1",)])
