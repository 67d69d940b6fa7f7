"""Digests of sources follow content, not names, dates or places; what is remembered is never wrong."""

import json
import os
from pathlib import Path

import pytest

from sams.runtime import digests
from sams.runtime.digests import digest_of_source, remember
from sams.runtime.files import sha256_of


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory of this test's own, which also remembers files that are new."""
    monkeypatch.setattr(digests, "_memory", digests._Memory())
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -1.0)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read from now on."""
    read: list[Path] = []

    def reading(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(digests, "sha256_of", reading)
    return read


def folder_with(path: Path, **files: str) -> Path:
    """A folder with files of these names and texts, one level down."""
    (path / "inner").mkdir(parents=True)
    for name, text in files.items():
        (path / "inner" / name).write_text(text)
    return path


def test_a_folder_is_its_names_and_contents(tmp_path: Path) -> None:
    first = digest_of_source(folder_with(tmp_path / "a", x="1", y="2"))
    assert digest_of_source(folder_with(tmp_path / "b", x="1", y="2")) == first
    for number, files in enumerate(
        ({"x": "1"}, {"x": "1", "y": "3"}, {"x": "1", "z": "2"}, {"x": "2", "y": "1"})
    ):
        assert digest_of_source(folder_with(tmp_path / str(number), **files)) != first
    (tmp_path / "a/.cache").mkdir()
    (tmp_path / "a/.cache/note").write_text("when it was fetched")
    assert digest_of_source(tmp_path / "a") == first


def test_links_are_followed_also_in_circles(tmp_path: Path) -> None:
    first, second = (folder_with(tmp_path / name, x=name) for name in ("a", "b"))
    link = tmp_path / "link"
    link.symlink_to(first)
    before = digest_of_source(link)
    assert before == digest_of_source(first)
    link.unlink()
    link.symlink_to(second)
    assert digest_of_source(link) == digest_of_source(second) != before
    (second / "inner" / "up").symlink_to(second)
    assert digest_of_source(second) != digest_of_source(first)


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memory = tmp_path / "data", tmp_path / "digests.json"
    file.write_text("1")
    read = count_reads(monkeypatch)
    remember(memory)
    first = digest_of_source(file)
    digests._memory.write()
    remember(memory)
    assert digest_of_source(file) == first and read == [file]

    file.write_text("2")
    os.utime(file, ns=(0, 0))
    second = digest_of_source(file)
    assert second != first and read == [file, file]
    file.touch()
    assert digest_of_source(file) == second, "a touched file has the same content"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sha256 x": 1}', '{"sha256 x": [[1], 2, 3]}'])
def test_a_damaged_memory_is_ignored(content: str, tmp_path: Path) -> None:
    file, memory = tmp_path / "x", tmp_path / "digests.json"
    file.write_text("1")
    memory.write_text(content.replace("x", str(file)))
    remember(memory)
    assert digest_of_source(file) == sha256_of(file)
    digests._memory.write()
    assert sha256_of(file) in json.dumps(json.loads(memory.read_text()))


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes within one tick of the clock leave the same times."""
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 3600.0)
    file = tmp_path / "data"
    file.write_text("1")
    read = count_reads(monkeypatch)
    digest_of_source(file)
    digest_of_source(file)
    assert len(read) == 2
