"""The tables of networks: complete, counted from the code, and the README's own."""

import pytest

import archs
from engine.report import arch_table

REMAKE = "make them anew: python -m engine.report.arch_table"


def test_the_listing_has_every_network_and_its_facts():
    text = arch_table.listing()
    assert all(any(line.startswith(name) for line in text.splitlines()) for name in archs.names())
    row = next(line for line in text.splitlines() if line.startswith("resnext50, resnext"))
    assert row.split()[2:] == [
        *("arXiv:1611.05431", "torchvision:resnext50_32x4d,", "timm:resne…", "2016", "25.03", "M", "4.23", "G", "224")
    ]


@pytest.mark.parametrize(("count", "told"), [(25_028_904, "25.03 M"), (4.23e9, "4.23 G"), (118.5e6, "118.5 M")])
def test_counts_are_short(count, told):
    assert arch_table.short(count) == told


def test_a_difference_from_the_learning_repository_is_explained_and_nothing_else():
    for theirs, count, name, why in arch_table.LEARNING_REPOSITORY:
        differs = abs(arch_table.millions(name) - count) > 0.006
        assert differs == bool(why), f"{theirs}: {count} M there, {arch_table.millions(name):.3f} M here"


def test_the_readme_s_tables_are_the_code_s(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert arch_table.with_tables(text, arch_table.published(text)) == text, REMAKE


@pytest.mark.slow
def test_the_readme_has_every_network(root):
    """In the slow run: a network that was added just now is published when its memory is planned."""
    text = (root / "README.md").read_text(encoding="utf-8")
    assert arch_table.published(text) == archs.names(), REMAKE


def test_a_readme_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="0 pairs of marks for networks"):
        arch_table.with_tables("# HCR")
