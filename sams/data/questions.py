"""Stage `prepare_questions`: the benchmarks' inputs, from the synthetic world or from files."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

from sams.config import World
from sams.data import world as synthetic
from sams.data.judge_prompts import judge_prompts
from sams.errors import UserError
from sams.files import sha256_of, whole_folder, write_json
from sams.recipes import QuestionsRecipe
from sams.stage import read_recipe, run

log = logging.getLogger(__name__)

WORLD = "the synthetic world"


def main(recipe: str, out: Path) -> None:
    """Write alpaca_eval.json, mt_bench_questions.jsonl, mt_bench_references.jsonl, judge_prompts.jsonl.

    A benchmark that the study leaves out has no files. source.json says where each came from.
    """
    settings = read_recipe(recipe, QuestionsRecipe)
    world, sources = settings.world, {}
    with whole_folder(out) as part:
        if settings.alpaca_eval is not None:
            key, given = "benchmarks.alpaca_eval.reference_outputs", settings.alpaca_eval.reference_outputs
            rows = read_rows(given, key) if given else synthetic.baseline_outputs(required(world, key))
            write_json(part / "alpaca_eval.json", rows)
            sources["alpaca_eval.json"] = source(given)
        if settings.mt_bench is not None:
            for name, make in (
                ("questions", synthetic.mt_bench_questions),
                ("references", synthetic.mt_bench_references),
                ("judge_prompts", judge_prompts),
            ):
                key, given = f"benchmarks.mt_bench.{name}", getattr(settings.mt_bench, name)
                rows = read_rows(given, key) if given else make(required(world, key))
                file = f"{name}.jsonl" if name == "judge_prompts" else f"mt_bench_{name}.jsonl"
                (part / file).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
                sources[file] = source(given)
        write_json(part / "source.json", sources)
    log.info("%s", sources or "no benchmark is scored")


def required(world: World | None, key: str) -> World:
    """The synthetic world, or a word on what else is needed.

    Raises:
        UserError: when there is no world.
    """
    if world is None:
        raise UserError(
            "a file is needed, since the study has no synthetic world", where=key, remedy="name it"
        )
    return world


def source(given: str | None) -> dict[str, str]:
    """Where a file came from."""
    return {"file": given, "sha256": sha256_of(Path(given))} if given else {"made from": WORLD}


def read_rows(given: str, key: str) -> list[dict[str, Any]]:
    """Rows of a JSON list or of JSON lines, gzip or not.

    Raises:
        UserError: naming key, file and line.
    """
    file = Path(given)
    try:
        content = file.read_bytes()
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read: {error}", where=f"{key}: {file}", remedy="correct the path"
        ) from None
    try:
        rows = (
            json.loads(text)
            if text.lstrip()[:1] == "["
            else [json.loads(line) for line in text.splitlines() if line]
        )
    except json.JSONDecodeError as error:
        raise UserError(f"no JSON: {error}", where=f"{key}: {file}") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError("expected one JSON object per row", where=f"{key}: {file}")
    return list(rows)


if __name__ == "__main__":
    run(main)
