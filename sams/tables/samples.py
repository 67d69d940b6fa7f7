"""Page of all methods' answers to test prompts, next to the start model's and the chosen ones."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sams.data.prompts import TEST_PAIRS, test_prompts
from sams.runtime.files import read_json
from sams.scoring.inputs import Row, meta_path, read_rows
from sams.study.study import BASE_METHOD, Study
from sams.tables import captions
from sams.tables.pages import render_page
from sams.tables.render import MISSING, number

ANSWERS = "samples/answers.jsonl"
START, CHOSEN = "start", "chosen"


class Said(NamedTuple):
    """An answer on the page.

    Args:
        name: who gives it.
        text: the answer.
        length: its length, as text.
        cut: whether it reached the maximum length; None for a chosen answer of the data.
        changed: whether it differs from that of the start model; None for that one and for a chosen answer.
    """

    name: str
    text: str
    length: str
    cut: bool | None
    changed: bool | None


def page(study: Study, results: Path, data: Path) -> str:
    """Return the page, with the answers of the study's first seed.

    Args:
        study: the study.
        results: folder of its setting.
        data: folder of the prepared data of the first seed.
    """
    seed = study.seeds[0]
    files = {method: results / method / f"seed{seed}" / ANSWERS for method in study.sampled_methods}
    answers = {method: {row["id"]: row for row in read_rows(file)} for method, file in files.items()}
    asked = [
        row
        for row in test_prompts(data / TEST_PAIRS, ["id", "prompt", "chosen"])
        if all(row["id"] in given for given in answers.values())
    ]
    # A finished model may have a shorter context, and then other prompts.
    items = [(row["prompt"], said(answers, row)) for row in asked]
    return render_page(
        "samples",
        study=study,
        seed=seed,
        rehearsal_note=captions.rehearsal_note(study),
        names=[name_of(method) for method in answers],
        items=items,
        columns=COLUMNS,
        rows=[summary([given[place] for _, given in items]) for place in range(len(answers) + 1)],
        decodings=decodings(files),
    )


def name_of(method: str) -> str:
    """Return the name of a method on the page."""
    return START if method == BASE_METHOD else method


def said(answers: dict[str, dict[str, Row]], pair: Row) -> list[Said]:
    """Return the answers to the prompt of a test pair, by method, and the chosen answer of the pair."""
    start = answers.get(BASE_METHOD, {}).get(pair["id"])
    given = []
    for method, rows in answers.items():
        row = rows[pair["id"]]
        tokens = f"{row['tokens']} token{'s' * (row['tokens'] != 1)}"
        changed = None if start is None or row is start else row["answer"] != start["answer"]
        length = f"{len(row['answer'])} characters, {tokens}"
        given.append(Said(name_of(method), row["answer"], length, row["truncated"], changed))
    return [*given, Said(CHOSEN, pair["chosen"], f"{len(pair['chosen'])} characters", None, None)]


COLUMNS = ["", "mean length", "longest", "empty", "cut", "changed"]


def summary(column: Sequence[Said]) -> list[str]:
    """Return the row of one model in the table, of COLUMNS; lengths are in characters."""
    sizes = [len(answer.text) for answer in column]
    cut, changed = (
        [value for answer in column if (value := getattr(answer, key)) is not None]
        for key in ("cut", "changed")
    )
    return [
        column[0].name,
        number(statistics.fmean(sizes), 0),
        str(max(sizes)),
        str(sizes.count(0)),
        *(str(sum(values)) if values else MISSING for values in (cut, changed)),
    ]


def decodings(files: dict[str, Path]) -> list[str]:
    """Return how the answers were decoded, one sentence for each kind of decoding."""
    methods: dict[str, list[str]] = {}
    for method, file in files.items():
        methods.setdefault(decoding_text(read_json(meta_path(file))["decoding"]), []).append(name_of(method))
    return [
        f"{', '.join(names)}: {text}" if len(methods) > 1 else text[0].upper() + text[1:]
        for text, names in methods.items()
    ]


def decoding_text(decoding: dict[str, Any]) -> str:
    """Return decode settings in words."""
    sampled = f"sampled at temperature {decoding['temperature']:g}"
    parts = ["greedy" if decoding["temperature"] == 0 else sampled]
    if decoding["temperature"] and decoding["top_p"] < 1:
        parts.append(f"top-p {decoding['top_p']:g}")
    if decoding["temperature"] and decoding["top_k"]:
        parts.append(f"top-k {decoding['top_k']}")
    if decoding["repetition_penalty"] != 1:
        parts.append(f"repetition penalty {decoding['repetition_penalty']:g}")
    return f"{', '.join(parts)}; at most {decoding['max_new_tokens']} tokens"
