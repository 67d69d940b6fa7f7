"""Read the files of the benchmarks, gzip or not, with errors that name the row or line."""

from collections import Counter
from pathlib import Path
from typing import Any

from sams.data.sources import Row, named_faults, numbered_rows, unpacked
from sams.runtime.errors import UserError
from sams.runtime.files import MANIFEST, read_json, read_manifest, sha256_of

NAMED = 3


def read_rows(path: Path) -> list[Row]:
    """Read the objects of a file: a JSON list or JSON lines, gzip or not, as `sams.data.sources` reads all files.

    Raises:
        UserError: naming the row, counted from 1; that of JSON lines is the number of the line. Or the file does not
            exist, has no row, or differs from the SHA-256 in its facts or in the manifest of its folder.
    """
    return [row for _, row in numbered(path)]


def numbered(path: Path) -> list[tuple[str, Row]]:
    """Return the rows of `read_rows`, each with its location for messages (`answers.jsonl, row 7`)."""
    check_written(path)
    return list(numbered_rows(str(path), "train"))


def read_text(path: Path) -> str:
    """Read a UTF-8 file, gzip or not.

    Raises:
        UserError: the file does not exist, cannot be read, or has changed, as in `read_rows`.
    """
    check_written(path)
    with unpacked(path) as stream, named_faults(path):
        return stream.read().decode("utf-8-sig")


def check_written(path: Path) -> None:
    """Check that a file exists, and that it is as it was written, if its SHA-256 was recorded.

    Raises:
        UserError: it does not exist, or has changed.
    """
    if not path.is_file():
        problem = "is a folder, expected a file" if path.is_dir() else "no such file"
        raise UserError(problem, where=str(path), remedy="correct the path")
    if (written := _digest_of(path)) and sha256_of(path) != written:
        raise UserError(
            "has changed since it was written (its SHA-256 differs)",
            where=str(path),
            remedy="restore it, or delete it: snakemake then makes it again",
        )


def _digest_of(path: Path) -> str:
    """Return the SHA-256 of a file when it was made, from its facts or manifest; empty if unknown."""
    facts = meta_path(path)
    if facts.is_file():
        return str(read_json(facts).get("sha256", ""))
    if (path.parent / MANIFEST).is_file():
        return str(read_manifest(path.parent)["files"].get(path.name, ""))
    return ""


def meta_path(answers: Path) -> Path:
    """Return the path of the facts of a file of answers, <answers>.meta.json."""
    return answers.with_name(f"{answers.name}.meta.json")


def text_of(row: Row, key: str, where: str, *, empty: bool = False) -> str:
    """Return the string under a key.

    Raises:
        UserError: the key is missing, is no string, or is blank where `empty` does not allow it.
    """
    value = row.get(key)
    if not isinstance(value, str):
        value_text = "nothing" if key not in row else f"{value!r:.60}"
        raise UserError(
            f"expected text, found {value_text}", where=f"{where}, key '{key}'", remedy="correct the row"
        )
    if not empty and not value.strip():
        raise UserError(
            "expected text, found an empty one", where=f"{where}, key '{key}'", remedy="correct the row"
        )
    return value


def doubled(values: list[Any]) -> list[Any]:
    """Return the values that occur more than once, in order of first occurrence."""
    return [value for value, count in Counter(values).items() if count > 1]


def some_of(values: list[Any]) -> str:
    """Return the first few of a list of values and the number of others, for an error of one line."""
    named = ", ".join(f"{value!r:.60}" if isinstance(value, str) else str(value) for value in values[:NAMED])
    return named + (f" and {len(values) - NAMED} more" if len(values) > NAMED else "")


def input_hashes(paths: dict[str, Path | None]) -> dict[str, str]:
    """Return the SHA-256 of each given input by its name."""
    return {name: sha256_of(path) for name, path in paths.items() if path is not None}


def versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each package."""
    from importlib.metadata import version

    return {package: version(package) for package in packages}
