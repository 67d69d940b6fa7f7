"""Runs of `generate_answers` that kill themselves, in forks of a process without a computation.

    python -m tests.generation.crash '[{"recipe": ..., "paths": {...}, "batches": 3}, ...]'

Each run dies by SIGKILL when so many batches are on disk, the last of them but for its last bytes. Prints the
exit status of each.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sams.generation import decode, generate
from sams.generation.shards import Shards
from sams.study.recipes import GenerateRecipe


def run(recipe: str, paths: dict[str, str], batches: int) -> None:
    """Generate until the given number of batches is on disk."""
    put = Shards.put
    calls = 0

    def counted(self: Shards, shard: str, content: Any) -> None:
        nonlocal calls
        put(self, shard, content)
        calls += 1
        if calls == batches:
            os.truncate(self.path, self.path.stat().st_size - 5)
            os.kill(os.getpid(), signal.SIGKILL)

    Shards.put = counted  # type: ignore[method-assign]
    folders = {name: Path(path) for name, path in paths.items()}
    generate.generate_answers(GenerateRecipe.model_validate_json(recipe), **folders)


if __name__ == "__main__":
    _ = decode.Decoder  # imported before the forks
    for asked in json.loads(sys.argv[1]):
        child = os.fork()
        if not child:
            try:
                run(**asked)
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
