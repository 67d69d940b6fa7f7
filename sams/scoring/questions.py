"""Stage `prepare_questions`: write the questions of the benchmarks, from the synthetic world or from files."""

import logging
from pathlib import Path

from sams.runtime.files import sha256_of, whole_folder, write_json
from sams.runtime.stage import read_recipe, run
from sams.scoring.fetch import published
from sams.scoring.question_set import Prepared, question_set, write_rows
from sams.study.recipes import QuestionsRecipe
from sams.study.settings import World, benchmark_settings
from sams.study.sources import digests_of_sources

log = logging.getLogger(__name__)


def main(recipe: str, out: Path) -> None:
    """Write the files of each benchmark's questions; source.json holds the source of each.

    Raises:
        UserError: naming key, file and row; nothing is written then.
    """
    settings = read_recipe(recipe, QuestionsRecipe)
    sources: dict[str, dict[str, str]] = {}
    with whole_folder(out, sources=digests_of_sources(settings)) as part:
        for name, keys in settings.benchmarks.items():
            for file, prepared in prepare(name, keys, settings.world).items():
                write_rows(part / file, prepared.rows)
                sources[file] = source(prepared.source)
        write_json(part / "source.json", sources)
    log.info("%s", sources or "no benchmark has questions")


def prepare(name: str, keys: dict[str, object], world: World | None) -> dict[str, Prepared]:
    """Return the files of a benchmark's questions, from the values of its `question_keys`."""
    return question_set(name).prepare(benchmark_settings()[name].model_validate(keys), world)


def source(given: str | None) -> dict[str, str]:
    """Return the source of a file."""
    if given is None:
        return {"made_from": "the synthetic world"}
    known = published(given)
    address = {"url": known.url} if known else {}
    return {"file": given, "sha256": sha256_of(Path(given)), **address}


if __name__ == "__main__":
    run(main)
