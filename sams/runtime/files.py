"""Files and folders that are complete or absent: written under a temporary name, then renamed."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sams.runtime.errors import UserError
from sams.runtime.provenance import ENVIRONMENT, made_on

MANIFEST = "manifest.json"


def restrict_umask() -> None:
    """Let owner and group alone change the files that this process and its children create from now on."""
    given = os.umask(0o077)
    os.umask(given | 0o002)


def canonical_json(value: Any) -> str:
    """JSON in which neither key order nor layout counts, so equal settings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """Hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; sync it to disk and rename it to `path` if the block succeeds."""
    part = _part_of(path)
    try:
        yield part
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, **facts: Any) -> Iterator[Path]:
    """Yield a temporary folder; if the block succeeds, seal it with a manifest and rename it to `path`.

    An older folder at `path` is replaced. The manifest holds `facts` and the hashes of the files. The folder also
    gets `environment.json`, which no hash covers.
    """
    part = _part_of(path)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        write_json(part / ENVIRONMENT, made_on())
        write_manifest(part, **facts)
        if path.exists():
            shutil.rmtree(path)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part_of(path: Path) -> Path:
    """The temporary path of this process for `path`; deletes those that killed processes have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.part-*"):
        writer = left.name.rpartition("-")[2]
        if writer.isdecimal() and not _is_alive(int(writer)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.part-{os.getpid()}")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write `manifest.json`, the last file of a folder: `facts`, and the SHA-256 of every other file."""
    files = {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, ENVIRONMENT)
    }
    write_json(folder / MANIFEST, {**facts, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder sealed by `write_manifest`.

    Raises:
        UserError: it is damaged.
    """
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        if not all(isinstance(digest, str) for digest in manifest["files"].values()):
            raise TypeError("digests are texts")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, f"{MANIFEST} is damaged ({error})") from None
    return manifest


def refuse_damage(folder: Path) -> None:
    """Check the files of a folder sealed by `write_manifest` against its hashes.

    Raises:
        UserError: naming the first file that has changed or is gone.
    """
    for name, digest in read_manifest(folder)["files"].items():
        file = folder / name
        if not file.is_file():
            raise damaged(folder, f"{name} is not there")
        if sha256_of(file) != digest:
            raise damaged(folder, f"{name} is not what was written (its SHA-256 differs)")


def damaged(folder: Path, problem: str) -> UserError:
    """The error about a sealed folder whose files have changed."""
    return UserError(
        problem,
        where=str(folder),
        remedy=f"put it back, or delete {folder / MANIFEST}: snakemake then makes the folder again",
    )


def manifest_digest(folder: Path) -> str:
    """Sixteen hex digits that stand for the content of a folder sealed by `write_manifest`."""
    files = read_manifest(folder)["files"]
    return hashlib.sha256(canonical_json(files).encode()).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """Digest of a file that a job reads, or of a folder sealed by a manifest, whose files are checked.

    Of several processes rank 0 alone checks them: its error ends the others.

    Raises:
        UserError: the file or folder is not there, or damaged.
    """
    if path.is_dir() and (path / MANIFEST).is_file():
        if os.environ.get("RANK", "0") == "0":
            refuse_damage(path)
        return manifest_digest(path)
    if path.is_file():
        return sha256_of(path)[:16]
    raise UserError(
        "no such file, or a folder without its manifest", where=str(path), remedy="run its rule first"
    )


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, completely or not at all. NaN and infinity are refused."""
    with whole_file(path) as part:
        part.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> Any:
    """Read a JSON file written by `write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))
