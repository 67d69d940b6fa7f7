"""Prompts of prepared test pairs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sams.data.records import prompt_digest
from sams.runtime.errors import UserError

TEST_PAIRS = "test.parquet"


def test_prompts(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the different prompts of a file of prepared pairs, each with these columns of its first pair.

    Raises:
        UserError: no such file.
    """
    from pyarrow import parquet

    if not path.is_file():
        raise UserError("no test pairs", where=str(path))
    seen = set()
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                if (digest := prompt_digest(row["prompt"])) not in seen:
                    seen.add(digest)
                    yield row
