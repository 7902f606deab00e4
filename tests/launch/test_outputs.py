"""Every command's --output, where nothing can be: refused by flag and cause, before any work, and nothing is made."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from engine.config import ConfigError, parse
from engine.data.sources.source import DataError
from engine.plan import request
from engine.runs.output import refuse_file, refuse_folder
from engine.runs.runfolder import RunFolder
from engine.train import lr_finder
from engine.train.data.command import examine_data
from engine.train.sweep import command as sweep
from engine.use import evaluation, prediction, shards
from engine.use.export import command as export


def examine(output: Path, photos: Path) -> None:
    code = examine_data(parse(["--data.root", str(photos), "--output", str(output)]))
    if code:
        raise ConfigError(code)


FOLDERS = {
    "train": lambda output, photos: RunFolder.create(parse(["--output", str(output)]), "nin", "folder"),
    "find-lr": lambda output, photos: lr_finder._folder(parse(["--output", str(output)])),
    "sweep": lambda output, photos: sweep.run_sweep(sweep.parse(["--folds", "2", "--output", str(output)])),
    "plan": lambda output, photos: request.output_folder(request.parse(["--output", str(output)]), "x"),
    "evaluate": lambda output, photos: evaluation.run_evaluation(
        evaluation.parse(["--checkpoint", str(photos), "--output", str(output)])
    ),
    "data": examine,
    "shard make": lambda output, photos: shards.run(shards.parse(["make", str(photos), str(output)])),
}
FILES = {
    "predict": lambda output, photos: prediction.run_prediction(
        prediction.parse(["--checkpoint", str(photos), str(photos), "--output", f"{output}.csv"])
    ),
    "predict --embeddings": lambda output, photos: prediction.run_prediction(
        prediction.parse(["--checkpoint", str(photos), str(photos), "--embeddings", f"{output}.npy"])
    ),
    "export": lambda output, photos: export.run_export(
        export.parse(["--checkpoint", str(photos), "--output", f"{output}.onnx"])
    ),
}
PLACES = {
    "file/x": "file is a file",
    "file/a/b/x": "file is a file",
    "gone/x": "is a link to nowhere, which is not there",
    "n" * 300: "is too long for",
    "read-only/x": "the disk is read-only",
}


@pytest.fixture
def places(tmp_path, monkeypatch) -> Path:
    """A folder with a file, a link to nothing, and one of a read-only disk (root may write where modes forbid it)."""
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "read-only").mkdir()
    real = tempfile.TemporaryFile

    def temporary(*more, dir=None, **named):
        if dir is not None and Path(dir).name == "read-only":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(*more, dir=dir, **named)

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    return tmp_path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    from tests.faults.trial import photos

    return photos(tmp_path_factory.mktemp("outputs") / "photos")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_a_place_where_nothing_can_be_is_refused_first(name, place, places, pictures, capsys):
    before = sorted(places.rglob("*"))
    with pytest.raises((ConfigError, DataError, SystemExit)) as told:
        (FOLDERS | FILES)[name](places / place, pictures)
    said = str(told.value) + capsys.readouterr().err
    assert (place[0] == "n" or str(places / place) in said) and PLACES[place] in said, said
    assert "OUTPUT" in said or "--output" in said or "--embeddings" in said
    assert sorted(places.rglob("*")) == before


def test_what_is_there_or_can_be_is_let_pass_and_nothing_is_made(tmp_path):
    refuse_folder(tmp_path)
    refuse_folder(tmp_path / "new" / "below")
    refuse_file(tmp_path / "new.csv")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="there is no folder"):
        refuse_file(tmp_path / "new" / "x.csv")
    (tmp_path / "there.csv").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="exists; remove it"):
        refuse_file(tmp_path / "there.csv")
