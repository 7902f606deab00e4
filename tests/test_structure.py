"""What keeps the tree readable: who may import whom, sizes, and a README whose files, flags and targets are there."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
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
ROOMS = (
    {"kernels"},
    {"archs"},
    {"engine.config"},
    {"engine.runs"},
    {"engine.data"},
    {"engine.step"},
    {"engine.monitor", "engine.recovery"},
    {"engine.plan"},
    {"engine.report"},
    {"engine.train"},
    {"engine.use"},
    {"engine.bench"},
    {"launch"},
)
"""From the bottom up: a room imports from those below it. Two on one level know nothing of each other."""
MOST_FILES, MOST_LINES = 20, 400
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FOLDERS = sorted({path.parent for path in SOURCES})


def module_of(path: Path) -> str:
    """Dotted name of a source file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def imports(path: Path) -> set[str]:
    """This project's modules that a file imports, anywhere in it, for types too, or names in a text of their own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = names & MODULES.keys()
            found |= inside | ({node.module} if names - inside else set())
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found.add(node.value)  # import_module("engine.report.page"), python -m engine.bench.learn
    return found & MODULES.keys() - {module_of(path)}


def room_of(module: str) -> str:
    """`engine.plan` of `engine.plan.memory.cost`; `archs` of `archs.layers`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "engine" else parts[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        foreign = {module.partition(".")[0] for module in imports(path)} - {package} - MAY_IMPORT[package]
        assert not foreign, f"{path.relative_to(ROOT)} imports {', '.join(foreign)}"


def test_imports_between_rooms_go_down():
    level = {room: place for place, rooms in enumerate(ROOMS) for room in rooms}
    checked = 0
    for module, path in MODULES.items():
        for imported in imports(path):
            room, below = room_of(module), room_of(imported)
            if room == below or module == "engine" or imported == "engine.imports":
                # engine's own front hands on what is asked of it; imports.py imports nothing
                continue
            assert level[below] < level[room], f"{module} imports {imported}"
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_written_out(package):
    """From the root, and not through the front of a room that one stands in: that front imports the room's files."""
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        relative = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
        assert not relative, f"{path.relative_to(ROOT)}:{relative[0]} imports relatively"
        if path.name != "__init__.py":
            own = {one for one in imports(path) if module_of(path).startswith(f"{one}.")}
            assert not own, f"{path.relative_to(ROOT)} imports the room that it stands in, {own.pop()}"


def test_no_import_is_a_circle():
    """Those within functions and for types alone count as well: two files that know each other are one idea."""
    graph = {module: imports(path) for module, path in MODULES.items()}
    for package in [module for module, path in MODULES.items() if path.name == "__init__.py"]:
        graph[package] = {one for one in graph[package] if not one.startswith(f"{package}.")}  # it only hands them on
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_rooms_hold_few_files_and_no_file_has_no_room():
    for folder in FOLDERS:
        own = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(own) <= MOST_FILES, f"{folder.relative_to(ROOT)} has {len(own)} files"
    assert {path.name for path in (ROOT / "engine").glob("*.py")} == {"__init__.py", "imports.py"}
    rooms = {room for level in ROOMS for room in level}
    assert {room_of(module) for module in MODULES} == rooms | {"engine", "engine.imports"}


def test_each_room_says_what_happens_there():
    for folder in FOLDERS:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert text, f"{folder.relative_to(ROOT)} says nothing"
        assert len(text.splitlines()) <= 5, f"{folder.relative_to(ROOT)} says too much"


def test_tests_mirror_the_rooms():
    """A test of a room lies in the folder of its name: none beside the rooms' folders, and none among the sources."""
    assert not [path for path in SOURCES if path.name.startswith("test_") or path.name.endswith("_test.py")]
    others = {"archs/networks", "benchmarks", "emulated_gpu", "faults", "kernels/accuracy"}
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        if folder.as_posix() in others or path == ROOT / "tests" / "test_structure.py":
            continue
        assert ROOT / folder in FOLDERS and folder.as_posix() not in (".", "engine"), path.relative_to(ROOT)


def test_files_are_one_idea_each():
    tests = (ROOT / "tests").rglob("*.py")
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in [*SOURCES, *tests]}
    assert not [path for path, length in lengths.items() if length > MOST_LINES]
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
    for script in ("evaluate", "predict", "export", "bench", "plan", "report", "shard", "sweep"):
        text += subprocess.run(
            [sys.executable, f"launch/{script}.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    launchers = {"--config_file", "--num_processes", "--nproc_per_node", "--no-compile"}
    flags = set(re.findall(r"--[a-z][\w.-]*\w", readme)) - launchers
    assert len(flags) > 10
    assert not [flag for flag in flags if flag not in text]


def test_readme_names_make_targets_that_are_there(readme):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?<!shard\.py )make ([a-z][\w-]*)", readme))
    assert {"train", "test"} <= targets
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


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
