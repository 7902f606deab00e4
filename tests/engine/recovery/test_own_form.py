"""What older versions left under ZeRO goes on where it was written, and is refused with a sentence elsewhere."""

from pathlib import Path

import pytest

from engine.config import ConfigError
from engine.recovery.own_form import load_own_form, written_by

FILES = {
    "0": ["mp_rank_00_model_states.pt"],
    "1 or 2": ["mp_rank_00_model_states.pt", *(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1))],
    "3": [f"zero_pp_rank_{rank}_mp_rank_00_{what}_states.pt" for rank in (0, 1) for what in ("model", "optim")],
}
"""As DeepSpeed 0.19 names them."""


class Engine:
    """Says its stage, and keeps from where it was filled."""

    def __init__(self, stage: int) -> None:
        self.stage, self.loaded = stage, ""

    def zero_optimization_stage(self) -> int:
        return self.stage

    def load_checkpoint(self, folder: str, tag: str) -> None:
        self.loaded = f"{folder}/{tag}"


@pytest.fixture(params=list(FILES))
def written(request, tmp_path) -> tuple[str, Path]:
    state = tmp_path / "zero" / "state"
    state.mkdir(parents=True)
    for name in FILES[request.param]:
        (state / name).touch()
    return request.param, tmp_path


def test_who_wrote_it(written):
    stage, folder = written
    assert written_by(folder / "zero") == (stage, 0 if stage == "0" else 2)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_same_stage_and_number_take_it(written, stage, ranks):
    wrote, folder = written
    engine = Engine(stage)
    if str(stage) in wrote.split(" or ") and (wrote == "0" or ranks == 2):
        pytest.importorskip("deepspeed")
        load_own_form(folder, engine, ranks)
        assert engine.loaded == f"{folder}/zero/state"
    else:
        with pytest.raises(
            ConfigError, match=f"only ZeRO stage {wrote} {'' if wrote == '0' else 'on 2 processes '}takes"
        ):
            load_own_form(folder, engine, ranks)
        assert not engine.loaded


def test_a_run_without_deepspeed_is_told(written):
    with pytest.raises(ConfigError, match="DeepSpeed's own form"):
        load_own_form(written[1], None, 2)
