"""Commands that print tables, with long names, three seeds and large numbers: every number is complete."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sams.judge.store import Tokens
from sams.planning.parts import Disk, Judged, Plan, Stage
from sams.planning.peaks import Memory
from sams.planning.show import print_plan
from sams.runtime.files import write_json
from sams.tables import compare
from sams.tables.findings import Finding, print_findings
from sams.tables.show import show
from tests.tables.made import alpaca_eval, mt_bench, study, train, write

METHODS = ["dpo", "dpo-with-a-selector-of-a-long-name-and-ratio-0.5", "robust-dpo-label-smoothing-0.4-lr1e-4"]


def results(root: Path) -> None:
    for number, method in enumerate(METHODS):
        for seed in range(3):
            figures = train(41.25 + 10 * number + seed, 1.5, 12345.0 + number) | {
                "chosen_reward": -123.4565 - number,
                "chosen_logp": -12345.6 - number,
                "peak_memory_mb": 67890.0 + number,
            }
            files = {
                "train_metrics.json": figures,
                "alpaca_eval/metrics.json": alpaca_eval(51.5 + 4 * number + seed, 1.2),
                "mt_bench/metrics.json": mt_bench(5.25 + number, 0.33),
            }
            folder = write(root / "tiny/world" / method / f"seed{seed}", files)
            upstream = {"tokens": "t" * 40, "model": "m"}
            recipe = {"seed": seed, "training": {"beta": 0.1 + number}}
            write_json(folder / "recipe.json", {"recipe": recipe, "code": {"a": "c"}, "upstream": upstream})


def printed_by_show(root: Path) -> list[str]:
    """Means over the seeds, as decimals of the table; the errors over items are the same for each seed."""
    show(root, study(["sft", *METHODS], [0, 1, 2]), notes=True)
    found = ["±1.5", "±1.2", "±0.33", "20.00", "10.00", "8.00", "4.00"]
    for number in range(3):
        found += [f"{51.5 + 4 * number:.1f}", f"{52.5 + 4 * number:.1f}", f"{6.25 + number - 1:.2f}"]
        found += [f"{42.2 + 10 * number:.1f}", f"−{123 + number}.457"]
        found += [f"−12 {345 + number}.6", f"12 {345 + number}", f"67 {890 + number}"]
    return found


def printed_by_compare(root: Path) -> list[str]:
    compare.show(compare.compare(compare.sides([str(root / "tiny/world" / name) for name in METHODS], root)))
    return [
        "10.00",
        "20.00",
        "4.00",
        "8.00",
        "−12 347",
        "12 345",
        "67 890",
        "67 892",
        "1.1",
        "2.1",
        "42.25",
        "62.25",
    ]


def printed_by_plan(root: Path) -> list[str]:
    stages = [
        Stage(f"train_preference {name}", 3, 12_345, 98_765e6, 43_210.9 + index)
        for index, name in enumerate(METHODS)
    ]
    memory = [
        Memory(", ".join(METHODS), "16 x 1", "selective", True, 57.1 * 2**30, 6.6 * 2**30, 72 * 2**30, False)
    ]
    judged = [Judged("alpaca_eval", 96_600, Tokens(136_200_000, 96_600), 12_345.67)]
    print_plan(Plan(stages, memory, [Disk("weights", 11, 37_123.4e9)], judged, ["a note"]), "a title")
    found = ["12 345", "98 765.0", "43 210.9", "43 212.9", "129 635.7", "57.1", "6.6", "72.0", "NO"]
    return [*found, "16 x 1 each", "37 123.4", "408 357.4", "96 600", "136.20", "0.10", "12 345.67"]


def printed_by_verify(root: Path) -> list[str]:
    print_findings(
        [Finding("figures", f"world/{name}/seed0/alpaca_eval", False, "12345 of 67890") for name in METHODS]
    )
    return ["12345", "67890"]


@pytest.mark.parametrize("width", [None, 60, 80, 200])
@pytest.mark.parametrize("command", [printed_by_show, printed_by_compare, printed_by_plan, printed_by_verify])
def test_every_number_is_complete(
    command: Callable[[Path], list[str]],
    width: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    results(tmp_path)
    numbers = command(tmp_path)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= (width or 80) and "…" not in printed
    for number in numbers:
        assert re.search(rf"(?<![\d.−]){re.escape(number)}(?![\d.])", printed), f"{number} in\n{printed}"
