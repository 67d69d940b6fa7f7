"""Read the files of the benchmarks, gzip or not, with errors that name the row or line."""

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from sams.runtime.errors import UserError
from sams.runtime.files import MANIFEST, read_json, read_manifest, sha256_of

Row = dict[str, Any]

GZIP_MAGIC = b"\x1f\x8b"
NAMED = 3


def read_text(path: Path) -> str:
    """Read a UTF-8 file, unpacked if its content is gzip.

    Raises:
        UserError: the file does not exist, is not UTF-8 text, or differs from the SHA-256 in its facts or in the
            manifest of its folder.
    """
    try:
        content = path.read_bytes()
        if (written := _digest_of(path)) and hashlib.sha256(content).hexdigest() != written:
            raise UserError(
                "has changed since it was written (its SHA-256 differs)",
                where=str(path),
                remedy="restore it, or delete it: snakemake then makes it again",
            )
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
        return content.decode("utf-8")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None


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


def read_json_rows(path: Path) -> list[Row]:
    """Read a JSON file with a list of objects.

    Raises:
        UserError: the file is not a list of objects; the message names the line or the type.
    """
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error.msg}", where=f"{path}, line {error.lineno}") from None
    if not isinstance(rows, list):
        raise UserError(f"expected a list of objects, found {type(rows).__name__}", where=str(path))
    return _objects(rows, path, "row")


def read_json_lines(path: Path) -> list[Row]:
    """Read a JSON-lines file; empty lines are ignored.

    Raises:
        UserError: naming the line.
    """
    rows = []
    # Not `splitlines`, which also splits at U+2028 and similar characters inside texts.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"not JSON: {error.msg}", where=f"{path}, line {number}") from None
    return _objects(rows, path, "line")


def _objects(rows: list[Any], path: Path, unit: str) -> list[Row]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"expected an object, found {row!r:.60}", where=f"{path}, {unit} {number}")
    if not rows:
        raise UserError("holds no rows", where=str(path))
    return rows


def text_of(row: Row, key: str, where: str, *, empty: bool = False) -> str:
    """Return the string under a key.

    Raises:
        UserError: the key is missing, is no string, or is blank where `empty` does not allow it.
    """
    value = row.get(key)
    if not isinstance(value, str):
        value_text = "nothing" if key not in row else f"{value!r:.60}"
        raise UserError(f"expected text, found {value_text}", where=f"{where}, key '{key}'")
    if not empty and not value.strip():
        raise UserError("expected text, found an empty one", where=f"{where}, key '{key}'")
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
