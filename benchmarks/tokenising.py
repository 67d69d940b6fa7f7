"""Compare the speed of stage `tokenise` with the tokenizer alone.

    python -m benchmarks.tokenising --pairs pairs.jsonl.gz

In one process and with one tokenizer (byte-level BPE of 4096, trained on the pairs), in turn: the tokenizer's
`encode_batch` of the rendered texts, prompt + chosen and prompt + rejected; and the complete stage, from a prepared
Parquet file to an Arrow data set on disk, with templates, control tokens, truncation, counting and writing.
"""

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sams.data import prepare, tokenise
from sams.data.tokeniser import build_tokenizer
from sams.runtime.files import write_json
from sams.runtime.stage import run
from sams.study.recipes import DataRecipe, TokeniseRecipe, recipe_json
from sams.study.settings import Data, Model

MODEL = Model.model_validate(
    {"architecture": {"model_type": "llama"}, "tokenizer": "bpe", "vocab_size": 4096}
)


def main(
    pairs: Path = Path("config/studies/own_data/train.jsonl"),
    out: Path = Path("results/bench/tokenising.json"),
    rounds: int = 5,
    max_length: int = 1024,
) -> None:
    """Measure both in turn, `rounds` times after a warm-up, and write the figures to `out`.

    Args:
        pairs: preference pairs in any form that a study accepts.
        out: file of the figures.
        rounds: number of measurements of each.
        max_length: limit of prompt with response, half of it for the prompt. The tokenizer alone has none.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare.main(recipe_json(DataRecipe(data=Data(train=str(pairs), test=str(pairs)))), data)
        file = data / "train.parquet"
        tokenizer = build_tokenizer(MODEL, tokenise.texts(data))
        recipe = TokeniseRecipe(model=MODEL, max_length=max_length, max_prompt_length=max_length // 2)
        texts = [
            str(tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True))
            + f" {row[side]}"
            for batch in tokenise.read_batches(file, "pairs")
            for row in batch
            for side in ("chosen", "rejected")
        ]

        def bare() -> None:
            for start in range(0, len(texts), 2 * tokenise.READ_ROWS):
                tokenizer.backend_tokenizer.encode_batch(
                    texts[start : start + 2 * tokenise.READ_ROWS], add_special_tokens=False
                )

        def complete() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as made:
                tokenise.tokenise_split(file, "train", tokenizer, recipe, Path(made) / "train")

        seconds = [(cpu_seconds(bare), cpu_seconds(complete)) for _ in range(rounds + 1)][1:]
    rows = len(texts) // 2
    ratios = [alone / stage for alone, stage in seconds]
    write_json(
        out,
        {
            "pairs": rows,
            "source": pairs.name,
            "bare_cpu_seconds": [alone for alone, _ in seconds],
            "stage_cpu_seconds": [stage for _, stage in seconds],
            "bare_pairs_per_cpu_second": rows / statistics.median(alone for alone, _ in seconds),
            "stage_pairs_per_cpu_second": rows / statistics.median(stage for _, stage in seconds),
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
        },
    )
    print(out.read_text())


def cpu_seconds(work: Callable[[], None]) -> float:
    """Return the CPU seconds of this process, all threads, that a function takes."""
    gc.collect()
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    run(main)
