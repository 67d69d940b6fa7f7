"""`sams sample` and `sams chat`: answers of start and trained model, as transformers' own `generate` gives them."""

import io
import json
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console

from sams.generation.talk import chat, prompts_of, prompts_of_study, sample, start_of
from sams.policy.model import build_model
from sams.runtime.errors import UserError
from sams.study.settings import Decoding
from tests import tiny

GREEDY = Decoding(temperature=0.0, max_new_tokens=6, batch_size=2)
TEMPLATE = (
    "<bos> {% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}<eos> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}w0 {% endif %}"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose start model and trained model differ, with the data of its study."""
    import pyarrow as pa
    from pyarrow import parquet

    setting = tmp_path_factory.mktemp("results") / "mine" / "words"
    for method, seed in (("sft", 0), ("dpo", 1)):
        folder = setting / method / "seed0" / "model"
        model = build_model(tiny.settings(), tiny.tokenizer(), seed=seed)
        for weight in model.parameters():
            weight.data *= 8  # decided models: greedy answers do not depend on rounding
        model.save_pretrained(folder)
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
    prompts = [[{"role": "user", "content": f"w1 w{number}"}] for number in range(4)]
    (setting / "data").mkdir()
    parquet.write_table(pa.table({"prompt": prompts}), setting / "data" / "test.parquet")
    return setting / "dpo" / "seed0"


def answer_of(folder: Path, text: str) -> str:
    """transformers' own greedy answer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(f"<bos> {text} w0", return_tensors="pt").input_ids
    with torch.no_grad():
        found = model.generate(ids, do_sample=False, max_new_tokens=GREEDY.max_new_tokens, eos_token_id=2)
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_both_models_answer_the_test_prompts(run: Path, tmp_path: Path) -> None:
    shown, out = io.StringIO(), tmp_path / "answers.jsonl"
    console = Console(file=shown, width=80)
    sample(run, prompts_of_study(run), count=3, decoding=GREEDY, seed=0, console=console, out=out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"][0]["content"] for row in rows] == ["w1 w0", "w1 w1", "w1 w2"]
    start = start_of(run)
    assert start is not None
    for row in rows:
        text = row["prompt"][0]["content"]
        assert row["start"] == answer_of(start, text)
        assert row["trained"] == answer_of(run / "model", text)
        assert row["trained"] in shown.getvalue()
    assert any(row["start"] != row["trained"] for row in rows)


def test_the_start_model_stands_alone(run: Path) -> None:
    shown = io.StringIO()
    sft = run.parent.parent / "sft" / "seed0"
    sample(
        sft, prompts_of_study(sft), count=1, decoding=GREEDY, seed=0, console=Console(file=shown, width=80)
    )
    assert "trained, " in shown.getvalue() and "start, " not in shown.getvalue()


def test_control_characters_do_not_reach_the_terminal(run: Path, tmp_path: Path) -> None:
    shown, prompts = io.StringIO(), tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "w1 \x1b]0;title\x07 w0"}) + "\n")
    console = Console(file=shown, width=80)
    sample(run, prompts_of(prompts), count=1, decoding=GREEDY, seed=0, console=console)
    assert "w1 \ufffd]0;title\ufffd w0" in shown.getvalue()
    assert "\x1b" not in shown.getvalue() and "\x07" not in shown.getvalue()


def test_prompts_come_from_lines_or_rows(tmp_path: Path) -> None:
    lines, rows = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_text("w1 w2\n\n  w3\n", encoding="utf-8")
    rows.write_text('{"prompt": "w1 w2"}\n{"prompt": "w3"}\n', encoding="utf-8")
    expected = [[{"role": "user", "content": text}] for text in ("w1 w2", "w3")]
    assert list(prompts_of(lines)) == list(prompts_of(rows)) == expected
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    for missing in ("empty.txt", "nowhere.txt", "nowhere.jsonl"):
        with pytest.raises(UserError, match=missing):
            list(prompts_of(tmp_path / missing))


def test_a_chat_remembers_its_turns_until_new(run: Path) -> None:
    typed = iter(["w1 w2", "w3", "/new", "w3", ""])
    shown = io.StringIO()
    console = Console(file=shown, width=80, highlight=False)
    chat(run, decoding=GREEDY, seed=0, console=console, ask=lambda _: next(typed))
    said = shown.getvalue().split("model:\n")[1:]
    first, second, third = (" ".join(text.split()) for text in said)
    assert first == answer_of(run / "model", "w1 w2")
    assert second == answer_of(run / "model", f"w1 w2 {first} <eos> w3")
    assert third == answer_of(run / "model", "w3")
    assert second != third


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no exported model; give a finished run"):
        sample(tmp_path, [], count=1, decoding=GREEDY, seed=0, console=Console())
