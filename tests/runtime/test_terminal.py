"""Tables in terminals of any width: lines that fit, numbers and intervals complete."""

import re

import pytest

from sams.runtime.terminal import LONG, Readable, print_table

COLUMNS = ["methods", "score", "difference", "95 % interval", "", "over", "what the job chose"]
ROWS = [
    (f"dpo-of-a-very-long-name-{index} − dpo-random50", "chosen log-prob", f"−{12345 + index}.67",
     f"−{23456 + index}.78 to −{1234 + index}.56", "*", f"{index} seeds, p 0.0{index}1 (t), 0.0{index}2 (flips)",
     f"results/study/setting/method/{'0123456789abcdef' * 3}/{index}")
    for index in range(1, 4)
]  # fmt: skip


@pytest.mark.parametrize("width", [None, 50, 60, 80, 120, 200, 400])
def test_numbers_are_complete_at_any_width(
    width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    table = Readable(COLUMNS, [[(cell,) for cell in row] for row in ROWS], names=2)
    print_table("Differences", table, ["a note " * 40])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= (width or 80) and "…" not in printed
    for row in ROWS:
        for number in (cell for cell in row[2:5] if len(cell) <= LONG):
            assert re.search(rf"(?<!\S){re.escape(number)}(?!\S)", printed), number
        for word in row[5].split():
            assert re.search(rf"(?<!\S){re.escape(word)}(?!\S)", printed), word
    headings = len(re.findall("methods", printed))
    assert headings == (1 if width in (200, 400) else headings) and headings < 4


def test_errors_stand_beside_or_below_their_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Readable(["method", "win rate (%)"], [[("dpo",), ("54.0", "±1.5", "(0.7)")]])
    for width, words in ((80, ["dpo 54.0 ±1.5 (0.7)"]), (20, ["dpo 54.0", "±1.5", "(0.7)"])):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table("", table)
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert lines[-len(words) :] == words
