"""Descriptions that nobody can mean, words of YAML 1.1, and what other trainers call our flags."""

import pytest

from engine.config import ConfigError, from_yaml, parse
from engine.config.other_names import ELSEWHERE, OURS
from engine.config.run_config import field_names, flags


@pytest.mark.parametrize(
    ("word", "meant"), [("off", "off"), ("on", "on"), ("no", "off"), ("yes", "on"), ("false", "off")]
)
def test_yaml_words_are_taken_as_meant(tmp_path, word, meant):
    """W15: YAML 1.1 reads `off` as false."""
    (tmp_path / "c.yaml").write_text(f"model: {{compile: {word}, fused: {word}}}\ndata: {{flip: {word}}}\n")
    config = from_yaml(tmp_path / "c.yaml")
    assert (config.model.compile, config.model.fused, config.data.flip) == (meant, meant, meant)


def test_off_as_text_and_none_as_a_word(tmp_path):
    (tmp_path / "c.yaml").write_text("memory: {gpu_memory: off, recompute: null}\nlog: {plots: off}\n")
    config = from_yaml(tmp_path / "c.yaml")
    assert (config.memory.gpu_memory, config.memory.recompute, config.log.plots) == ("off", "none", False)


def test_aliases_are_refused(tmp_path):
    """F10: ten lines of ten aliases each would be written out to 10^10 values."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="aliases"):
        from_yaml(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {lr: 1}\nseed: 3\noptim: {lr: 2}", "optim stands twice, in lines 1 and 3"),
        ("optim: {lr: 1, lr: 2}", "lr stands twice"),
        ("[" * 5000, "nested|cannot be read"),
        ("optim: {lr: .inf}", "--lr must be a finite number, not inf"),
        ("optim: {lr: .nan}", "--lr must be above 0, not nan"),
        ("optim: {epochs: true}", "optim.epochs: expected a number, found true"),
        ("optim: {batch_size: 100000000000}", "--batch-size can be at most"),
        ("data: {image_size: 1000000}", "--image-size can be at most"),
        ("memory: {gpu_memory: 9e99GiB}", "gpu-memory"),
        ("memory: {gpu_memory: " + "9" * 400 + "GiB}", "more than any memory"),
        ('log: {output: "a\\0b"}', "--output holds a null character"),
        ("log: {output: " + "a" * 300 + "}", "--output is too long"),
        ("seed: " + "9" * 5000, "cannot be read|seed"),
        ("optim: 3", "optim is a group"),
        ("1: 2", "unknown key 1"),
        ("2001-99-99: 3", "cannot be read|unknown key"),
        ("- 3", "found list"),
        ("\x00", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(tmp_path, text, words):
    """W16."""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words) as told:
        from_yaml(tmp_path / "c.yaml")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", ".", "no/such.yaml"])
def test_what_is_no_file_is_not_read(path):
    with pytest.raises(ConfigError, match="--config"):
        from_yaml(__import__("pathlib").Path(path))


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        *[("--learning-rate", "--lr"), ("--learning_rate=0.1", "--lr"), ("--lr-scheduler", "--optim.schedule")],
        *[("--wd", "--optim.weight-decay"), ("--weight-decay", "--optim.weight-decay"), ("--bs", "--batch-size")],
        *[("--img-size", "--image-size"), ("--model", "--arch"), ("--dataset", "--data.name")],
        *[("--data-dir", "--data.root"), ("--num-workers", "--data.workers"), ("--max_epochs", "--epochs")],
        *[("--test-only", "launch/evaluate.py"), ("--gpus", "accelerate launch"), ("--amp", "--precision")],
        *[("--optim", "--optimizer"), ("--num_classes", "--data.root")],
        *[("-b", "--batch-size"), ("-j", "--data.workers"), ("--freeze", "--finetune")],
        ("--device", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_other_trainers_flags_name_ours(flag, ours):
    with pytest.raises(ConfigError, match=f"{ours}"):
        parse([flag, "1"])


def test_every_name_of_ours_is_one_and_no_name_of_theirs_is():
    known = set(flags().values())
    assert set(OURS) <= known and len(known) == len(field_names())
    for names in (OURS | ELSEWHERE).values():
        assert not [name for name in names.split() if f"--{name}" in known]


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        *[("--lr", value, "must be") for value in ("inf", "nan", "1e999")],
        ("--epochs", "100000000000", "can be at most"),
    ],
)
def test_numbers_on_the_command_line(flag, value, words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse([flag, value])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said and flag in said and "Traceback" not in said
