"""What every test can rely on: a cache of its own, the project's root, shared data where it is there."""

import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes, to be drawn too, depends on what else runs.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

if "PYTEST_XDIST_WORKER" in os.environ:  # several share the cores: threads that wait in turns would starve each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """Tests of the emulated GPU need it under the whole process: tests/emulated_gpu/run.py starts one so."""
    if "EMULATED_GPU_LIBRARIES" in os.environ:
        return
    absent = pytest.mark.skip(reason="needs the emulated GPU: make test-emulated")
    for item in items:
        if item.get_closest_marker("emulated"):
            item.add_marker(absent)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture
def profile_rows(root) -> Callable[[str], list]:
    """(name, row) of profiles/*/NAME.json of all machines; skips where there is none."""

    def rows(name: str) -> list:
        found = f"profiles/*/{name}.json"
        if not (files := sorted(root.glob(found))):
            pytest.skip(f"no {found}")
        return [(key, row) for file in files for key, row in json.loads(file.read_text())["rows"].items()]

    return rows


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache folder that the tests of one session share, away from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HCR_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def forkable():
    """Runs are forked from a test's process (tests/faults): the first backward pass has to be made before the first
    FakeTensorMode, which makes torch believe in a GPU; it would begin threads for that, which no fork survives."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.ones((), requires_grad=True).backward()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images: $HCR_TEST_DATA, else beside the checkout. Tests that use it skip without."""
    folder = Path(os.environ.get("HCR_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; HCR_TEST_DATA names their folder")
    return folder


@pytest.fixture(scope="session")
def unpacked(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """unpacked(name): the folder that NAME.tar of the shared data holds."""
    done: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if name not in done:
            target = tmp_path_factory.mktemp("shared")
            with tarfile.open(shared_data / f"{name}.tar") as archive:
                archive.extractall(target, filter="data")
            done[name] = target / name
        return done[name]

    return unpack
