"""MT-Bench compared with published figures: judgments of three models, ratings of seventeen, a file with repeats."""

import csv
import gzip
import json
import os
import re
import signal
import statistics
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sams.runtime import stage
from sams.runtime.errors import UserError
from sams.runtime.processes import STOP_SIGNALS
from sams.scoring import fastchat_judge as fastchat
from sams.scoring import mt_bench
from sams.scoring.mt_bench import score_mt_bench
from sams.scoring.mt_bench_inputs import read_answers, read_prompts, read_questions, read_references

Rows = list[dict[str, Any]]

AVERAGES = {"mamba_0_5_dpo_ep1": 7.12, "mamba_0_75_dpo_ep3": 6.58, "mamba_0_875_dpo_ep1": 6.39}
CATEGORIES = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
REPEATED = "Meta-Llama-3-8B-Instruct-Normal"
CLEAN = "Meta-Llama-3-8B-Instruct-Griffin"


@dataclass(frozen=True)
class Published:
    """Files and figures as published."""

    folder: Path

    @property
    def inputs(self) -> dict[str, Path]:
        common = self.folder / "common"
        return {
            "questions": common / "question.jsonl",
            "references": common / "reference_answer" / "gpt-4.jsonl",
            "judge_prompts": common / "judge_prompts.jsonl",
        }

    @property
    def judgments(self) -> Path:
        return self.folder / "open" / "model_judgment" / "gpt-4_single.jsonl.gz"

    @property
    def edge(self) -> Path:
        """Two models; one has four failed ratings and ten turns with two ratings."""
        return self.folder / "open" / "edge" / "gpt-4_single_with_retries.jsonl.gz"

    def answers(self, model: str) -> Path:
        return self.folder / "open" / "model_answer" / f"{model}.jsonl.gz"

    def figures(self, name: str) -> dict[str, dict[str, str]]:
        with (self.folder / "open" / name).open() as stream:
            return {row["model"]: row for row in csv.DictReader(stream)}


@pytest.fixture(scope="session")
def published(shared_data: Path) -> Published:
    return Published(shared_data / "mt_bench")


def read(path: Path) -> Rows:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def written(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer_row(model: str, question: int, turns: list[str]) -> dict[str, Any]:
    return {"question_id": question, "model_id": model, "choices": [{"index": 0, "turns": turns}]}


# --- three models with answers and judgments -------------------------------------------------------


@pytest.mark.parametrize("model", AVERAGES)
def test_recorded_judgments_give_the_published_figures(
    published: Published, tmp_path: Path, model: str
) -> None:
    judgments = tmp_path / "judgments.jsonl"
    files = {"answers": published.answers(model), **published.inputs, "judgments": published.judgments}
    metrics = score_mt_bench(**files, judgments_out=judgments)
    assert round(metrics["average"] + 1e-9, 2) == AVERAGES[model]
    expected = published.figures("expected.csv")[model]
    for key, column in (("turn_1", "turn1"), ("turn_2", "turn2"), ("average", "average")):
        assert metrics[key] == pytest.approx(float(expected[column]), abs=1e-6), key
    assert metrics["categories"] == pytest.approx({key: float(expected[key]) for key in CATEGORIES})
    assert (metrics["n_judgments"], metrics["n_failed"], metrics["judge"]) == (160, 0, "gpt-4")
    assert (metrics["model_id"], metrics["references"]) == (model, ["gpt-4"])

    # FastChat's own summary of what was written says the same.
    from fastchat.llm_judge.show_result import display_result_single

    arguments = SimpleNamespace(
        input_file=str(judgments), model_list=None, bench_name="mt_bench", judge_model="gpt-4"
    )
    with redirect_stdout(StringIO()) as printed:
        display_result_single(arguments)
    found = float(re.findall(rf"{model} +([0-9.]+)$", printed.getvalue(), re.MULTILINE)[-1])
    assert found == pytest.approx(metrics["average"], abs=1e-6)


def test_the_command_line_says_the_same_as_the_function(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: FastChat takes ten seconds to import."""
    files = {"answers": published.answers("mamba_0_5_dpo_ep1"), **published.inputs}
    files["judgments"] = published.judgments
    options = [f"--{name.replace('_', '-')}={path}" for name, path in files.items()]
    monkeypatch.setattr(sys, "argv", ["mt_bench", *options, f"--out={tmp_path / 'metrics.json'}"])
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    mask = os.umask(0o022)
    try:
        with pytest.raises(SystemExit) as ended:
            stage.run(mt_bench.main)
    finally:
        os.umask(mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not ended.value.code
    assert json.loads((tmp_path / "metrics.json").read_text()) == score_mt_bench(**files)


def test_every_prompt_is_rebuilt_byte_by_byte_and_every_rating_parsed_again(published: Published) -> None:
    recorded = {
        (row["model"], row["question_id"], row["turn"]): (row["user_prompt"], row["judge"][1], row["score"])
        for row in read(published.judgments)
    }
    said = {
        (row["model"], row["question_id"], row["turn"]): row["judgment"] for row in read(published.judgments)
    }
    rebuilt = {}
    questions = read_questions(published.inputs["questions"])
    references = read_references(published.inputs["references"], questions)
    prompts = read_prompts(published.inputs["judge_prompts"])
    for model in AVERAGES:
        answers, name = read_answers(published.answers(model), questions)
        for match in fastchat.make_matches(questions, name, answers, references, prompts):
            key = (model, match.question["question_id"], fastchat.turn_of(match))
            prompt, _, _ = fastchat.prompt_of(match)
            rating = fastchat.rating_of(match, said[key])
            rebuilt[key] = (prompt, match.judge.prompt_template["name"], rating)
    assert len(rebuilt) == 480
    assert rebuilt == recorded


def test_judgments_of_other_answers_or_references_are_refused(published: Published, tmp_path: Path) -> None:
    first, second, _ = AVERAGES
    swapped = [{**row, "model_id": second} for row in read(published.answers(first))]
    with pytest.raises(UserError, match=r"row \d+, key 'user_prompt': of question \d+ turn \d is not what"):
        score_mt_bench(
            written(tmp_path / "answers.jsonl", swapped), **published.inputs, judgments=published.judgments
        )
    # GPT-4 Turbo's reference answers, as SimPO used them, give other prompts: scores do not compare.
    others = published.folder / "common" / "reference_answer" / "gpt-4-1106-preview.simpo.jsonl"
    with pytest.raises(UserError, match="give the files that the judgments were made from"):
        score_mt_bench(
            published.answers(first),
            **{**published.inputs, "references": others},
            judgments=published.judgments,
        )


# --- seventeen models with ratings only ------------------------------------------------------------


def test_ratings_of_seventeen_models_are_summarised_as_published(
    published: Published, tmp_path: Path
) -> None:
    """Answers and judgments are not published: the test writes some that end in the published rating."""
    ratings: dict[str, dict[tuple[int, int], float]] = {}
    with gzip.open(published.folder / "open" / "lmsys_ratings.csv.gz", "rt") as stream:
        for row in csv.DictReader(stream):
            place = int(row["question_id"]), int(row["turn"])
            ratings.setdefault(row["model"], {})[place] = float(row["score"])
    expected = published.figures("lmsys_expected.csv")
    assert len(expected) == 17 and ratings.keys() == expected.keys()
    questions = read_questions(published.inputs["questions"])
    everything = [
        judgment for model, rated in ratings.items() for judgment in made_judgments(published, model, rated)
    ]
    judgments = written(tmp_path / "judgments.jsonl", everything)

    incomplete = set()
    for model, row in expected.items():
        answers = written(
            tmp_path / "answers.jsonl",
            [answer_row(model, question["question_id"], ["one", "two"]) for question in questions],
        )
        files = {"answers": answers, **published.inputs, "judgments": judgments}
        if missing := int(row["n_missing"]):
            incomplete.add(model)
            with pytest.raises(UserError, match=f"{missing} of 160 judgments are missing"):
                score_mt_bench(**files)
        metrics = score_mt_bench(**files, accept_missing=missing)
        assert (metrics["n_judgments"], metrics["n_failed"]) == (int(row["n"]), missing)
        for key, column in (("turn_1", "turn1"), ("turn_2", "turn2"), ("average", "average")):
            assert metrics[key] == pytest.approx(float(row[column]), abs=1e-6), (model, key)
        if row["published_lmsys_2023_06_22"] and not missing:
            assert metrics["average"] == pytest.approx(float(row["published_lmsys_2023_06_22"]), abs=0.0051)
    # Their published figures count the missing judgment as -1; ours leave it out and say so.
    assert incomplete == {"claude-instant-v1", "nous-hermes-13b"}


def made_judgments(published: Published, model: str, rated: dict[tuple[int, int], float]) -> Rows:
    """Return judgments of a model that answers "one" and "two"."""
    questions = read_questions(published.inputs["questions"])
    answers = {
        question["question_id"]: answer_row(model, question["question_id"], ["one", "two"])
        for question in questions
    }
    references = read_references(published.inputs["references"], questions)
    prompts = read_prompts(published.inputs["judge_prompts"])
    rows = []
    for match in fastchat.make_matches(questions, model, answers, references, prompts):
        place = match.question["question_id"], fastchat.turn_of(match)
        if place in rated:
            said = f"Fair. Rating: [[{rated[place]:g}]]"
            rows.append(
                {
                    "question_id": place[0],
                    "turn": place[1],
                    "model": model,
                    "judge": ["gpt-4", match.judge.prompt_template["name"]],
                    "user_prompt": fastchat.prompt_of(match)[0],
                    "judgment": said,
                    "score": rated[place],
                }
            )
    return rows


# --- failed and repeated ratings -------------------------------------------------------------------


def answers_in_prompts(published: Published, model: str, rows: Rows) -> Rows:
    """Return a model's answers, parsed from the prompts of the second turn: no others are published."""
    asked = {row["question_id"]: row["turns"] for row in read_questions(published.inputs["questions"])}
    found = {}
    for row in rows:
        if row["model"] == model and row["turn"] == 2:
            one, two = asked[row["question_id"]]
            start = row["user_prompt"].index("<|The Start of Assistant A's Conversation with User|>")
            said = row["user_prompt"][start:].partition(f"### User:\n{one}\n\n### Assistant A:\n")[2]
            first, _, rest = said.partition(f"\n\n### User:\n{two}\n\n### Assistant A:\n")
            second = rest.removesuffix("\n\n<|The End of Assistant A's Conversation with User|>")
            found[row["question_id"]] = answer_row(model, row["question_id"], [first, second])
    return list(found.values())


def test_repeated_and_failed_ratings_are_refused_or_counted(published: Published, tmp_path: Path) -> None:
    edge = read(published.edge)
    answers = {
        model: written(tmp_path / f"{model}.jsonl", answers_in_prompts(published, model, edge))
        for model in (REPEATED, CLEAN)
    }

    # FastChat would average the 166 ratings of its 160 turns.
    with pytest.raises(UserError, match=rf"row 15: rates question 85 turn 1 of {REPEATED} again"):
        score_mt_bench(answers[REPEATED], **published.inputs, judgments=published.edge)
    with pytest.raises(UserError, match="row 15: rates"):
        score_mt_bench(answers[REPEATED], **published.inputs, judgments=published.edge, accept_missing=9)

    # Another model in the same file is not touched by that.
    clean = score_mt_bench(answers[CLEAN], **published.inputs, judgments=published.edge)
    assert clean["n_judgments"] == 160
    ratings = [row["score"] for row in edge if row["model"] == CLEAN]
    assert clean["average"] == pytest.approx(statistics.fmean(ratings))

    # One rating of each turn, the later one: the failed first ones count neither as -1 nor as missing.
    last = {(row["question_id"], row["turn"]): row for row in edge if row["model"] == REPEATED}
    failed = [row for row in edge if row["score"] == -1]
    kept = written(tmp_path / "kept.jsonl", [*failed, *last.values()])
    once = score_mt_bench(answers[REPEATED], **published.inputs, judgments=kept)
    assert (once["n_judgments"], once["n_failed"]) == (160, 0)
    assert once["average"] == pytest.approx(statistics.fmean(row["score"] for row in last.values()))

    # The failed ones without their retries: named, and counted if accepted.
    places = {(row["question_id"], row["turn"]) for row in failed}
    others = [row for place, row in last.items() if place not in places]
    gaps = written(tmp_path / "gaps.jsonl", [*failed, *others])
    with pytest.raises(UserError, match=r"4 of 160 .* missing \(question 81 turn 1: .* 1 more"):
        score_mt_bench(answers[REPEATED], **published.inputs, judgments=gaps)
    partial = score_mt_bench(answers[REPEATED], **published.inputs, judgments=gaps, accept_missing=9)
    assert (partial["n_judgments"], partial["n_failed"]) == (156, 4)
    assert partial["average"] == pytest.approx(statistics.fmean(row["score"] for row in others))
