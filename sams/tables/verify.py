"""Check that a results folder is complete and consistent: hashes, recipes, environment, commit, figures, tables.

Files with a manifest are hashed again. Other files are compared with their sources: answers with the hash recorded by
their scores, final figures with the last line of the metric log, benchmark scores with the judgments. Runs of one
study are comparable only if they share code, environment and commit.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sams.runtime.digests import digest_of_source
from sams.runtime.errors import UserError
from sams.runtime.files import DESCRIBING, MANIFEST, canonical_json, manifest_digest, read_json, sha256_of
from sams.runtime.mappings import flatten
from sams.study.recipes import recipe_of
from sams.study.study import BASE_METHOD, Study
from sams.tables.findings import SHOWN, Finding, summary
from sams.tables.recomputed import agreement_file, run_figures, study_tables
from sams.tables.scores import METRICS

SUMS = "SHA256SUMS"  # file of a bundle, which has no weights
NOT_SETTINGS = {"checkpoints", "tables", "logs", "benchmarks"}


class Run(NamedTuple):
    """A training job's folder and the rule that made it."""

    folder: Path
    stage: str
    method: str
    seed: int


def verify(root: Path, study: Study | None = None) -> list[Finding]:
    """Check the results of a study.

    Args:
        root: `results/<study>`, or an unpacked bundle of it.
        study: the study that the results belong to; without it neither settings nor tables are compared.

    Raises:
        UserError: no results exist.
    """
    trained = [run for setting in settings_of(root) for run in runs_of(setting)]
    if not trained:
        raise UserError("no results of training", where=str(root), remedy="give results/<study>")
    findings = [*_sums(root), *_sealed(root)]
    for run in trained:
        findings += _recipe(root, run, study)
        findings += run_figures(root, run.folder, run.stage)
    findings += [*_same(root, trained), *agreement_file(root)]
    return findings + ([] if study is None else list(study_tables(root, study)))


def settings_of(root: Path) -> list[Path]:
    """Return the folders of a study's settings."""
    if not root.is_dir():
        raise UserError("no such folder", where=str(root), remedy="give results/<study>")
    return [path for path in sorted(root.iterdir()) if path.is_dir() and path.name not in NOT_SETTINGS]


def runs_of(setting: Path) -> list[Run]:
    """Training jobs of a setting that have metrics."""
    runs = []
    for file in sorted(setting.glob(f"*/seed*/{METRICS['train']}")):
        method, seed = file.parent.parent.name, int(file.parent.name.removeprefix("seed"))
        stages = {BASE_METHOD: "train_sft", "scheduler": "pretrain_scheduler"}
        runs.append(Run(file.parent, stages.get(method, "train_preference"), method, seed))
        for half in sorted(file.parent.glob(f"crossfit/half*/{METRICS['train']}")):
            runs.append(Run(half.parent, "train_crossfit", method, seed))
    return runs


# --- manifests ------------------------------------------------------------------------------------


def _sums(root: Path) -> Iterator[Finding]:
    """Check the hash of each file of a bundle."""
    if not (root / SUMS).is_file():
        return
    lines = (root / SUMS).read_text(encoding="utf-8").splitlines()
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    present_names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - {SUMS}
    problems = _differences(root, expected, present_names, may_lack=False)
    yield Finding("bundle", SUMS, not problems, summary(problems, f"{len(expected)} files"))


def _sealed(root: Path) -> Iterator[Finding]:
    """Check each folder with a manifest: its files and its upstream folders."""
    bundled = (root / SUMS).is_file()
    for path in sorted(root.rglob(MANIFEST)):
        relative = path.relative_to(root)
        if relative.parts[0] == "checkpoints" or any(part.startswith(".") for part in relative.parts):
            continue
        folder, manifest = path.parent, read_json(path)
        expected = manifest["files"]
        present = [file for file in folder.rglob("*") if file.is_file() and file.name not in DESCRIBING]
        present_names = {str(file.relative_to(folder)) for file in present}
        problems = _differences(folder, expected, present_names, may_lack=bundled)
        found = len(present_names & expected.keys())
        left_out = f", {len(expected) - found} not in the bundle" if found < len(expected) else ""
        yield Finding(
            "files", str(relative.parent), not problems, summary(problems, f"{found} files{left_out}")
        )
        yield from _sources(root, folder, manifest)
        if manifest.get("upstream"):
            setting = root / relative.parts[0]
            yield _upstream(root, setting, folder, manifest["upstream"])


def _sources(root: Path, folder: Path, recorded: dict[str, Any]) -> Iterator[Finding]:
    """Compare the existing sources of a job with the digests that it recorded."""
    working_folder = root.resolve().parents[1]  # relative paths of sources start there
    sources = {name: working_folder / name for name in recorded.get("sources", {})}
    sources = {name: path for name, path in sources.items() if path.exists()}
    if sources:
        problems = [
            f"{name} has changed"
            for name, path in sources.items()
            if digest_of_source(path) != recorded["sources"][name]
        ]
        yield Finding("sources", _name(root, folder), not problems, summary(problems, ", ".join(sources)))


def _differences(
    folder: Path, expected: dict[str, str], present_names: set[str], *, may_lack: bool
) -> list[str]:
    """Return the names of files that changed, are missing or were added."""
    changed = [
        name for name in sorted(present_names & expected.keys()) if sha256_of(folder / name) != expected[name]
    ]
    absent = [] if may_lack else sorted(expected.keys() - present_names)
    extra = sorted(present_names - expected.keys())
    return [
        f"{name} {what}"
        for what, names in (("has changed", changed), ("is missing", absent), ("was added", extra))
        for name in names
    ]


def _upstream(root: Path, setting: Path, folder: Path, upstream: dict[str, str]) -> Finding:
    """Check that the folders from which a result was made are still the same."""
    problems = []
    for name, digest in upstream.items():
        source = _upstream_folder(setting, folder, name)
        if not (source / MANIFEST).is_file():
            problems.append(f"{name} is missing ({source.relative_to(root)})")
        elif manifest_digest(source) != digest:
            problems.append(f"{name} has changed ({source.relative_to(root)})")
    return Finding("made from", _name(root, folder), not problems, summary(problems, ", ".join(upstream)))


def _upstream_folder(setting: Path, folder: Path, name: str) -> Path:
    """Folder that a job in `folder` read under the upstream name `name`."""
    seed = next((part for part in folder.relative_to(setting).parts if part.startswith("seed")), "")
    if name.startswith("crossfit"):
        return folder / "crossfit" / f"half{name.removeprefix('crossfit')}" / "losses"
    if name == "trained":
        return folder.parent / "trained"
    if (own := setting / name / seed).is_dir() and seed and name in ("data", "tokens"):
        return own  # each seed has its own data
    paths = {
        "model": f"{BASE_METHOD}/{seed}/model",
        "reference": f"reference/{seed}",
        "scheduler": f"scheduler/{seed}/weights",
    }
    return setting / paths.get(name, name)


# --- recipes --------------------------------------------------------------------------------------


def _recipe(root: Path, run: Run, study: Study | None) -> Iterator[Finding]:
    """Check the recipe of a result: its method and seed, its settings, its upstream folders."""
    where = _name(root, run.folder)
    file = run.folder / "recipe.json"
    if not file.is_file():
        yield Finding("recipe", where, False, "recipe.json is missing")
        return
    record = read_json(file)
    recipe = record["recipe"]
    problems = []
    if recipe["seed"] != run.seed or recipe.get("method", run.method) != run.method:
        problems.append(f"belongs to {recipe.get('method', run.method)}, seed {recipe['seed']}")
    if study is not None and (differing := _other_settings(run, recipe, study)):
        problems.append(f"differs from the study in {', '.join(differing)}")
    yield Finding("recipe", where, not problems, summary(problems, "as in the study" if study else "present"))
    setting = root / run.folder.relative_to(root).parts[0]
    yield _upstream(root, setting, run.folder, record["upstream"])
    yield from _sources(root, run.folder, record)


def _other_settings(run: Run, recipe: dict[str, Any], study: Study) -> list[str]:
    """Return the dotted keys in which a recipe differs from the study's."""
    method = run.method if run.stage in ("train_preference", "train_crossfit") else ""
    try:
        expected = recipe_of(study, run.stage, method=method, seed=run.seed)
    except UserError as error:
        return [str(error)]
    recorded, required = flatten(recipe), flatten(expected.model_dump(mode="json"))
    return sorted(key for key in recorded.keys() | required.keys() if recorded.get(key) != required.get(key))


# --- consistency of runs --------------------------------------------------------------------------


def _same(root: Path, runs: list[Run]) -> Iterator[Finding]:
    """Check that runs share code by rule, environment and clean commit; and that recipes differ only in the seed."""
    for stage in sorted({run.stage for run in runs}):
        digests: dict[str, set[str]] = {}
        for run in runs:
            code = _record(run, "recipe.json").get("code", {}) if run.stage == stage else {}
            if not isinstance(code, dict):  # one digest of all modules, of results of 0.1
                code = {"all modules": code}
            for module, digest in code.items():
                digests.setdefault(module, set()).add(digest)
        problems = [f"{module} differs between runs" for module, values in digests.items() if len(values) > 1]
        yield Finding("code", stage, not problems, summary(problems, f"{len(digests)} modules"))
    for stage, method in sorted({(run.stage, run.method) for run in runs}):
        recipes = {
            run.folder: canonical_json({**_record(run, "recipe.json").get("recipe", {}), "seed": None})
            for run in runs
            if (run.stage, run.method) == (stage, method)
        }
        if len(set(recipes.values())) > 1:
            text = f"{len(set(recipes.values()))} different recipes over its seeds"
            yield Finding("recipe", method, False, text)
    environments = {run.folder: _record(run, "environment.json") for run in runs}
    libraries = {
        folder: canonical_json({key: value for key, value in environment.items() if key != "commit"})
        for folder, environment in environments.items()
    }
    yield _one(root, "environment", "all runs", libraries)
    commits = {folder: _code_of(record.get("commit", {})) for folder, record in environments.items()}
    yield _one(root, "commit", "all runs", commits)
    edited = [
        folder
        for folder, record in environments.items()
        if record.get("commit", {}).get("git_dirty") == "true"
    ]
    if edited:
        problems = [f"{_name(root, folder)} was made from a modified checkout" for folder in edited]
        yield Finding("commit", "all runs", False, summary(problems, ""))


def _code_of(commit: Mapping[str, str]) -> str | None:
    """Return the commit of a run's code, or version and digest of an installed package; None if not recorded."""
    if "code" in commit:
        return f"sams {commit['version']}, code {commit['code']}"
    return commit.get("git_commit")


def _record(run: Run, name: str) -> dict[str, Any]:
    """Content of a JSON file of a run; empty if the file is missing."""
    file = run.folder / name
    return dict(read_json(file)) if file.is_file() else {}


def _one(root: Path, check: str, where: str, values: Mapping[Path, str | None]) -> Finding:
    """Check that all folders have the same value."""
    counts = Counter(value for value in values.values() if value not in (None, "{}"))
    unknown = [folder for folder, value in values.items() if value in (None, "{}")]
    if unknown:
        names = ", ".join(_name(root, folder) for folder in unknown[:SHOWN])
        return Finding(check, where, False, f"not recorded by {len(unknown)} of {len(values)}: {names}")
    if len(counts) > 1:
        common = counts.most_common(1)[0][0]
        others = [_name(root, folder) for folder, value in values.items() if value != common]
        text = f"{len(counts)} different values: the exceptions are {', '.join(others[:SHOWN])}"
        return Finding(check, where, False, text)
    [value] = counts
    return Finding(check, where, True, _readable(value))


def _readable(value: str) -> str:
    """Return the versions of an environment; other values unchanged."""
    if not value.startswith("{"):
        return value
    environment = json.loads(value)
    libraries = ", ".join(f"{name} {number}" for name, number in environment["libraries"].items())
    return f"Python {environment['python']}, {libraries}"


def _name(root: Path, folder: Path) -> str:
    return str(folder.relative_to(root))
