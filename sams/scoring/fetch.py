"""Stage `fetch_benchmark_inputs`: download a published input of a benchmark, pinned by address and checksum.

    python -m sams.scoring.fetch --out inputs/df_gamed.csv

A study requests a file of PUBLISHED by its path, `inputs/<file>`. Without a network, the file can be put there by
hand.
"""

import hashlib
import logging
import urllib.error
import urllib.request
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import NamedTuple

from sams.runtime.errors import UserError
from sams.runtime.files import sha256_of, whole_file
from sams.runtime.stage import run

log = logging.getLogger("fetch")

FOLDER = "inputs"
WAIT_SECONDS = 60.0
MOST_BYTES = 1 << 26  # a longer answer is refused


class Source(NamedTuple):
    """Address of a published file and the hexadecimal SHA-256 of its content."""

    url: str
    sha256: str


_ALPACA_EVAL = (
    "https://huggingface.co/datasets/tatsu-lab/alpaca_eval/resolve/2edc6fad8be6b14ea7230aabfd08188da6b8b814"
)
_FASTCHAT = "https://github.com/lm-sys/FastChat/raw/0e6d3e4/fastchat/llm_judge/data"

PUBLISHED = {
    # AlpacaEval 2: its 805 instructions with the outputs of gpt4_1106_preview, and their difficulties.
    "alpaca_eval_gpt4_baseline.json": Source(
        f"{_ALPACA_EVAL}/alpaca_eval_gpt4_baseline.json",
        "83db546b872ddebee8965fd05fa48461ee3c32bc695c62fb57f2d214ff741ec4",
    ),
    "df_gamed.csv": Source(
        f"{_ALPACA_EVAL}/df_gamed.csv", "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"
    ),
    # MT-Bench: questions, judge prompts, and the reference answers of gpt-4.
    "question.jsonl": Source(
        f"{_FASTCHAT}/mt_bench/question.jsonl",
        "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    ),
    "judge_prompts.jsonl": Source(
        f"{_FASTCHAT}/judge_prompts.jsonl", "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6"
    ),
    "gpt-4.jsonl": Source(
        f"{_FASTCHAT}/mt_bench/reference_answer/gpt-4.jsonl",
        "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
    ),
}


def published(path: str) -> Source | None:
    """Return the source of a file that a study names; None for a file of the user."""
    folder, _, name = path.rpartition("/")
    return PUBLISHED.get(name) if folder == FOLDER else None


def fetch(source: Source, out: Path) -> None:
    """Download a file to `out`, completely and as published, or not at all.

    Raises:
        UserError: the download fails, or the content differs from the published one.
    """
    by_hand = f"check the network, or put the file at {out} by hand"
    try:
        with urllib.request.urlopen(source.url, timeout=WAIT_SECONDS) as answer:
            content = answer.read(MOST_BYTES)
            if len(content) < MOST_BYTES and answer.length:  # a read with a limit does not raise this itself
                raise IncompleteRead(content, answer.length)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(f"cannot be fetched ({reason})", where=source.url, remedy=by_hand) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != source.sha256:
        raise UserError(
            f"sent {len(content)} bytes with SHA-256 {digest}, expected {source.sha256}",
            where=source.url,
            remedy=by_hand,
        )
    with whole_file(out) as part:
        part.write_bytes(content)


def check(path: Path, source: Source) -> None:
    """Check that an existing file is the published one.

    Raises:
        UserError: it is not.
    """
    digest = sha256_of(path)
    if digest != source.sha256:
        raise UserError(
            f"has SHA-256 {digest}, but {source.url} has {source.sha256}",
            where=str(path),
            remedy="delete it to have it fetched, or rename it if it is a file of your own",
        )


def main(out: Path) -> None:
    """Download the published file with the name of `out`."""
    source = published(f"{FOLDER}/{out.name}")
    if source is None:
        raise UserError(
            "no published file has this name", where=f"--out {out}", remedy=f"one of {', '.join(PUBLISHED)}"
        )
    fetch(source, out)
    log.info("%s: %d bytes from %s", out, out.stat().st_size, source.url)


if __name__ == "__main__":
    run(main)
