"""Batches of answers on disk, from which a killed run resumes."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from sams.runtime.files import canonical_json
from sams.runtime.jsonl import Jsonl, complete_lines

log = logging.getLogger("generate")


class Shards:
    """An append-only file of decoded batches.

    The first line holds what the answers depend on, each further line one batch with its hash. A file with another
    first line is replaced. From the first damaged or incomplete line on, batches are decoded again.

    Args:
        path: the file. It is not declared as an output, because Snakemake deletes the outputs of a failed job.
        facts: what the answers depend on, as JSON.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self._facts = facts
        rows, size = _valid_rows(path)
        self._kept: dict[str, Any] = {}
        if rows and canonical_json(rows[0]) == canonical_json(facts):
            self._kept = {row["shard"]: row["content"] for row in rows[1:]}
            log.info("%s: resuming after %d batches", path, len(self._kept))
        else:
            if rows:
                log.info("%s: made with other settings; starting from the first batch", path)
            size = 0
        self._file = Jsonl(path, size=size, synced=True)

    def get(self, shard: str) -> Any:
        """Return the content of a decoded batch, or None."""
        return self._kept.get(shard)

    def put(self, shard: str, content: Any) -> None:
        """Add a decoded batch; it is on disk when this returns."""
        if not self._file.size:
            self._file.append(self._facts)
        self._file.append(_hashed(shard, content))

    def remove(self) -> None:
        """Delete the file, after the answers have been written."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def _hashed(shard: str, content: Any) -> dict[str, Any]:
    row = {"shard": shard, "content": content}
    return row | {"sha256": hashlib.sha256(canonical_json(row).encode()).hexdigest()}


def _valid_rows(path: Path) -> tuple[list[Any], int]:
    """Return the rows before the first damaged one, and their size in bytes."""
    rows: list[Any] = []
    size = 0
    for line in complete_lines(path):
        try:
            row = json.loads(line)
            if rows and row != _hashed(row["shard"], row["content"]):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            log.warning(
                "%s: line %d is damaged; its batch and those after it are decoded again", path, len(rows) + 1
            )
            break
        rows.append(row)
        size += len(line) + 1
    return rows, size
