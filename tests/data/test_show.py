"""`sams data`: the rows of a study as they will be trained on, readable in a narrow terminal and in a pipe."""

import json
from pathlib import Path

import pytest

from sams.data.show import show
from tests.study.test_config import tiny_study

ROWS = [
    {"system": "Be [b]brief[/b].", "prompt": "Why so?", "chosen": "Because of that.", "rejected": "No idea."},
    {"system": "", "prompt": "Who?", "chosen": "word " * 60, "rejected": "other \x1b[31m" * 60},
    {"system": "", "prompt": "Who?", "chosen": "other \x1b[31m" * 60, "rejected": "word " * 60},
    {"system": "", "prompt": "Who?", "chosen": "other \x1b[31m" * 60, "rejected": "word " * 60},
]


def printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = str(file)
    data = {"world": None, "train": source, "test": source, "max_length": 48, "max_prompt_length": 24}
    benchmarks = {"alpaca_eval": None, "mt_bench": None}
    show(tiny_study(data=data, benchmarks=benchmarks), 3)
    return capsys.readouterr().out


def test_rows_with_their_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(tmp_path, capsys)
    assert "\x1b" not in text, "no colours in a pipe, and no control characters of the data"
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    [counts] = (line.split() for line in lines if line.split()[:2] == ["train", "4"])
    assert counts == ["train", "4", "1", "1", "–", "4", "3"], "read, repeats, contradictions, cut, kept"
    assert "- Contradictions: 1 of 3 pairs of train" in text and "- Cut responses: 67% of 6 responses" in text
    assert "- Leaks: 2 prompts of the training pairs" in text
    first = text[text.index("train, row 1") : text.index("train, row 2")].splitlines()
    assert first[0].endswith(": system, user -> assistant")
    assert first[1:] == [
        "prompt, 7 tokens, not learned",
        "  <bos> Be [b]brief[/b]. Human: Why so? Assistant:",
        "chosen, 4 tokens, learned",
        "> Because of that. <eos>",
        "rejected, 3 tokens, learned",
        "> No idea. <eos>",
        "",
    ]
    second = text[text.index("train, row 2") :]
    assert "learned, its end is cut" in second and "> other \ufffd[31mother" in second


def test_the_mask_is_in_colour_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    text = printed(tmp_path, capsys)
    assert "\x1b[2m  <bos> Be [b]brief[/b]. Human: Why so? Assistant:\x1b[0m" in text
    assert "\x1b[32m> Because of that. <eos>\x1b[0m" in text and "\x1b[31m> No idea. <eos>\x1b[0m" in text
