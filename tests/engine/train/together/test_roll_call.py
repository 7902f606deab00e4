"""What one rank cannot build ends all of them, with its reason."""

import socket
import threading

import pytest

from engine.config import ConfigError
from engine.data.sources.source import DataError
from engine.step.ranks.meeting import Meeting
from engine.train.together.roll_call import all_or_none
from tests.launch.ranks import free_port


def built(problems: list[Exception | None]) -> list[str]:
    """What each rank is told, in threads; each has a problem of its own, or none."""
    told = [""] * len(problems)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def build(rank: int) -> None:
        meeting = Meeting(60, address | {"RANK": str(rank), "WORLD_SIZE": str(len(problems))})
        try:
            with all_or_none(meeting, "built"):
                if (problem := problems[rank]) is not None:
                    raise problem
        except ConfigError as error:
            told[rank] = str(error)

    ranks = [threading.Thread(target=build, args=(rank,)) for rank in range(len(problems))]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return told


@pytest.mark.parametrize("kind", [DataError, ConfigError])
def test_one_without_room_or_weights_ends_all(kind):
    told = built([None, None, kind("no room for the decoded images")])
    assert told == [f"no room for the decoded images (rank 2 on {socket.gethostname()})"] * 3


def test_where_all_could_build_none_is_told():
    assert built([None, None]) == ["", ""]


def test_a_process_alone_keeps_its_own_error():
    with pytest.raises(DataError, match="no room"), all_or_none(None, "built"):
        raise DataError("no room")
