"""Finished batches on disk, so that a killed run goes on after the last of them."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from sams.runtime.files import canonical_json, whole_file

log = logging.getLogger("generate")


class Shards:
    """An append-only file of finished batches.

    Its first line is what the answers depend on, each further line one batch with its hash. A file with another
    first line was made with other settings and gives way. What a kill left half written at the end is cut off, and
    so is all from the first damaged line on: these batches are decoded again.

    Args:
        path: the file. Snakemake deletes what a failed job declared as output, so it is none of that.
        facts: what the answers depend on, as JSON.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self._first_line = canonical_json(facts) + "\n"
        rows, end = _whole_rows(path)
        self._begun = bool(rows) and rows[0] == json.loads(self._first_line)
        self._kept: dict[str, Any] = {}
        if self._begun:
            os.truncate(path, end)
            self._kept = {row["shard"]: row["content"] for row in rows[1:]}
            log.info("%s: going on after %d finished batches", path, len(self._kept))
        elif rows:
            log.info("%s: made with other settings, starting afresh", path)

    def get(self, shard: str) -> Any:
        """Content of a finished batch; None if it is not there."""
        return self._kept.get(shard)

    def put(self, shard: str, content: Any) -> None:
        """Keep a finished batch: it is on disk when this returns."""
        if not self._begun:
            with whole_file(self.path) as part:
                part.write_text(self._first_line, encoding="utf-8")
            self._begun = True
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(canonical_json(_hashed(shard, content)) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def remove(self) -> None:
        """Delete the file, once what it was kept for is written elsewhere."""
        self.path.unlink(missing_ok=True)


def _hashed(shard: str, content: Any) -> dict[str, Any]:
    row = {"shard": shard, "content": content}
    return row | {"sha256": hashlib.sha256(canonical_json(row).encode()).hexdigest()}


def _whole_rows(path: Path) -> tuple[list[Any], int]:
    """Rows up to the first that is not whole, and how many bytes they are."""
    rows: list[Any] = []
    end = 0
    content = path.read_bytes() if path.exists() else b""
    for line in content.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:  # half a line, or what a failing disk made of it
            break
        if not line.endswith(b"\n"):
            break
        if rows and row != _hashed(row.get("shard"), row.get("content")):
            log.warning("%s: line %d is damaged; what follows is made again", path, len(rows) + 1)
            break
        rows.append(row)
        end += len(line)
    return rows, end
