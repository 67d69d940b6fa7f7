"""Files of the package and of the current folder, and the origin of code that is not in a checkout."""

import subprocess
from pathlib import Path

import pytest

from sams import __version__
from sams.runtime import provenance, source
from sams.study.files import read_file

STUDY = "config/studies/own_data.yaml"


def test_files_of_the_current_folder_come_before_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert source.here_or_packaged(STUDY) == source.SOURCE / STUDY
    assert source.here_or_packaged("mine.yaml") == Path("mine.yaml"), "in neither"
    file = tmp_path / "mine.yaml"
    file.write_text(f"study: config/x\ndata: {{train: {STUDY}, test: config/none.jsonl}}\n", encoding="utf-8")
    data = {"train": str(source.SOURCE / STUDY), "test": "config/none.jsonl"}
    assert read_file(file) == {"study": "config/x", "data": data}
    Path(STUDY).parent.mkdir(parents=True)
    Path(STUDY).touch()
    assert source.here_or_packaged(STUDY) == Path(STUDY)
    assert read_file(file)["data"]["train"] == STUDY


def test_an_installed_package_has_no_commit_of_the_users_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package := tmp_path / "venv" / "sams" / "source").mkdir(parents=True)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message=mine"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "SOURCE", package)
    assert provenance.commit() == {"version": __version__, "code": provenance._code_digest()}
    monkeypatch.setattr(provenance, "SOURCE", tmp_path)
    assert provenance.commit().keys() == {"git_commit", "git_dirty"}
