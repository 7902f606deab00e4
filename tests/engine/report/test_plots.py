"""Charts: right numbers in them, for one epoch as for a hundred, in both themes, without touching pyplot."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.report.plot_style import DARK, DPI, LIGHT, SIZE, THEMES
from engine.report.plots import CHARTS, accuracy, draw, learning_rate, loss, memory, throughput, write_plots
from engine.runs.history import read_history


def lines(figure, panel=0):
    """Label and y values of each line in a panel."""
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in figure.axes[panel].get_lines()}


def texts(figure):
    return " | ".join(text.get_text() for axes in figure.axes for text in axes.texts)


def luminance(colour):
    channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    """WCAG 2 contrast ratio of two colours, 1..21."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_a_whole_gpu_run_has_every_chart(make_run, metrics, gpu_rows, finished, theme):
    history = read_history(make_run(rows=finished(metrics(10)), monitor=gpu_rows(60)))
    pictures = draw(history, theme=theme)
    assert set(pictures) == set(CHARTS)
    for picture in pictures.values():
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        assert image.size == (SIZE[0] * DPI, SIZE[1] * DPI)
        assert "#{:02x}{:02x}{:02x}".format(*image.getpixel((2, 2))) == theme.background
        assert len(image.getcolors(maxcolors=1 << 20)) > 20


def test_accuracy_is_in_percent_and_the_best_is_marked(make_run, metrics):
    rows = metrics(10)
    peak = [row for row in rows if row["kind"] == "epoch"][6]
    peak["val_accuracy"] = 0.999
    figure = accuracy(read_history(make_run(rows=rows)), LIGHT)
    drawn = lines(figure)
    assert drawn["val"][6] == pytest.approx(99.9)
    assert drawn["train"][0] == pytest.approx(100 * (1 - 0.9 * np.exp(-0.5)))
    star = next(line for line in figure.axes[0].get_lines() if line.get_marker() == "*")
    assert [value.item() for value in star.get_xydata()[0]] == pytest.approx([7, 99.9])
    assert "best on val 99.90 % after epoch 7" in texts(figure)
    assert figure.axes[0].get_ylim()[1] <= 101


def test_one_epoch_is_seen_as_a_point(make_run, metrics):
    history = read_history(make_run(rows=metrics(1)))
    for chart in (accuracy, loss):
        for line in chart(history, LIGHT).axes[0].get_lines():
            assert len(line.get_xdata()) > 1 or line.get_marker() not in ("None", "", None)


def test_a_hundred_epochs_are_lines_without_markers(make_run, metrics):
    figure = accuracy(read_history(make_run(rows=metrics(100))), LIGHT)
    markers = {line.get_label(): line.get_marker() for line in figure.axes[0].get_lines()}
    assert markers["train"] in ("None", "", None)
    ticks = [tick for tick in figure.axes[0].get_xticks() if 0 <= tick <= 100]
    assert all(tick == int(tick) for tick in ticks)


def test_train_and_test_differ_in_more_than_colour(make_run, metrics):
    styles = {
        line.get_label(): (line.get_linestyle(), line.get_marker())
        for line in loss(read_history(make_run(rows=metrics(3))), LIGHT).axes[0].get_lines()
    }
    assert styles["train"][0] != styles["val"][0]
    assert styles["train"][1] != styles["val"][1]


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_colours_stand_out_from_the_background(theme):
    assert contrast(theme.text, theme.background) >= 7
    assert contrast(theme.muted, theme.background) >= 4.5
    assert all(contrast(colour, theme.background) >= 3 for colour in (theme.train, theme.test, *theme.lines))
    steps = [luminance(colour) for colour in theme.heat]
    assert steps == sorted(steps, reverse=theme is LIGHT)


def test_before_the_first_epoch_ends_the_steps_are_drawn(make_run, metrics):
    history = read_history(make_run(rows=metrics(1)[:3]))
    assert set(lines(accuracy(history, LIGHT))) == {"train, by step"}
    assert set(draw(history)) == set(CHARTS) - {"activity"}


@pytest.mark.parametrize("rows", [[], [{"kind": "event", "event": "start", "step": 0, "time": 0.0}]])
def test_a_run_without_a_step_has_no_chart(make_run, rows):
    assert draw(read_history(make_run(rows=rows))) == {}


def test_rows_that_miss_fields_draw_what_is_there(make_run):
    rows = [
        {"kind": "step", "step": n, "epoch": n / 10, "loss": None if n == 2 else 1.0, "lr": 0.1} for n in range(1, 5)
    ]
    rows += [{"kind": "epoch", "epoch": 1, "step": 10, "val_accuracy": None, "val_loss": float("nan")}]
    assert set(draw(read_history(make_run(rows=rows)))) == {"loss", "learning_rate"}


def test_loss_over_two_decades_is_logarithmic(make_run, metrics):
    rows = metrics(10)
    assert loss(read_history(make_run("plain", rows=rows)), LIGHT).axes[0].get_yscale() == "linear"
    rows[-1]["train_loss"] = 0.001
    assert loss(read_history(make_run("deep", rows=rows)), LIGHT).axes[0].get_yscale() == "log"


def test_throughput_tells_median_and_waiting(make_run, metrics):
    history = read_history(make_run(rows=metrics(5)))
    figure = throughput(history, LIGHT)
    assert len(figure.axes) == 2
    assert f"median {history.images_per_second:,.0f} images/s" in texts(figure)
    assert "% of the time waiting for data" in texts(figure)


def test_memory_shows_the_card_where_there_is_one_and_the_host_where_not(make_run, metrics, gpu_rows, host_rows):
    gpu = memory(read_history(make_run("gpu", rows=metrics(1), monitor=gpu_rows(30))), LIGHT)
    assert {"card", "this run", "reserved", "in tensors"} <= set(lines(gpu))
    assert lines(gpu)["this run"].max() == pytest.approx(7.5)
    assert "of 12.0 GiB" in texts(gpu)
    host = memory(read_history(make_run("host", rows=metrics(1), monitor=host_rows(30))), LIGHT)
    assert lines(host)["resident"].max() == pytest.approx(1.5)
    assert "Host memory" in texts(host)
    logged = memory(read_history(make_run("logged", rows=metrics(1))), LIGHT)
    assert lines(logged)["in use"].max() == pytest.approx(5.0)


def test_the_time_axis_leaves_out_the_pause_between_sessions(make_run, metrics, gpu_rows):
    later = [row | {"time": row["time"] + 86_400} for row in gpu_rows(30)]
    figure = memory(read_history(make_run(rows=metrics(1), monitor=gpu_rows(30) + later)), LIGHT)
    assert figure.axes[0].get_xlabel() == "time in training, seconds"
    card = next(line for line in figure.axes[0].get_lines() if line.get_label() == "card")
    assert card.get_xdata()[-1] == 58  # 2 × 30 samples, a second apart within a session


def test_a_resumed_run_shows_where(make_run, metrics):
    rows = metrics(4)
    rows.insert(12, {"kind": "event", "event": "resume", "step": 80, "time": 0.0})
    figure = learning_rate(read_history(make_run(rows=rows)), DARK)
    assert "resumed" in texts(figure)
    assert any(list(line.get_xdata()) == [2.0, 2.0] for line in figure.axes[0].get_lines())


def test_pictures_are_written_under_their_names(make_run, metrics, tmp_path):
    pictures = draw(read_history(make_run(rows=metrics(1))), ["accuracy", "loss"])
    paths = write_plots(pictures, tmp_path / "plots")
    assert [path.name for path in paths] == ["accuracy.png", "loss.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["accuracy.png", "loss.png"]
    assert paths[0].read_bytes() == pictures["accuracy"]


def test_neither_pyplot_nor_torch_is_loaded_and_matplotlib_late(root, make_run, metrics):
    folder = make_run(rows=metrics(1))
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom engine.report.plots import draw\nfrom engine.runs.history import read_history\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert draw(read_history(Path(sys.argv[2])), ['accuracy'])\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(root), str(folder)], check=True)


def test_a_folder_that_cannot_be_made_is_said_in_words(tmp_path):
    from engine.runs.door import CannotWrite

    (tmp_path / "file").write_text("x")
    for folder, why in ((tmp_path / "file" / "plots", "is a file"), ("/proc/nowhere/plots", "is gone")):
        with pytest.raises(CannotWrite, match=f"plots cannot be written: .*{why}"):
            write_plots({"loss": b"x"}, Path(folder))
