"""Stage `prepare_data`: atomic output, counts, dropped repeats, and prompts that are in both splits."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from sams.data import prepare
from sams.runtime.errors import UserError
from sams.runtime.files import read_json

ROOT = Path(__file__).resolve().parents[2]


def lines(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pairs(*numbers: int) -> list[dict[str, str]]:
    return [{"prompt": f"Question {n}?", "chosen": f"Yes {n}.", "rejected": "No."} for n in numbers]


def prepared(out: Path, **data: Any) -> dict[str, Any]:
    prepare.main(json.dumps({"data": data}), out)
    return read_json(out / "report.json")


def rows(out: Path, split: str) -> list[dict[str, Any]]:
    return parquet.read_table(out / f"{split}.parquet").to_pylist()


def test_the_world(tmp_path: Path) -> None:
    world = {"sft_examples": 50, "train_pairs": 40, "test_pairs": 30}
    report = prepared(tmp_path / "data", world=world)
    assert [report[split]["written"] for split in ("sft", "train", "test")] == [50, 40, 30]
    assert report["leak"] == {"prompts": 0, "test_pairs": 0}
    train = rows(tmp_path / "data", "train")
    assert list(train[0]) == ["id", "prompt", "chosen", "rejected", "flipped"]
    assert report["train"]["flipped"] == sum(row["flipped"] for row in train) > 0
    sft = rows(tmp_path / "data", "sft")
    assert list(sft[0]) == ["id", "prompt", "response", "imperfect"]
    assert report["sft"]["imperfect"] == sum(row["imperfect"] for row in sft) > 0
    assert (tmp_path / "data" / "manifest.json").is_file()

    prepared(tmp_path / "again", world=world)
    for split in ("sft", "train", "test"):
        assert (tmp_path / "again" / f"{split}.parquet").read_bytes() == (
            tmp_path / "data" / f"{split}.parquet"
        ).read_bytes()


def test_files(tmp_path: Path) -> None:
    train = lines(tmp_path / "train.jsonl", pairs(1, 2, 2, 3))
    test = lines(tmp_path / "test.jsonl", pairs(4, 5))
    sft = lines(tmp_path / "sft.jsonl", [{"prompt": "Why?", "response": "So."}])
    report = prepared(tmp_path / "data", train=train, test=test, sft=sft)
    assert report["train"] | {"sha256": ""} == {
        "source": train,
        "sha256": "",
        "read": 4,
        "dropped_repeats": 1,
        "written": 3,
        "contradictions": 0,
    }
    assert len(report["train"]["sha256"]) == 64
    [example] = rows(tmp_path / "data", "sft")
    assert example["prompt"] == [{"role": "user", "content": "Why?"}] and example["response"] == "So."
    assert example["imperfect"] is None
    written = rows(tmp_path / "data", "train")
    assert [row["chosen"] for row in written] == ["Yes 1.", "Yes 2.", "Yes 3."], "in the order of the file"
    assert {row["flipped"] for row in written} == {None}


def test_without_supervised_examples_the_chosen_responses_serve(tmp_path: Path) -> None:
    train = lines(tmp_path / "train.jsonl", [*pairs(1, 2), pairs(1)[0] | {"rejected": "Never."}])
    report = prepared(tmp_path / "data", train=train, test=lines(tmp_path / "test.jsonl", pairs(4)))
    assert report["sft"]["source"] == f"chosen responses of {train}"
    assert (report["sft"]["read"], report["sft"]["dropped_repeats"]) == (3, 1)
    assert [row["response"] for row in rows(tmp_path / "data", "sft")] == ["Yes 1.", "Yes 2."]


def test_a_leak_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = lines(tmp_path / "train.jsonl", pairs(1, 2, 3))
    test = lines(tmp_path / "test.jsonl", [*pairs(3, 4), pairs(3)[0] | {"chosen": "Surely."}])
    with caplog.at_level(logging.WARNING):
        report = prepared(tmp_path / "data", train=train, test=test)
    assert report["leak"] == {"prompts": 1, "test_pairs": 2}
    assert "warning: Leaks: 1 prompts of the training pairs are also in 2 test pairs" in caplog.text


def test_pairs_with_a_test_prompt_can_be_left_out(tmp_path: Path) -> None:
    train = lines(tmp_path / "train.jsonl", pairs(1, 2, 3))
    test = lines(tmp_path / "test.jsonl", pairs(3, 4))
    report = prepared(tmp_path / "data", train=train, test=test, shared_prompts="drop")
    assert report["leak"] == {"prompts": 0, "test_pairs": 0}
    for split in ("train", "sft"):
        assert (report[split]["written"], report[split]["dropped_shared_prompts"]) == (2, 1)
    assert [row["chosen"] for row in rows(tmp_path / "data", "test")] == ["Yes 3.", "Yes 4."]


def test_contradictions_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = pairs(1, 2, 3)
    turned = {"prompt": "Question 1?", "chosen": "No.", "rejected": "Yes 1."}
    other = {**turned, "rejected": "Never."}  # other answers to the same prompt
    train = lines(tmp_path / "train.jsonl", [first, second, turned, other, third, first])
    with caplog.at_level(logging.WARNING):
        report = prepared(tmp_path / "data", train=train, test=lines(tmp_path / "test.jsonl", pairs(4)))
    assert (report["train"]["contradictions"], report["test"]["contradictions"]) == (1, 0)
    assert "warning: Contradictions: 1 of 5 pairs of train have" in caplog.text


def test_a_share_of_the_prompts_is_held_out(tmp_path: Path) -> None:
    made = pairs(*range(200)) + [{**pair, "chosen": "Perhaps."} for pair in pairs(*range(200))]
    train = lines(tmp_path / "train.jsonl", made)
    report = prepared(tmp_path / "data", train=train, test=0.1)
    assert report["test"]["source"] == f"0.1 of the prompts of {train}"
    assert report["leak"] == {"prompts": 0, "test_pairs": 0}
    parts = {split: rows(tmp_path / "data", split) for split in ("train", "test", "sft")}
    assert len(parts["train"]) + len(parts["test"]) == len(parts["sft"]) + len(parts["test"]) == 400
    held_out = {row["prompt"][0]["content"] for row in parts["test"]}
    assert len(parts["test"]) == 2 * len(held_out) and 10 <= len(held_out) <= 30
    assert not held_out & {row["prompt"][0]["content"] for row in parts["sft"]}
    # A row more, in another order, moves no other row; another seed draws others.
    lines(tmp_path / "train.jsonl", [*pairs(1000), *made[::-1]])
    prepared(tmp_path / "more", train=train, test=0.1)
    again = {row["prompt"][0]["content"] for row in rows(tmp_path / "more", "test")}
    assert again - {"Question 1000?"} == held_out
    prepared(tmp_path / "seed", train=train, test=0.1, split_seed=1)
    assert {row["prompt"][0]["content"] for row in rows(tmp_path / "seed", "test")} != held_out


def test_own_names_and_turns_by_the_settings(tmp_path: Path) -> None:
    own = [{"q": f"Question {n}?", "good": "Yes.", "bad": "No.", "note": "x"} for n in range(3)]
    file = lines(tmp_path / "own.jsonl", own)
    turns = [{"role": role, "content": text} for text in ("a", "b") for role in ("user", "assistant")]
    sft = lines(tmp_path / "sft.jsonl", [{"messages": turns}])
    settings = {
        "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"},
        "ignored_columns": ["note"],
        "train": file,
        "test": file,
        "sft": sft,
    }
    assert prepared(tmp_path / "all", **settings)["sft"]["written"] == 2
    assert [row["chosen"] for row in rows(tmp_path / "all", "train")] == ["Yes."] * 3
    assert prepared(tmp_path / "last", **settings, sft_turns="last")["sft"]["written"] == 1


def test_other_numbers_of_rows_than_published_are_said_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        "train": lines(tmp_path / "train.jsonl", pairs(1, 2, 2)),
        "test": lines(tmp_path / "test.jsonl", pairs(4)),
        "published_rows": {"train": 3, "test": 2},
    }
    with caplog.at_level(logging.WARNING):
        report = prepared(tmp_path / "data", **files)
    assert caplog.messages == ["test: 1 rows, but 2 are published"]
    assert [report[split]["published_rows"] for split in ("train", "test")] == [3, 2]
    with pytest.raises(UserError, match=r"data\.test: 1 rows, but 2 are published"):
        prepared(tmp_path / "again", **files, other_row_counts="refuse")


@pytest.mark.parametrize("form", ["hh", "messages", "shp", "stack_exchange"])
def test_the_world_in_the_form_of_a_data_set(form: str, tmp_path: Path) -> None:
    world = {"sft_examples": 50, "train_pairs": 40, "test_pairs": 30, "flipped_share": 0.0}
    report = prepared(tmp_path / "data", world=world, form=form)
    prepared(tmp_path / "plain", world=world)
    assert report["train"]["source"] == f"the synthetic world, in the form {form}"
    assert [report[split]["rows"] for split in ("train", "test")] == [40, 30]
    ours, plain = (rows(tmp_path / name, "train") for name in ("data", "plain"))
    assert [row["chosen"] for row in ours] == [row["chosen"] for row in plain]


@pytest.mark.parametrize("split", ["train", "test", "sft"])
def test_nothing_is_published_when_a_late_row_is_bad(tmp_path: Path, split: str) -> None:
    bad: dict[str, Any] = {"response": ""} if split == "sft" else {"chosen": "", "rejected": ""}
    good = {"prompt": "Why?", "response": "So."} if split == "sft" else pairs(1)[0]
    files = {
        "train": lines(tmp_path / "train.jsonl", pairs(1)),
        "test": lines(tmp_path / "test.jsonl", pairs(2)),
        "sft": lines(tmp_path / "sft.jsonl", [{"prompt": "Why?", "response": "So."}]),
    }
    files[split] = lines(tmp_path / f"{split}.jsonl", [good, good | bad])
    with pytest.raises(UserError, match=rf"{split}.jsonl, row 2, key '\w+': empty"):
        prepared(tmp_path / "out" / "data", **files)
    assert not list((tmp_path / "out").iterdir()), "nothing half-written is left"


def test_many_rows_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "PART_ROWS", 7)
    train = lines(tmp_path / "train.jsonl", pairs(*range(100)))
    prepared(tmp_path / "data", train=train, test=lines(tmp_path / "test.jsonl", pairs(200)))
    assert [row["chosen"] for row in rows(tmp_path / "data", "train")] == [f"Yes {n}." for n in range(100)]


def test_the_hh_sample(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "preferences"
    report = prepared(
        tmp_path / "data",
        train=str(folder / "hh_train_3000.jsonl.gz"),
        test=str(folder / "hh_test_500.jsonl.gz"),
        sft=str(folder / "sft_hh_chosen_2000.jsonl.gz"),
    )
    assert [report[split]["read"] for split in ("train", "test", "sft")] == [3000, 500, 2000]
    assert [report[split]["written"] for split in ("train", "test", "sft")] == [3000, 500, 2000]
    first = rows(tmp_path / "data", "train")[0]
    assert [message["role"] for message in first["prompt"]] == ["user", "assistant", "user"]
    assert first["prompt"][2]["content"] == "can this be made a vegetarian way?"
    assert first["chosen"].startswith("While the soup itself") and first["rejected"].startswith(
        "It’s possible"
    )


def test_the_instruction_sample(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "preferences"
    pairs_file = str(folder / "pref_instruct_1100.jsonl.gz")
    sft = str(folder / "sft_instruct_1100.jsonl.gz")
    with pytest.raises(
        UserError, match=r"pref_instruct_1100.jsonl.gz, row \d+: chosen and rejected are equal"
    ):
        prepared(tmp_path / "data", train=pairs_file, test=pairs_file, sft=sft)


def test_the_example_of_own_data_is_what_its_script_makes(tmp_path: Path) -> None:
    import runpy
    import shutil

    folder = ROOT / "config" / "studies" / "own_data"
    script = shutil.copy(folder / "make_example.py", tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test", "sft")}
    for file in files.values():
        assert Path(file).read_bytes() == (tmp_path / Path(file).name).read_bytes()
    report = prepared(tmp_path / "data", **files)
    assert [report[split]["written"] for split in ("train", "test", "sft")] == [256, 64, 336]
    assert report["leak"] == {"prompts": 0, "test_pairs": 0}
    assert sum(Path(file).stat().st_size for file in files.values()) < 200_000
