"""Marks in the synthetic world: truth tables, and properties for any text."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sams.study.settings import World
from sams.world.examples import alpaca_eval_instructions, mt_bench_questions
from sams.world.grading import SENTENCES, grade, grade_follow_up
from sams.world.tasks import TASKS, match_wording, read_instruction

RIGHT = [
    ("write in capitals : a b c", "A B C"),
    ("you are a parrot : red dog", "red dog red dog"),
    ("which is odd : red dog blue", "dog"),
    ("what is 4 3 plus 5", "4 8"),
    ("subtract : 4 8 less 8", "4 0"),
    ("sort this : 3 9 1", "1 3 9"),
    ("reverse this : c a b", "b a c"),
    ("in a 3 b 5 c 7 find b", "5"),
    ("how many a : a b a b", "2"),
    ("next letters : a c o", "b d p"),
    ("in german : red dog soup", "rot hund suppe"),
]


def test_the_table_names_every_task() -> None:
    readings = [read_instruction(instruction) for instruction, _ in RIGHT]
    assert [reading.task.name for reading in readings if reading] == [task.name for task in TASKS]


@pytest.mark.parametrize(("instruction", "answer"), RIGHT)
def test_right_answers(instruction: str, answer: str) -> None:
    assert grade(instruction, answer) == 1.0
    for sentence in SENTENCES:
        assert grade(instruction, sentence.format(answer=answer, question=instruction)) == 1.0
    assert grade(f"  {instruction}\n", f"\n{answer} ") == 1.0, "white space does not count"


@pytest.mark.parametrize(
    ("instruction", "answer", "mark"),
    [
        ("reverse this : c a b", "", 0.0),
        ("reverse this : c a b", "   \n", 0.0),
        ("reverse this : c a b", "x y z", 0.0),
        ("reverse this : c a b", "c a b", 0.5 * 1 / 3),
        ("reverse this : c a b", "b a", 0.5 * 2 / 3),
        ("reverse this : c a b", "b a c c", 0.5 * 3 / 4),
        ("reverse this : c a b", "the answer is b c a .", 0.5 * 1 / 3),
        ("reverse this : c a b", "the answer is .", 0.0),
        ("reverse this : c a b", "you asked reverse this : c a a and the answer is b a c .", 0.0),
        ("reverse this : c a b", "B A C", 0.0),
        ("what is 4 3 plus 5", "4 9", 0.25),
        ("what is 4 3 plus 5", "48", 0.0),
        ("which is odd : red dog blue", "red", 0.0),
        ("tell me a story", "once upon a time", 0.0),
        ("reverse this : hello", "hello", 0.0),
        ("sort this : x y", "x y", 0.0),
        ("in {answer} 3 find {answer}", "3", 0.0),
        ("", "", 0.0),
    ],
)
def test_other_answers(instruction: str, answer: str, mark: float) -> None:
    assert grade(instruction, answer) == pytest.approx(mark)


@pytest.mark.parametrize(
    ("second", "answer", "mark"),
    [
        ("now reverse your answer", "c a b", 1.0),
        ("now reverse your answer", "the answer is c a b .", 1.0),
        ("now reverse your answer", "b a c", 0.5 * 1 / 3),
        ("now give only the first item", "b", 1.0),
        ("now give only the last item", "c", 1.0),
        ("now give only the last item", "b", 0.0),
        ("now say it twice", "b a c b a c", 1.0),
        ("now say it twice", "b a c", 0.5 * 3 / 6),
        ("now say it in a full sentence", "the answer is b a c .", 1.0),
        ("now say it in a full sentence", "b a c", 0.5),
        ("now say it in a full sentence", "", 0.0),
        ("now add 3 to it", "b a c", 0.0),
        ("what is that", "b a c", 0.0),
    ],
)
def test_second_answers(second: str, answer: str, mark: float) -> None:
    assert grade_follow_up("reverse this : c a b", "b a c", second, answer) == pytest.approx(mark)


def test_an_error_carried_forward_earns_half() -> None:
    first = "what is 4 3 plus 5"
    assert grade_follow_up(first, "4 8", "now add 3 to it", "5 1") == 1.0
    assert grade_follow_up(first, "4 9", "now add 3 to it", "5 1") == 1.0, "right for the right first answer"
    assert grade_follow_up(first, "4 9", "now add 3 to it", "5 2") == 0.5
    assert grade_follow_up(first, "the answer is 4 9 .", "now add 3 to it", "5 2") == 0.5
    assert grade_follow_up(first, "4 8", "now add 3 to it", "5 2") == 0.25, (
        "a near miss, and no error to carry"
    )
    assert grade_follow_up(first, "nonsense", "now add 3 to it", "5 2") == 0.25
    assert grade_follow_up("nonsense", "4 8", "now add 3 to it", "5 1") == 0.0


def readings(instruction: str) -> list[str]:
    """Return every task that fits the instruction, with its right answer."""
    found = []
    for task in TASKS:
        for wording in task.wordings:
            slots = match_wording(wording, instruction)
            if slots is not None:
                with contextlib.suppress(ValueError, KeyError):
                    found.append(f"{task.name}: {task.solve(slots)}")
    return found


def test_instructions_are_read_in_one_way_only() -> None:
    for instruction in alpaca_eval_instructions(World()):
        assert len(readings(instruction)) == 1, instruction


ANY_TEXT = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.sampled_from("reverse this : a b c the answer is . 4 0 { } {answer} you asked and".split()),
        max_size=12,
    ).map(" ".join),
)


@given(ANY_TEXT, ANY_TEXT)
def test_any_text_is_graded(instruction: str, answer: str) -> None:
    assert 0.0 <= grade(instruction, answer) <= 1.0


@given(st.sampled_from(mt_bench_questions(World())), ANY_TEXT, ANY_TEXT)
def test_any_conversation_is_graded(question: dict, first: str, second: str) -> None:
    assert 0.0 <= grade_follow_up(question["turns"][0], first, question["turns"][1], second) <= 1.0


@given(st.sampled_from(alpaca_eval_instructions(World())), ANY_TEXT)
def test_only_the_right_answer_earns_more_than_half(instruction: str, answer: str) -> None:
    reading = read_instruction(instruction)
    assert reading is not None
    if reading.right not in answer:
        assert grade(instruction, answer) <= 0.5


def test_a_huge_answer_is_graded_quickly() -> None:
    assert grade("reverse this : c a b", "b a c " * 200_000) < 1e-4
    assert grade("reverse this : " + "c " * 200_000, "c") == 0.0
