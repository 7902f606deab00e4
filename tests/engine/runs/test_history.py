"""Reading a run folder back: partial, torn, resumed."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.runs.history import History, NotARun, column, read_history, standing_test, time_in_training, timeline


def step(number, **more):
    return {"kind": "step", "step": number, "epoch": number / 100, "loss": 1.0, **more}


def epoch(number, **more):
    return {"kind": "epoch", "epoch": number, "step": 100 * number, **more}


def event(name, **more):
    return {"kind": "event", "event": name, **more}


def test_after_a_kill_the_later_row_wins():
    rows = [step(10, session=1), step(20, session=1), step(30, session=1)]
    rows += [event("resume", step=10), step(20, session=2), step(30, session=2), step(40, session=2)]
    steps, _, events = timeline(rows)
    assert [(row["step"], row.get("session")) for row in steps] == [(10, 1), (20, 2), (30, 2), (40, 2)]
    assert [row["event"] for row in events] == ["resume"]


def test_rows_past_the_checkpoint_are_gone_before_they_are_repeated():
    rows = [step(10), step(90), step(100), epoch(1), step(110), event("resume", step=50), step(60)]
    steps, epochs, _ = timeline(rows)
    assert [row["step"] for row in steps] == [10, 60]
    assert epochs == []


def test_a_run_resumed_a_moment_ago_stands_at_its_checkpoint():
    steps, epochs, _ = timeline([step(90), step(100), epoch(1), step(110), event("resume", step=90)])
    assert [row["step"] for row in steps] == [90]
    assert epochs == []


def test_without_a_resume_event_a_repeated_step_takes_back_what_followed():
    rows = [step(90), step(100), epoch(1, session=1), step(110), step(95, session=2)]
    steps, epochs, _ = timeline(rows)
    assert [row["step"] for row in steps] == [90, 95]
    assert epochs == []


def test_an_epoch_and_its_last_step_share_a_number_and_both_stay():
    steps, epochs, _ = timeline([step(100), epoch(1), step(200), epoch(2)])
    assert [row["step"] for row in steps] == [100, 200]
    assert [row["epoch"] for row in epochs] == [1, 2]


def test_an_epoch_done_again_is_there_once():
    _, epochs, _ = timeline([step(100), epoch(1, session=1), event("resume", step=0), step(100), epoch(1, session=2)])
    assert [(row["epoch"], row["session"]) for row in epochs] == [(1, 2)]


@given(st.lists(st.tuples(st.sampled_from(["step", "epoch", "resume"]), st.integers(0, 30)), max_size=60))
def test_whatever_order_rows_come_in_the_timeline_rises(entries):
    make = {"step": step, "epoch": epoch, "resume": lambda number: event("resume", step=number)}
    steps, epochs, _ = timeline([make[kind](number) for kind, number in entries])
    for rows in (steps, epochs):
        numbers = [row["step"] for row in rows]
        assert numbers == sorted(set(numbers))


def test_the_test_row_is_that_of_the_weights_of_now():
    test, later = ({"kind": "test", "step": 8, "test_accuracy": accuracy} for accuracy in (0.5, 0.7))
    assert standing_test([step(8), test, event("resume", step=8)]) == test
    assert standing_test([test, event("resume", step=6)]) is None
    assert standing_test([test, event("resume", step=8), step(9)]) is None
    assert standing_test([test, event("resume", step=6), step(8), later]) == later


def test_rows_of_no_known_kind_are_passed_over():
    assert timeline([{}, {"kind": "step"}, {"kind": "epoch", "epoch": 1}, {"kind": "other", "step": 3}]) == ([], [], [])


def test_time_in_training_leaves_the_pause_out():
    rows = [event("start", time=0.0), step(1, time=5.0), event("resume", time=1000.0), step(2, time=1002.0), step(3)]
    assert time_in_training(rows) == 7.0


def test_a_finished_run(make_run, metrics, gpu_rows, finished):
    history = read_history(make_run(rows=finished(metrics(10)), monitor=gpu_rows(60)))
    assert (history.name, history.arch, history.data, history.epochs_asked) == ("run", "resnext50", "digits", 10)
    assert history.state == "finished"
    assert len(history.epochs) == 10
    assert history.best["val_accuracy"] == max(row["val_accuracy"] for row in history.epochs)
    assert history.images_per_second == pytest.approx(610, abs=15)
    assert history.peak_memory_bytes == history.summary["peak_gpu_process_bytes"]
    assert history.resumed_at == []
    assert history.seconds > 80


def test_the_first_of_equally_good_epochs_is_the_best():
    history = History(None, epochs=[epoch(1, val_accuracy=0.5), epoch(2, val_accuracy=0.9), epoch(3, val_accuracy=0.9)])
    assert history.best["epoch"] == 2


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ("finished", "finished"),
        ("interrupted", "interrupted"),
        ("nan", "stopped: loss not finite"),
        ("memory_exhausted", "stopped: out of memory"),
        ("resume", "unfinished"),
        ("start", "unfinished"),
    ],
)
def test_the_state_is_the_last_word(last, state):
    events = [event("start"), event("interrupted"), event(last), event("memory"), event("bad_image", path="a")]
    assert History(None, events=events).state == state


def test_a_bad_image_counts_once():
    events = [event("bad_image", path="a", reason="x"), event("bad_image", path="b"), event("bad_image", path="a")]
    assert [row["path"] for row in History(None, events=events).bad_images] == ["a", "b"]


def test_where_a_run_was_resumed_in_epochs():
    history = History(None, steps=[step(50), step(150)], epochs=[epoch(1)], events=[event("resume", step=75)])
    assert history.resumed_at == [0.75]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_row_is_left_out(make_run, metrics, cut):
    folder = make_run(rows=metrics(2))
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(read_history(folder).epochs) == (2 if cut == 1 else 1)


def test_files_that_are_missing_or_torn_leave_their_part_empty(make_run, metrics):
    folder = make_run(rows=metrics(1), config=None, plan=None)
    (folder / "plan.json").write_text('{"device": "cu')
    history = read_history(folder)
    assert (history.config, history.plan, history.monitor, history.arch) == ({}, {}, [], "")
    assert len(history.epochs) == 1
    (folder / "config.yaml").write_text("model: [unclosed")
    assert read_history(folder).config == {}


def test_memory_at_the_logged_steps_stands_in_for_the_monitor(make_run, metrics):
    assert read_history(make_run(rows=metrics(1))).peak_memory_bytes == 5 << 30


def test_a_folder_that_is_no_run(tmp_path, make_run):
    with pytest.raises(NotARun, match=r"no such folder"):
        read_history(tmp_path / "absent")
    make_run("one")
    with pytest.raises(NotARun, match=r"neither config\.yaml nor metrics\.jsonl.*runs inside it: one"):
        read_history(tmp_path)


def test_a_loss_that_is_not_finite_is_a_number_that_cannot_be_drawn(tmp_path):
    row = json.loads('{"kind": "step", "step": 1, "epoch": 0.1, "loss": NaN}')
    values = column([row, {"loss": None}, {}, {"loss": 2.0}], "loss")
    np.testing.assert_array_equal(values, [np.nan, np.nan, np.nan, 2.0])
