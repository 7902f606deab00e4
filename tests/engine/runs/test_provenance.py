"""What made a result."""

from engine.runs import provenance


def test_results_do_not_change_the_commit(tmp_path, monkeypatch):
    """profiles/ is written by measuring; any other change of the tree is another thing measured."""
    import subprocess

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init", "-q")
    for name in ("profiles", "engine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.py").write_text("1\n")
    git("add", "-A")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    commit = provenance.commit.__wrapped__
    clean = commit()
    (tmp_path / "profiles" / "x.py").write_text("2\n")
    assert commit() == clean
    (tmp_path / "engine" / "x.py").write_text("2\n")
    assert commit().startswith(f"{clean}+")
    first = commit()
    (tmp_path / "engine" / "x.py").write_text("3\n")
    assert commit() != first


def test_without_git_the_sources_are_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "x.py").write_text("1\n")
    first = provenance.commit.__wrapped__()
    (tmp_path / "engine" / "x.py").write_text("2\n")
    assert first.startswith("tree-") and provenance.commit.__wrapped__() != first
