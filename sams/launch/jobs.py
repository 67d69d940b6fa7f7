"""Parameters of the rules: those that run a job again when they change, and command-line options."""

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sams.launch.changes import code_text, sources_text
from sams.runtime.digests import digest_of_source
from sams.runtime.files import MANIFEST
from sams.scoring.fetch import published
from sams.study.code import ENTRY_POINTS, code_of_job
from sams.study.model_files import is_weights
from sams.study.recipes import recipe_json, recipe_of
from sams.study.settings import Settings, benchmark_settings
from sams.study.sources import sources_of
from sams.study.study import BASE_METHOD, Study

SCORING = (
    "make_difficulty",
    *(f"score_{name}" for name, kind in benchmark_settings().items() if kind.has_judge),
)
"""Stages that share the recipe `score`."""


class Jobs:
    """The jobs of a study, by stage and wildcards."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._recipe = functools.cache(functools.partial(recipe_of, study))
        self._digest = functools.cache(_digest)
        on_policy = study.on_policy
        # Sources that no recipe names.
        self._more: dict[str, list[str | None]] = {
            "sample_pairs": [on_policy.prompts, on_policy.reward_model] if on_policy else [],
        } | {
            f"score_{name}": [*group.part(group.source_keys).values()]
            for name, group in study.benchmarks.scored.items()
        }

    def recipe(self, stage: str, wildcards: Any, benchmark: str = "") -> Settings:
        """Return the recipe of a job."""
        name = "score" if stage in SCORING else stage
        benchmark = (
            stage.removeprefix("score_") if stage in SCORING else benchmark or wildcards.get("asked", "")
        )
        method, seed = wildcards.get("method", ""), int(wildcards.get("seed", 0))
        return self._recipe(name, method=method, seed=seed, benchmark=benchmark)

    def parameters(self, stage: str, benchmark: str = "") -> dict[str, Any]:
        """Return parameters of a rule: module, and functions of the wildcards for recipe, code and sources.

        Snakemake runs a job again when one of them changes.
        """

        def sources(wildcards: Any) -> str:
            paths = self._sources(stage, wildcards, benchmark)
            return sources_text({path: self._digest(path) for path in paths})

        return {
            "module": ENTRY_POINTS[stage],
            "recipe": lambda wildcards: recipe_json(self.recipe(stage, wildcards, benchmark)),
            "code": lambda wildcards: code_text(code_of_job(stage, self.recipe(stage, wildcards, benchmark))),
            "sources": sources,
        }

    def sources(self, stage: str) -> Callable[[Any], list[str]]:
        """Return an input function of a rule: local files and folders that exist or can be fetched.

        Rule `preflight` reports the others, with the setting that names them.
        """

        # Snakemake takes braces in a path for wildcards. The digest in the parameters stands for these files.
        return lambda wildcards: [path for path in self._sources(stage, wildcards) if "{" not in path]

    def _sources(self, stage: str, wildcards: Any, benchmark: str = "") -> list[str]:
        named = [*sources_of(self.recipe(stage, wildcards, benchmark)), *self._more.get(stage, [])]
        adapted = wildcards.get("method") == BASE_METHOD and self.study.sft and self.study.sft.lora
        if stage == "export_model" and wildcards.method in self.study.trained_methods and not adapted:
            named = [path for path in named if path and not is_weights(path)]
        return [path for path in named if path and (Path(path).exists() or published(path))]


def literal(text: str) -> str:
    """Escape the braces of an option's value, so that they are not filled in."""
    return text.replace("{", "{{").replace("}", "}}")


def options(*inputs: str, **more: str) -> Callable[..., str]:
    """Return a parameter of a rule with the command-line options of its jobs, which change no result.

    An option whose value is a manifest gets the manifest's folder.

    Args:
        inputs: names of inputs, each given as the option of its name; an input without files gives no option.
        more: values of further options, in which wildcards, {input.x}, {output.x} and {threads} are filled in.
    """

    def command_line(wildcards: Any, input: Any, output: Any, threads: Any) -> str:
        given = []
        for name in inputs:
            files = input.get(name) or []
            given += [(name, file) for file in ([files] if isinstance(files, str) else files)]
        for name, value in more.items():
            known = {"input": input, "output": output, "threads": threads, "wildcards": wildcards}
            given.append((name, value.format(**dict(wildcards.items()), **known)))
        return " ".join(f"--{name.replace('_', '-')} {shlex.quote(_folder(value))}" for name, value in given)

    return command_line


def _folder(path: str) -> str:
    return str(Path(path).parent) if Path(path).name == MANIFEST else path


def _digest(source: str) -> str:
    """Return the digest of a source; for a published file that is not fetched yet, the published digest."""
    if Path(source).exists():
        return digest_of_source(Path(source))
    known = published(source)
    assert known is not None
    return known.sha256
