"""Compare figures and tables of a study with the files that they were computed from."""

import math
from collections.abc import Iterator
from pathlib import Path

from sams.runtime.files import canonical_json, read_json, sha256_of
from sams.scoring.table import BENCHMARKS
from sams.study.study import Study
from sams.tables.agreement_note import DIGITS
from sams.tables.choose import chosen_of
from sams.tables.chosen_table import chosen_table, read_figures
from sams.tables.findings import Finding, summary
from sams.tables.main_table import main_table
from sams.tables.pairs import accuracies
from sams.tables.paper_table import paper_table
from sams.tables.results import read_cells, read_log
from sams.tables.scores import METRICS, score_named

# Figures of a training job: the metric on its last log line, and the factor between them.
LAST = {
    "test_accuracy": ("eval/rewards/accuracies", 100.0),
    "validation_accuracy": ("eval/rewards/accuracies", 100.0),
    "chosen_reward": ("eval/rewards/chosen", 1.0),
    "chosen_logp": ("eval/logps/chosen", 1.0),
}


def run_figures(root: Path, folder: Path, stage: str) -> Iterator[Finding]:
    """Compare the metrics of a training job and its scores with the metric log and the judgments."""
    for name, file in METRICS.items():
        if (folder / file).is_file() and stage in ("train_sft", "train_preference"):
            problems = _of_log(folder) if name == "train" else _of_items(folder, name)
            where = f"{folder.relative_to(root)}/{file}"
            yield Finding("figures", where, not problems, summary(problems, "match their files"))


def study_tables(root: Path, study: Study) -> Iterator[Finding]:
    """Compare the study's tables with tables made again from its figures."""
    setting = root / study.setting
    cells = read_cells(setting)
    tables = {"main.csv": main_table(cells, study.methods, study.seeds)}
    if study.paper is not None:
        tables["paper.csv"] = paper_table(study, setting, cells)
    if study.chosen is not None and (setting / "chosen" / "choice.json").is_file():
        choice = chosen_of(study, setting)
        same = canonical_json(choice) == canonical_json(read_json(setting / "chosen" / "choice.json"))
        text = "matches the metric logs" if same else "does not match the metric logs"
        yield Finding("choice", f"{study.setting}/chosen/choice.json", same, text)
        tables["chosen.csv"] = chosen_table(study, choice, read_figures(study, setting))
    for name, table in tables.items():
        if (file := root / "tables" / name).is_file():
            same = file.read_text(encoding="utf-8") == table.to_csv(index=False)
            text = "matches the figures" if same else "does not match the figures"
            yield Finding("tables", f"tables/{name}", same, text)


def agreement_file(root: Path) -> Iterator[Finding]:
    """Compare the file on the judge's agreement with the SHA-256 in the note of the main table."""
    file, table = root / "tables" / "agreement.json", root / "tables" / "main.md"
    if file.is_file() and table.is_file():
        same = sha256_of(file)[:DIGITS] in table.read_text(encoding="utf-8")
        text = f"{'has' if same else 'does not have'} the SHA-256 in tables/main.md"
        yield Finding("judge", "tables/agreement.json", same, text)


def _of_log(folder: Path) -> list[str]:
    """Return the differences between a training job's figures and the last line of its metric log."""
    figures = read_json(folder / METRICS["train"])
    if not (folder / "train.jsonl").is_file():
        return ["train.jsonl is missing"]
    last = read_log(folder / "train.jsonl").iloc[-1]
    problems = [] if last["step"] == figures["steps"] else [f"the log ends at step {last['step']:.0f}"]
    for key, (logged, scale) in LAST.items():
        logged_value = scale * last.get(logged, math.nan)
        if key in figures and not _close(figures[key], logged_value):
            problems.append(f"{key} is {figures[key]:.4f}, the log ends with {logged_value:.4f}")
    pairs = accuracies(folder)
    mean = sum(pairs.values()) / len(pairs) if pairs else math.nan
    if pairs and not _close(figures["test_accuracy"], mean):
        problems.append(f"test_accuracy is {figures['test_accuracy']:.4f}, of the recorded pairs {mean:.4f}")
    return problems


def _of_items(folder: Path, name: str) -> list[str]:
    """Return the differences between a benchmark's metrics and its judgments and answers."""
    benchmark, figures = BENCHMARKS[name], read_json(folder / METRICS[name])
    problems = []
    by_column = benchmark.items(folder / benchmark.judged)
    if figures.get("n_failed"):  # MT-Bench's average includes the other turn of a failed one
        by_column = {}
    for column, items in by_column.items():
        key = score_named(column).key
        mean = sum(items.values()) / len(items) if items else math.nan
        if not _close(figures[key], mean):
            problems.append(f"{key} is {figures[key]:.4f}, of the judgments {mean:.4f}")
    recorded = figures.get("inputs", {}).get(benchmark.answers_key)
    if recorded is None:
        return problems
    if not (folder / benchmark.answers).is_file():
        return [*problems, f"{benchmark.answers} is missing"]
    judged = sha256_of(folder / benchmark.answers) == recorded
    return problems if judged else [*problems, f"{benchmark.answers} differs from the judged answers"]


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)
