"""Files and folders are written atomically."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sams.runtime.files import (
    CARD,
    MANIFEST,
    canonical_json,
    manifest_digest,
    read_json,
    whole_file,
    whole_folder,
    write_json,
)


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(RuntimeError), whole_file(file) as part:
        part.write_text("half")
        raise RuntimeError
    assert read_json(file) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with whole_folder(folder, origin="first") as part:
        (part / "x").write_text("1")
    before = manifest_digest(folder)
    with pytest.raises(RuntimeError), whole_folder(folder) as part:
        (part / "x").write_text("2")
        raise RuntimeError
    assert manifest_digest(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert read_json(folder / MANIFEST)["origin"] == "first"


def test_a_manifest_digest_depends_on_content_and_not_on_facts(tmp_path: Path) -> None:
    digests = []
    for index, (text, fact) in enumerate([("1", "a"), ("1", "b"), ("2", "a")]):
        with whole_folder(tmp_path / str(index), fact=fact) as part:
            (part / "x").write_text(text)
        digests.append(manifest_digest(tmp_path / str(index)))
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_gets_the_permissions_of_the_umask(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.touch(mode=0o600)
    mask = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "weights") as part:
            (part / "link").symlink_to(outside)
            (part / "below").mkdir(mode=0o700)
            save_file({"a": torch.ones(1)}, part / "below" / "a.safetensors")
            assert (part / "below" / "a.safetensors").stat().st_mode & 0o777 == 0o600
        assert os.umask(0o027) == 0o027, "as it was"
    finally:
        os.umask(mask)
    assert outside.stat().st_mode & 0o777 == 0o600
    (tmp_path / "weights" / "link").unlink()
    found = {path.stat().st_mode & 0o777 for path in (tmp_path / "weights").rglob("*") if path.is_file()}
    assert found == {0o640}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("**/")} - {0o700} == {0o750}


def test_a_card_changes_no_digest(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with whole_folder(tmp_path / text) as part:
            (part / CARD).write_text(text)
    assert manifest_digest(tmp_path / "one") == manifest_digest(tmp_path / "two")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_canonical_json_does_not_depend_on_order() -> None:
    assert canonical_json({"b": 1, "a": [1, 2]}) == canonical_json(json.loads('{"a": [1, 2], "b": 1}'))


def test_what_a_killed_process_left_goes_when_its_file_is_made_again(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f".out.part-{dead.pid}", f".out.part-{os.getppid()}", f".other.part-{dead.pid}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    with whole_folder(tmp_path / "out") as part:
        (part / "a").write_text("1")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"out", f".out.part-{os.getppid()}", f".other.part-{dead.pid}"}
