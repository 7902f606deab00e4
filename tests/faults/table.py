"""The table of faults in a few lines: what the README shows of profiles/faults.json."""

from __future__ import annotations

GROUPS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "SIGKILL, SIGTERM, Ctrl-C at any moment",
        ("SIGKILL", "SIGTERM", "Ctrl-C"),
        "130 or 143 where it could save; goes on to the same bits",
    ),
    (
        "SIGKILL, SIGTERM at any call of the thread that writes a checkpoint",
        ("SIGKILL in a write beside training", "SIGTERM in a write beside training"),
        "no half checkpoint is read; goes on to the same bits",
    ),
    (
        "a bit, a cut, a missing file in the newest checkpoint",
        ("flipped bit in a checkpoint", "cut checkpoint", "deleted file of a checkpoint"),
        "passed over by name; the same bits from the one before",
    ),
    (
        "a flipped bit in the weights; config.yaml cut; a renamed class; a second session in the folder",
        ("flipped bit in the weights", "cut description", "renamed class", "second session in one folder"),
        "refused with the reason, nothing touched",
    ),
    (
        "metrics.jsonl torn; strays of a killed writer",
        ("torn metrics", "strays of a killed writer"),
        "mended and swept",
    ),
    (
        "full disk; run folder or data moved away",
        ("full disk", "run folder moved away", "data moved away"),
        "one sentence, no draft left, nothing saved after it; goes on",
    ),
    (
        "torchrun, one of its two ranks, or the store killed",
        ("SIGKILL of torchrun", "SIGKILL of one of two ranks", "SIGKILL of the rank with the store"),
        "no orphans; started anew and went on to the same bits",
    ),
    (
        "a rank that hangs (SIGSTOP)",
        ("SIGSTOP of one of two ranks",),
        "named after the time-out, no process left; goes on",
    ),
    (
        "a rank killed in a save (DDP, ZeRO-2, FSDP2) or in an evaluation",
        (
            "SIGKILL in a sharded save",
            "SIGKILL of a rank that writes beside training",
            "SIGKILL in an evaluation of two ranks",
        ),
        "the launch ends, no stray; goes on to the same bits",
    ),
    (
        "images gone on one of two ranks",
        ("images gone on one of two ranks",),
        "both end with the path, nothing saved after it; goes on",
    ),
    (
        "one of two hosts killed, or its launcher, or its disk full (cache of images, checkpoint)",
        (
            "SIGKILL of all of one of two hosts",
            "SIGKILL of the launcher of one of two hosts",
            "full disk on one of two hosts",
        ),
        "both end with the reason, nothing is left; goes on to the same bits",
    ),
)
"""What is broken, the kinds that it takes together, and what was right about them."""


def sentence(kinds: dict[str, dict]) -> str:
    """How many trials, and how many were wrong."""
    moments = sum(row["moments"] for row in kinds.values())
    return f"{moments} trials, {sum(len(row['wrong']) for row in kinds.values())} wrong"


def lines(kinds: dict[str, dict]) -> list[str]:
    """Rows of the README's table."""
    counts = [sum(kinds[name]["moments"] for name in names) for _, names, _ in GROUPS]
    return [f"| {what} | {count} | {right} |" for (what, _, right), count in zip(GROUPS, counts, strict=True)]


if __name__ == "__main__":
    import json
    from pathlib import Path

    read = json.loads((Path(__file__).resolve().parents[2] / "profiles" / "faults.json").read_text(encoding="utf-8"))
    print(sentence(read["kinds"]), *lines(read["kinds"]), sep="\n")
