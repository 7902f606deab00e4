"""A checkpoint in parts is whole, or every rank hears why not."""

from types import SimpleNamespace

import pytest

from engine.recovery import checkpoint
from engine.recovery.checkpoint import Checkpointer
from engine.runs.door import CannotWrite


@pytest.mark.parametrize("kind", [ValueError, CannotWrite])
def test_whatever_stops_one_ranks_part_is_told_to_the_others(monkeypatch, tmp_path, kind):
    """They wait for it in an exchange."""
    checkpointer = object.__new__(Checkpointer)
    checkpointer.accelerator = SimpleNamespace(process_index=1, num_processes=2, is_main_process=False)
    checkpointer._writers = object()
    (tmp_path / "draft" / "shards").mkdir(parents=True)
    told = []

    def exchange(found: list, mine: str | None, group: object) -> None:
        told.append(mine)
        found[1] = mine

    def fail(*more: object) -> None:
        raise kind("no such dtype")

    monkeypatch.setattr(checkpoint.dist, "all_gather_object", exchange)
    monkeypatch.setattr(checkpoint, "write_parts", fail)
    with pytest.raises(kind, match="no such dtype"):
        checkpointer._write(tmp_path / "draft", tmp_path / "step-1", {}, [])
    assert told == ["no such dtype"]
