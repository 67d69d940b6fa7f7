"""Atomic writing of files and folders, and manifests with the SHA-256 of each file."""

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
CARD = "README.md"
DESCRIBING = (MANIFEST, ENVIRONMENT, CARD)
"""Files that describe a folder; its manifest does not list them, so that they change no digest."""


def restrict_umask() -> None:
    """Withhold write permission for others from the files that this process and its children create."""
    os.umask(_umask() | 0o002)


def apply_umask(folder: Path) -> None:
    """Give a folder and all in it the permissions of newly created files: some libraries write for the owner only."""
    mask = _umask()
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():  # its target may be anywhere
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _umask() -> int:
    """Return this process's umask. It can only be read by setting it; in between, new files are the owner's."""
    os.umask(mask := os.umask(0o077))
    return mask


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and without spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """Hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; if the block succeeds, sync it to disk and rename it to `path`."""
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
    """Yield a temporary folder; if the block succeeds, write its manifest and rename it to `path`.

    An existing folder at `path` is replaced. `facts` are added to the manifest. `environment.json` describes the
    machine and the libraries.
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
    """Return this process's temporary path for a path, and remove those of processes that were killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f".{glob.escape(path.name)}.part-*"):
        writer = other.name.rpartition("-")[2]
        if writer.isdecimal() and not _is_alive(int(writer)):
            if other.is_dir():
                shutil.rmtree(other, ignore_errors=True)
            else:
                other.unlink(missing_ok=True)
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
    """Write `manifest.json`, the last file of a folder: the SHA-256 of every file, and `facts`.

    All files get the permissions of the umask.
    """
    files = {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in DESCRIBING
    }
    write_json(folder / MANIFEST, {**facts, "files": files})
    apply_umask(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder.

    Raises:
        UserError: it is damaged.
    """
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        if not all(isinstance(digest, str) for digest in manifest["files"].values()):
            raise TypeError("expected digests as text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, f"{MANIFEST} is damaged ({error})") from None
    return manifest


def refuse_damage(folder: Path) -> None:
    """Hash all files of a folder and compare them with its manifest.

    Raises:
        UserError: a file has changed or is missing; the message names the first one.
    """
    for name, digest in read_manifest(folder)["files"].items():
        file = folder / name
        if not file.is_file():
            raise damaged(folder, f"{name} is missing")
        if sha256_of(file) != digest:
            raise damaged(folder, f"{name} has changed since it was written (its SHA-256 differs)")


def damaged(folder: Path, problem: str) -> UserError:
    """Return the error for a folder whose files do not match its manifest."""
    return UserError(
        problem,
        where=str(folder),
        remedy=f"restore it, or delete {folder / MANIFEST}: snakemake then makes the folder again",
    )


def manifest_digest(folder: Path) -> str:
    """Return a digest of a folder's content by its manifest, sixteen hex digits."""
    files = read_manifest(folder)["files"]
    return hashlib.sha256(canonical_json(files).encode()).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """Return the digest of a file that a job reads, or of a folder with a manifest, whose files are checked.

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
    """Write indented JSON atomically. NaN and infinity are errors."""
    with whole_file(path) as part:
        part.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> Any:
    """Read a JSON file written by `write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))
