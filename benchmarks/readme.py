"""The demo's figures in README.md: measured with three seeds, recorded in docs/demo.json, and written as a table.

    python -m benchmarks.readme --measure    # run the default study here, and record this machine's figures
    python -m benchmarks.readme              # write README's table from docs/demo.json

A test compares README with docs/demo.json, and the recorded settings with those of the default study.
"""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from sams.runtime.files import canonical_json
from sams.runtime.provenance import made_on
from sams.study.files import DEFAULT, load_study, read_settings
from sams.tables.results import load

ROOT = Path(__file__).resolve().parent.parent
README, RECORD = ROOT / "README.md", ROOT / "docs" / "demo.json"
BEGIN, END = "<!-- demo: written by `make readme` -->\n", "<!-- end of demo -->\n"
SEEDS = [0, 1, 2]
FIGURES = {
    "alpaca_eval/length_controlled_winrate": ("LC win rate", 1),
    "alpaca_eval/win_rate": ("win rate", 1),
    "mt_bench/average": ("MT-Bench", 2),
    "train/test_accuracy": ("test accuracy", 1),
    "train/chosen_logp": ("chosen log-prob", 1),
}
COMPARED = {"test_accuracy": "test accuracy", "win_rate": "win rate"}


def settings_digest() -> str:
    """Return a digest of the default study's settings, without seeds and launch, which change no figure."""
    settings = load_study(read_settings([DEFAULT], {}), where=str(DEFAULT)).model_dump(mode="json")
    kept = {key: value for key, value in settings.items() if key not in ("seeds", "launch", "tracking")}
    return hashlib.sha256(canonical_json(kept).encode()).hexdigest()[:16]


def measure() -> dict[str, Any]:
    """Run the default study with three seeds; return figures by method and seed, differences, and the machine."""
    command = [Path(sys.executable).parent / "snakemake", "--cores", "all", "--config", f"seeds={SEEDS}"]
    subprocess.run([*map(str, command), "--quiet"], cwd=ROOT, check=True)
    frame = load(ROOT / "results")
    frame = frame[(frame["study"] == "tiny") & frame["seed"].isin(SEEDS)]
    study = load_study(read_settings([DEFAULT], {}), where=str(DEFAULT))
    figures = {
        method: {
            key: [None if value != value else round(value, 4) for value in rows.sort_values("seed")[key]]
            for key in FIGURES
        }
        for method in study.methods
        if len(rows := frame[frame["method"] == method])
    }
    with (ROOT / "results/tiny/tables/comparisons.csv").open(encoding="utf-8") as stream:
        differences = [
            row for row in csv.DictReader(stream) if row["benchmark"] in COMPARED and row["base"] == "dpo"
        ]
    made = made_on()
    return {
        "machine": f"{made['cpu']}, {made['cores']} cores",
        "date": date.today().isoformat(),
        "torch": made["libraries"]["torch"],
        "commit": made["commit"].get("git_commit", ""),
        "settings": settings_digest(),
        "figures": figures,
        "differences": differences,
    }


def block(records: list[dict[str, Any]]) -> str:
    """Return README's lines: mean and range of each figure over the seeds of all machines."""
    newest = records[-1]
    lines = ["| method | " + " | ".join(name for name, _ in FIGURES.values()) + " |"]
    lines.append("|---|" + "---:|" * len(FIGURES))
    for method in newest["figures"]:
        cells = []
        for key, (_, digits) in FIGURES.items():
            values = [v for record in records for v in record["figures"][method][key] if v is not None]
            if values:
                mean, low, high = sum(values) / len(values), min(values), max(values)
                cells.append(f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
            else:
                cells.append("–")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    machines = "; ".join(
        f"{record['machine']}, {record['date']}, torch {record['torch']}" for record in records
    )
    seeds = len(SEEDS)
    lines += [
        "",
        f"Mean (lowest to highest) over {seeds} seeds on {len(records)} machine(s): {machines}.",
        "",
    ]
    for row in newest["differences"]:
        low, high = float(row["ci_low"]), float(row["ci_high"])
        if row["interval"] == "over seeds":
            lines.append(
                f"- {row['method']} minus {row['base']}, {COMPARED[row['benchmark']]}: "
                f"{float(row['difference']):+.1f} (95 % interval over seeds {low:+.1f} to {high:+.1f})"
            )
    return "\n".join(lines) + "\n"


def rendered(text: str, records: list[dict[str, Any]]) -> str:
    """Return README's text with the block of these records."""
    head, rest = text.split(BEGIN)
    return head + BEGIN + "\n" + block(records) + "\n" + END + rest.split(END)[1]


def main(arguments: list[str]) -> None:
    """Measure if asked, and write README."""
    records = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else []
    if "--measure" in arguments:
        new = measure()
        records = [
            record
            for record in records
            if record["machine"] != new["machine"] and record["settings"] == new["settings"]
        ]
        records.append(new)
        RECORD.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    README.write_text(rendered(README.read_text(encoding="utf-8"), records), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
