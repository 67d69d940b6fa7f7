"""Stage `generate_answers`: answer the questions of a benchmark or test prompts with a model.

    python -m sams.generation.generate --recipe recipe.json --model R/dpo/seed0/model \
        --questions R/questions/alpaca_eval --out answers.json

AlpacaEval's answers are a JSON list {instruction, output, generator, dataset} in the order of the questions,
MT-Bench's are JSON lines in FastChat's answer form, those of test prompts are JSON lines {id, answer, tokens,
truncated}, with --questions the folder of prepared data. <answers>.meta.json, in the same folder, holds the recipe,
the digest of the model and figures of the answers. Decoded batches are stored in the hidden file .<answers>.parts
until the answers are written, so that a killed run resumes with bitwise the same answers.
"""

import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sams.generation.facts import made_with, model_digest, parts_path
from sams.generation.shards import Shards
from sams.runtime.errors import UserError
from sams.runtime.files import sha256_of, write_json
from sams.runtime.provenance import made_on
from sams.runtime.stage import read_recipe, run
from sams.scoring.inputs import Row, meta_path
from sams.scoring.question_set import question_set
from sams.study.code import questions_of
from sams.study.recipes import GenerateRecipe

if TYPE_CHECKING:
    from sams.generation.decode import Decoder

log = logging.getLogger("generate")


def generate_answers(
    recipe: GenerateRecipe, model: Path, questions: Path, out: Path, parts: Path | None = None
) -> dict[str, Any]:
    """Answer a set of questions and write the answers.

    Args:
        recipe: set of questions, decoding settings and seed; `method` and `seed` give the name of the model.
        model: exported model folder.
        questions: folder with the questions.
        out: file for the answers.
        parts: file for decoded batches; None: `parts_path`.

    Returns:
        The content of <out>.meta.json.

    Raises:
        UserError: unreadable questions or model, a prompt that does not fit the model, or an engine that is
            not installed.
    """
    from sams.generation.decode import Decoder

    asked = question_set(recipe.benchmark)
    rows, source = asked.read(questions)
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        "model": model_digest(model),
        "questions": sha256_of(source),
        **made_with(recipe.decoding, "sams.generation.generate", questions_of(recipe.benchmark)),
    }
    shards = Shards(parts or parts_path(out), facts)
    decoder = Decoder(model, recipe.precision, recipe.decoding, recipe.seed, shards, recipe.template_date)
    if recipe.prompts is not None:
        rows = fitting(decoder, rows, recipe.prompts)
    started = time.monotonic()
    outputs, by_name = asked.answer(decoder, rows, f"{recipe.method}-seed{recipe.seed}")
    answers = by_name.values()
    meta = {
        **facts,
        "decoding": decoder.decoding.model_dump(mode="json"),
        "stop_token_ids": decoder.stop_ids,
        "device": decoder.engine.device,
        "n_answers": len(answers),
        "n_resumed": decoder.n_resumed,
        "n_empty": sum(not answer.text for answer in answers),
        "n_truncated": sum(answer.truncated for answer in answers),
        "n_tokens": sum(answer.tokens for answer in answers),
        "truncated": [name for name, answer in by_name.items() if answer.truncated],
        "seconds": round(time.monotonic() - started, 3),
    }
    meta_path(out).unlink(
        missing_ok=True
    )  # a kill before the next write must not leave facts that belong to other answers
    asked.write(out, outputs)
    meta |= {"sha256": sha256_of(out), "environment": made_on()}
    write_json(meta_path(out), meta)
    shards.remove()
    return meta


def fitting(decoder: "Decoder", rows: Sequence[Row], count: int | None) -> list[Row]:
    """Return the first `count` rows with a prompt that leaves room for an answer in the model's context.

    Raises:
        UserError: there is none.
    """
    found = list(itertools.islice((row for row in rows if decoder.fits(row["prompt"])), count))
    if not found:
        raise UserError(f"none of {len(rows)} prompts fits the model's context")
    return found


# --- command line ---------------------------------------------------------------------------------


def main(
    recipe: Annotated[str, typer.Option(help="GenerateRecipe, as JSON or a file.")],
    model: Annotated[Path, typer.Option(help="Exported model folder.")],
    questions: Annotated[Path, typer.Option(help="Folder with the questions, or with the prepared data.")],
    out: Annotated[Path, typer.Option(help="File for the answers.")],
    parts: Annotated[
        Path | None, typer.Option(help="File for decoded batches (.<out>.parts in the same folder).")
    ] = None,
) -> None:
    """Answer a set of questions."""
    meta = generate_answers(read_recipe(recipe, GenerateRecipe), model, questions, out, parts)
    log.info(
        "%d answers in %.1f s, %d truncated, %d empty",
        meta["n_answers"],
        meta["seconds"],
        meta["n_truncated"],
        meta["n_empty"],
    )


if __name__ == "__main__":
    run(main)
