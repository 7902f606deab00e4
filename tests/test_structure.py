"""What keeps the tree readable: who may import whom, sizes, and a README whose files, flags and targets are there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("archs", "engine", "kernels", "launch")
MAY_IMPORT = {
    "kernels": set(),
    "archs": {"kernels"},
    "engine": {"archs", "kernels"},
    "launch": {"engine"},
}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported_packages(path: Path) -> set[str]:
    """This project's packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found & set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        foreign = imported_packages(path) - {package} - MAY_IMPORT[package]
        assert not foreign, f"{path.relative_to(ROOT)} imports {', '.join(foreign)}"


def test_files_are_one_idea_each():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not [path for path, length in lengths.items() if length > 400]
    assert not [path for path in (ROOT / "launch").glob("*.py") if lengths[path] >= 100]
    assert not [path for path in SOURCES if path.stem.rstrip("s") in ("util", "helper", "common", "misc")]


def test_every_module_and_public_name_says_what_it_is():
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.relative_to(ROOT)}: {node.name}"


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_names_files_that_are_there(readme):
    named = set(re.findall(r"\b(?:configs|tests|launch|profiles|engine|archs)/[\w./-]*\w", readme))
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_readme_names_flags_that_are_there(readme):
    text = subprocess.run(
        [sys.executable, "launch/train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for script in ("evaluate", "bench", "plan"):
        text += subprocess.run(
            [sys.executable, f"launch/{script}.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    launchers = {"--config_file", "--num_processes", "--nproc_per_node", "--no-compile"}
    flags = set(re.findall(r"--[a-z][\w.-]*\w", readme)) - launchers
    assert len(flags) > 10
    assert not [flag for flag in flags if flag not in text]


def test_readme_names_make_targets_that_are_there(readme):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"make ([a-z][\w-]*)", readme))
    assert {"train", "test"} <= targets
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_readme_table_has_every_network(readme):
    import archs

    table = set(re.findall(r"^\| `(\w+)`", readme, re.MULTILINE))
    assert set(archs.names()) <= table


def test_a_foreign_kernels_package_is_told_plainly(tmp_path):
    """The PyPI package `kernels` on the path would otherwise fail somewhere deep inside."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
    code += "from engine.imports import refuse_foreign_packages as refuse; refuse()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert str(package) in done.stderr and "pip uninstall kernels" in done.stderr
