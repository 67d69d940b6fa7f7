"""Is a results folder whole, and all of one piece? Hashes, recipes, upstream digests, environment, commit, figures.

What is sealed by a manifest is hashed again. What lies beside it is held against what it must follow from: the
answers against the hash that their scores recorded, the final figures against the last line of the metric log,
the win rate against the judgments. Runs of one study must share code, environment and commit, or they do not
compare.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sams.runtime.digests import digest_of_source
from sams.runtime.errors import UserError
from sams.runtime.files import MANIFEST, canonical_json, manifest_digest, read_json, sha256_of
from sams.runtime.provenance import ENVIRONMENT
from sams.study.study import BASE_METHOD, Study
from sams.tables.choose import chosen_of
from sams.tables.chosen_table import chosen_table, read_figures
from sams.tables.comparisons import alpaca_eval_items, mt_bench_items
from sams.tables.main_table import main_table
from sams.tables.paper_table import paper_table
from sams.tables.results import METRICS, read_cells, read_log

SUMS = "SHA256SUMS"  # lies in a bundle, which has no weights
APART = {"checkpoints", "tables", "logs", "benchmarks"}
# Files that a figure of a benchmark was made of: the key of their hash in metrics.json, and where they lie.
ANSWERS = {
    "alpaca_eval": ("model_outputs", "alpaca_eval/answers.json"),
    "mt_bench": ("answers", "mt_bench/answers.jsonl"),
}
LAST = {
    "test_accuracy": ("eval/rewards/accuracies", 100.0),
    "validation_accuracy": ("eval/rewards/accuracies", 100.0),
    "chosen_reward": ("eval/rewards/chosen", 1.0),
    "chosen_logp": ("eval/logps/chosen", 1.0),
}
SHOWN = 3


class Finding(NamedTuple):
    """One thing that was checked: what, where (relative to the folder), whether it holds, what was found."""

    check: str
    where: str
    holds: bool
    found: str


class Run(NamedTuple):
    """A training job's folder, and the rule that made it."""

    folder: Path
    stage: str
    method: str
    seed: int


def verify(root: Path, study: Study | None = None) -> list[Finding]:
    """Check the results of a study.

    Args:
        root: `results/<study>`, or an unpacked bundle of it.
        study: the study that the results should be of; without it neither settings nor tables are compared.

    Raises:
        UserError: there are no results.
    """
    trained = [run for setting in settings_of(root) for run in runs_of(setting)]
    if not trained:
        raise UserError("no results of training", where=str(root), remedy="give results/<study>")
    findings = [*_sums(root), *_sealed(root)]
    for run in trained:
        findings += _recipe(root, run, study)
        findings += _figures(root, run)
    findings += _same(root, trained)
    return findings + ([] if study is None else list(_tables(root, study)))


def settings_of(root: Path) -> list[Path]:
    """Folders of a study's settings."""
    if not root.is_dir():
        raise UserError("no such folder", where=str(root), remedy="give results/<study>")
    return [path for path in sorted(root.iterdir()) if path.is_dir() and path.name not in APART]


def runs_of(setting: Path) -> list[Run]:
    """Training jobs of a setting, told by their figures."""
    runs = []
    for file in sorted(setting.glob(f"*/seed*/{METRICS['train']}")):
        method, seed = file.parent.parent.name, int(file.parent.name.removeprefix("seed"))
        stages = {BASE_METHOD: "train_sft", "scheduler": "pretrain_scheduler"}
        runs.append(Run(file.parent, stages.get(method, "train_preference"), method, seed))
        for half in sorted(file.parent.glob(f"crossfit/half*/{METRICS['train']}")):
            runs.append(Run(half.parent, "train_crossfit", method, seed))
    return runs


def print_findings(findings: list[Finding]) -> None:
    """Print what was checked, and how much of it does not hold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table("", "check", "where", "found", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for finding in findings:
        mark = "ok" if finding.holds else "NOT"
        shown.add_row(
            mark, *(Text(text, overflow="fold") for text in (finding.check, finding.where, finding.found))
        )
    console = Console()
    console.print(shown)
    broken = sum(not finding.holds for finding in findings)
    console.print(f"{len(findings)} checks: {f'{broken} do not hold' if broken else 'all hold'}")


# --- what is sealed -------------------------------------------------------------------------------


def _sums(root: Path) -> Iterator[Finding]:
    """The hashes that a bundle carries, of every file in it."""
    if not (root / SUMS).is_file():
        return
    lines = (root / SUMS).read_text(encoding="utf-8").splitlines()
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - {SUMS}
    problems = _differences(root, expected, found, may_lack=False)
    yield Finding("bundle", SUMS, not problems, _told(problems, f"{len(expected)} files"))


def _sealed(root: Path) -> Iterator[Finding]:
    """Every folder with a manifest: its files, and what it was made from."""
    bundled = (root / SUMS).is_file()
    for path in sorted(root.rglob(MANIFEST)):
        place = path.relative_to(root)
        if place.parts[0] == "checkpoints" or any(part.startswith(".") for part in place.parts):
            continue
        folder, manifest = path.parent, read_json(path)
        expected = manifest["files"]
        found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        found -= {MANIFEST, ENVIRONMENT}
        problems = _differences(folder, expected, found, may_lack=bundled)
        here = len(found & expected.keys())
        left_out = f", {len(expected) - here} left out of the bundle" if here < len(expected) else ""
        yield Finding("files", str(place.parent), not problems, _told(problems, f"{here} files{left_out}"))
        yield from _sources(root, folder, manifest)
        if manifest.get("upstream"):
            setting = root / place.parts[0]
            yield _upstream(root, setting, folder, manifest["upstream"])


def _sources(root: Path, folder: Path, recorded: dict[str, Any]) -> Iterator[Finding]:
    """Compare the sources that are still there with the digests that the job recorded."""
    workplace = root.resolve().parents[1]  # relative paths are those of the workflow's folder
    here = {name: workplace / name for name in recorded.get("sources", {}) if (workplace / name).exists()}
    if here:
        problems = [
            f"{name} has changed"
            for name, path in here.items()
            if digest_of_source(path) != recorded["sources"][name]
        ]
        yield Finding("sources", _name(root, folder), not problems, _told(problems, ", ".join(here)))


def _differences(folder: Path, expected: dict[str, str], found: set[str], *, may_lack: bool) -> list[str]:
    changed = [name for name in sorted(found & expected.keys()) if sha256_of(folder / name) != expected[name]]
    absent = [] if may_lack else sorted(expected.keys() - found)
    extra = sorted(found - expected.keys())
    return [
        f"{name} {what}"
        for what, names in (("has changed", changed), ("is not there", absent), ("was added", extra))
        for name in names
    ]


def _upstream(root: Path, setting: Path, folder: Path, upstream: dict[str, str]) -> Finding:
    """Whether what a result was made from is what lies there now."""
    problems = []
    for name, digest in upstream.items():
        place = _place_of(setting, folder, name)
        if not (place / MANIFEST).is_file():
            problems.append(f"{name} is not there ({place.relative_to(root)})")
        elif manifest_digest(place) != digest:
            problems.append(f"{name} is another one now ({place.relative_to(root)})")
    return Finding("made from", _name(root, folder), not problems, _told(problems, ", ".join(upstream)))


def _place_of(setting: Path, folder: Path, name: str) -> Path:
    """Where a job finds what its recipe calls `name`."""
    seed = next((part for part in folder.relative_to(setting).parts if part.startswith("seed")), "")
    if name.startswith("crossfit"):
        return folder / "crossfit" / f"half{name.removeprefix('crossfit')}" / "losses"
    if name == "trained":
        return folder.parent / "trained"
    if (own := setting / name / seed).is_dir() and seed and name in ("data", "tokens"):
        return own  # each seed has data of its own
    places = {"model": f"{BASE_METHOD}/{seed}/model", "reference": f"reference/{seed}"}
    return setting / places.get(name, f"scheduler/{seed}/weights" if name == "scheduler" else name)


# --- what lies beside -----------------------------------------------------------------------------


def _recipe(root: Path, run: Run, study: Study | None) -> Iterator[Finding]:
    """The recipe beside a result: of this method and seed, made from what is there, of this study."""
    where = _name(root, run.folder)
    file = run.folder / "recipe.json"
    if not file.is_file():
        yield Finding("recipe", where, False, "recipe.json is not there")
        return
    kept = read_json(file)
    recipe = kept["recipe"]
    problems = []
    if recipe["seed"] != run.seed or recipe.get("method", run.method) != run.method:
        problems.append(f"is of {recipe.get('method', run.method)}, seed {recipe['seed']}")
    if study is not None and (differing := _other_settings(run, recipe, study)):
        problems.append(f"differs from the study in {', '.join(differing)}")
    yield Finding("recipe", where, not problems, _told(problems, "as in the study" if study else "there"))
    setting = root / run.folder.relative_to(root).parts[0]
    yield _upstream(root, setting, run.folder, kept["upstream"])
    yield from _sources(root, run.folder, kept)


def _other_settings(run: Run, recipe: dict[str, Any], study: Study) -> list[str]:
    """Dotted keys in which a recipe is not the study's."""
    from sams.study.recipes import recipe_of
    from sams.tracking.log import flatten

    method = run.method if run.stage in ("train_preference", "train_crossfit") else ""
    try:
        asked = recipe_of(study, run.stage, method=method, seed=run.seed)
    except UserError as error:
        return [str(error)]
    here, there = flatten(recipe), flatten(asked.model_dump(mode="json"))
    return sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))


def _figures(root: Path, run: Run) -> Iterator[Finding]:
    """Figures against the files that they follow from."""
    checks: list[tuple[str, Callable[[Path], list[str]]]] = [
        (METRICS["train"], _of_log),
        (METRICS["alpaca_eval"], _of_annotations),
        (METRICS["mt_bench"], _of_judgments),
    ]
    for name, check in checks:
        if (run.folder / name).is_file() and run.stage in ("train_sft", "train_preference"):
            problems = check(run.folder)
            where = f"{_name(root, run.folder)}/{name}"
            yield Finding("figures", where, not problems, _told(problems, "follow from their files"))


def _tables(root: Path, study: Study) -> Iterator[Finding]:
    """The study's tables, made again from its figures."""
    setting = root / study.setting
    cells = read_cells(setting)
    made = {"main.csv": main_table(cells, study.methods, study.seeds)}
    if study.paper is not None:
        made["paper.csv"] = paper_table(study, setting, cells)
    if study.chosen is not None and (setting / "chosen" / "choice.json").is_file():
        choice = chosen_of(study, setting)
        same = canonical_json(choice) == canonical_json(read_json(setting / "chosen" / "choice.json"))
        told = "follows from the metric logs" if same else "is not what follows from the metric logs"
        yield Finding("choice", f"{study.setting}/chosen/choice.json", same, told)
        made["chosen.csv"] = chosen_table(study, choice, read_figures(study, setting))
    for name, table in made.items():
        if (file := root / "tables" / name).is_file():
            same = file.read_text(encoding="utf-8") == table.to_csv(index=False)
            told = "follows from the figures" if same else "is not what follows from the figures"
            yield Finding("tables", f"tables/{name}", same, told)


def _of_log(folder: Path) -> list[str]:
    figures = read_json(folder / METRICS["train"])
    if not (folder / "train.jsonl").is_file():
        return ["train.jsonl is not there"]
    last = read_log(folder / "train.jsonl").iloc[-1]
    problems = [] if last["step"] == figures["steps"] else [f"the log ends at step {last['step']:.0f}"]
    for key, (logged, scale) in LAST.items():
        if key in figures and not _close(figures[key], scale * last.get(logged, math.nan)):
            problems.append(
                f"{key} is {figures[key]:.4f}, the log ends with {scale * last.get(logged, math.nan):.4f}"
            )
    return problems


def _of_annotations(folder: Path) -> list[str]:
    figures = read_json(folder / METRICS["alpaca_eval"])
    items = alpaca_eval_items(folder / "alpaca_eval/annotations.json")
    rate = sum(items.values()) / len(items) if items else math.nan
    problems = (
        []
        if _close(figures["win_rate"], rate)
        else [f"win_rate is {figures['win_rate']:.4f}, of the judgments {rate:.4f}"]
    )
    return problems + _answers_changed(folder, "alpaca_eval", figures)


def _of_judgments(folder: Path) -> list[str]:
    figures = read_json(folder / METRICS["mt_bench"])
    problems = []
    if not figures["n_failed"]:
        items = mt_bench_items(folder / "mt_bench/judgments.jsonl")
        average = sum(items.values()) / len(items) if items else math.nan
        if not _close(figures["average"], average):
            problems.append(f"average is {figures['average']:.4f}, of the judgments {average:.4f}")
    return problems + _answers_changed(folder, "mt_bench", figures)


def _answers_changed(folder: Path, benchmark: str, figures: dict[str, Any]) -> list[str]:
    key, name = ANSWERS[benchmark]
    recorded = figures.get("inputs", {}).get(key)
    if recorded is None:
        return []
    if not (folder / name).is_file():
        return [f"{name} is not there"]
    return [] if sha256_of(folder / name) == recorded else [f"{name} is not what was judged"]


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)


# --- all of one piece -----------------------------------------------------------------------------


def _same(root: Path, runs: list[Run]) -> Iterator[Finding]:
    """One code for each rule, one environment and one clean commit for all, recipes that differ in the seed alone."""
    for stage in sorted({run.stage for run in runs}):
        digests: dict[str, set[str]] = {}
        for run in runs:
            for module, digest in (
                _kept(run, "recipe.json").get("code", {}).items() if run.stage == stage else ()
            ):
                digests.setdefault(module, set()).add(digest)
        problems = [f"{module} differs between runs" for module, found in digests.items() if len(found) > 1]
        yield Finding("code", stage, not problems, _told(problems, f"{len(digests)} modules"))
    for stage, method in sorted({(run.stage, run.method) for run in runs}):
        recipes = {
            run.folder: canonical_json({**_kept(run, "recipe.json").get("recipe", {}), "seed": None})
            for run in runs
            if (run.stage, run.method) == (stage, method)
        }
        if len(set(recipes.values())) > 1:
            yield Finding(
                "recipe", method, False, f"{len(set(recipes.values()))} different ones over its seeds"
            )
    environments = {run.folder: _kept(run, "environment.json") for run in runs}
    libraries = {
        folder: canonical_json({key: value for key, value in found.items() if key != "commit"})
        for folder, found in environments.items()
    }
    yield _one(root, "environment", "all runs", libraries)
    commits = {folder: found.get("commit", {}).get("git_commit") for folder, found in environments.items()}
    yield _one(root, "commit", "all runs", commits)
    edited = [
        folder for folder, found in environments.items() if found.get("commit", {}).get("git_dirty") == "true"
    ]
    if edited:
        problems = [f"{_name(root, folder)} was made from an edited checkout" for folder in edited]
        yield Finding("commit", "all runs", False, _told(problems, ""))


def _kept(run: Run, name: str) -> dict[str, Any]:
    file = run.folder / name
    return dict(read_json(file)) if file.is_file() else {}


def _one(root: Path, check: str, where: str, found: Mapping[Path, str | None]) -> Finding:
    """Whether all folders have one value."""
    counts = Counter(value for value in found.values() if value not in (None, "{}"))
    unknown = [folder for folder, value in found.items() if value in (None, "{}")]
    if unknown:
        names = ", ".join(_name(root, folder) for folder in unknown[:SHOWN])
        return Finding(check, where, False, f"not recorded by {len(unknown)} of {len(found)}: {names}")
    if len(counts) > 1:
        common = counts.most_common(1)[0][0]
        others = [_name(root, folder) for folder, value in found.items() if value != common]
        return Finding(
            check, where, False, f"{len(counts)} different ones: apart are {', '.join(others[:SHOWN])}"
        )
    [value] = counts
    return Finding(check, where, True, _readable(value))


def _readable(value: str) -> str:
    """An environment's versions; other values as they are."""
    if not value.startswith("{"):
        return value
    found = json.loads(value)
    libraries = ", ".join(f"{name} {number}" for name, number in found["libraries"].items())
    return f"Python {found['python']}, {libraries}"


def _told(problems: list[str], good: str) -> str:
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more if problems else good


def _name(root: Path, folder: Path) -> str:
    return str(folder.relative_to(root))
