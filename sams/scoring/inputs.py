"""Reading the benchmarks' files, gzip or not, and telling which row or line is wrong."""

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
    """Text of a file in UTF-8, unpacked if it is gzip, whatever its name says.

    Raises:
        UserError: the file is not there, not readable as such text, or not what the manifest of its folder or the
            facts beside it say.
    """
    try:
        content = path.read_bytes()
        if (written := _digest_of(path)) and hashlib.sha256(content).hexdigest() != written:
            raise UserError(
                "not what was written (its SHA-256 differs)",
                where=str(path),
                remedy="put it back, or delete it: snakemake then makes it again",
            )
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
        return content.decode("utf-8")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None


def _digest_of(path: Path) -> str:
    """SHA-256 that a file had when it was made; empty where nothing beside it says so."""
    facts = meta_path(path)
    if facts.is_file():
        return str(read_json(facts).get("sha256", ""))
    if (path.parent / MANIFEST).is_file():
        return str(read_manifest(path.parent)["files"].get(path.name, ""))
    return ""


def meta_path(answers: Path) -> Path:
    """Where the facts about a file of answers are: <answers>.meta.json."""
    return answers.with_name(f"{answers.name}.meta.json")


def read_json_rows(path: Path) -> list[Row]:
    """Rows of a JSON file that holds a list of objects.

    Raises:
        UserError: naming the line, or what was found instead of a list of objects.
    """
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error.msg}", where=f"{path}, line {error.lineno}") from None
    if not isinstance(rows, list):
        raise UserError(f"expected a list of objects, found {type(rows).__name__}", where=str(path))
    return _objects(rows, path, "row")


def read_json_lines(path: Path) -> list[Row]:
    """Rows of a JSON-lines file; empty lines are passed over.

    Raises:
        UserError: naming the line.
    """
    rows = []
    # Not `splitlines`: a text may hold U+2028 and its like, which JSON leaves as they are.
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
    """The string under a key.

    Raises:
        UserError: the key is missing, is no string, or is blank where `empty` does not allow it.
    """
    value = row.get(key)
    if not isinstance(value, str):
        found = "nothing" if key not in row else f"{value!r:.60}"
        raise UserError(f"expected text, found {found}", where=f"{where}, key '{key}'")
    if not empty and not value.strip():
        raise UserError("expected text, found an empty one", where=f"{where}, key '{key}'")
    return value


def doubled(values: list[Any]) -> list[Any]:
    """The values that occur more than once, in order of first occurrence."""
    return [value for value, count in Counter(values).items() if count > 1]


def some_of(values: list[Any]) -> str:
    """The first few of a list of values and how many more there are, for an error of one line."""
    named = ", ".join(f"{value!r:.60}" if isinstance(value, str) else str(value) for value in values[:NAMED])
    return named + (f" and {len(values) - NAMED} more" if len(values) > NAMED else "")


def input_hashes(paths: dict[str, Path | None]) -> dict[str, str]:
    """SHA-256 of each input that was given, by its name."""
    return {name: sha256_of(path) for name, path in paths.items() if path is not None}


def versions(*packages: str) -> dict[str, str]:
    """Installed version of each package."""
    from importlib.metadata import version

    return {package: version(package) for package in packages}
