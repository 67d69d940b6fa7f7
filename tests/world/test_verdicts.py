import math
from collections.abc import Callable

import pytest

from sams.world.verdicts import LOGITS_PER_GRADE, UnknownPrompt, judge_prompt
from tests.judge.prompts import FASTCHAT_PROMPTS

Pair = Callable[[str, str, str], str]
WRONG = "no idea"


def log_odds(prompt: str, length_lean: float = 0.0) -> float:
    log_probs = judge_prompt(prompt, length_lean).log_probs
    assert log_probs is not None
    assert math.exp(log_probs["m"]) + math.exp(log_probs["M"]) == pytest.approx(1.0)
    return log_probs["m"] - log_probs["M"]


def test_the_right_answer_wins_in_either_place(pair_prompt: Pair, question: tuple[str, str]) -> None:
    asked, right = question
    assert judge_prompt(pair_prompt(asked, right, WRONG), 0.0).text == "m"
    assert judge_prompt(pair_prompt(asked, WRONG, right), 0.0).text == "M"
    assert log_odds(pair_prompt(asked, right, WRONG)) == pytest.approx(LOGITS_PER_GRADE)
    assert log_odds(pair_prompt(asked, WRONG, right)) == pytest.approx(-LOGITS_PER_GRADE)


def test_equal_answers_leave_only_the_lean_to_the_longer(
    pair_prompt: Pair, question: tuple[str, str]
) -> None:
    asked, short = question
    long = f"the answer is {short} ."
    assert log_odds(pair_prompt(asked, short, long)) == 0.0
    lean = log_odds(pair_prompt(asked, long, short), length_lean=0.5)
    assert lean == pytest.approx(0.5 * math.log((len(long) + 1) / (len(short) + 1)))
    assert log_odds(pair_prompt(asked, short, long), length_lean=0.5) == pytest.approx(-lean)


def test_empty_outputs_and_line_breaks_are_read(pair_prompt: Pair, question: tuple[str, str]) -> None:
    asked, right = question
    assert log_odds(pair_prompt(asked, right, "")) == pytest.approx(LOGITS_PER_GRADE)
    assert log_odds(pair_prompt(asked, f"\n{right}\n", '"x"\n},')) == pytest.approx(LOGITS_PER_GRADE)


@pytest.mark.parametrize("name", ["single-v1", "single-math-v1"])
def test_first_turns_are_rated_by_the_grade(name: str, question: tuple[str, str]) -> None:
    asked, right = question
    nearly = [*right.split()[:-1], "x"]
    near_miss = 1 + 9 * 0.5 * (len(nearly) - 1) / len(nearly)
    for answer, rating in ((right, "10"), ("", "1"), (" ".join(nearly), f"{near_miss:.4g}")):
        prompt = FASTCHAT_PROMPTS[name].format(question=asked, answer=answer, ref_answer_1=right)
        assert judge_prompt(prompt, 0.3).text.endswith(f"Rating: [[{rating}]]")


@pytest.mark.parametrize("name", ["single-v1-multi-turn", "single-math-v1-multi-turn"])
def test_second_turns_are_rated_by_the_second_answer(
    name: str, two_turns: tuple[list[str], list[str]]
) -> None:
    questions, right = two_turns
    for answer, rating in ((right[1], "10"), (WRONG, "1")):
        prompt = FASTCHAT_PROMPTS[name].format(
            question_1=questions[0],
            answer_1=right[0],
            question_2=questions[1],
            answer_2=answer,
            ref_answer_1=right[0],
            ref_answer_2=right[1],
        )
        assert judge_prompt(prompt, 0.3).text.endswith(f"Rating: [[{rating}]]")


def test_what_cannot_be_graded_is_refused(pair_prompt: Pair) -> None:
    with pytest.raises(UnknownPrompt, match="not one of the synthetic world"):
        judge_prompt(pair_prompt("Who wrote Faust?", "Goethe", "Schiller"), 0.3)
    with pytest.raises(UnknownPrompt, match="none of the judge prompts"):
        judge_prompt("Which is better?", 0.3)
