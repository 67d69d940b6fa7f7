"""The synthetic world: deterministic, checkable, disjoint, with the shares of the settings."""

import statistics
from collections import Counter
from random import Random

import pytest

from sams.data.records import Message
from sams.runtime.errors import UserError
from sams.study.settings import World
from sams.world import examples as made
from sams.world.follow_ups import follow_ups_of
from sams.world.grading import grade, grade_follow_up
from sams.world.tasks import CATEGORIES, TASKS, Reading, read_instruction

WORLD = World(sft_examples=4000, train_pairs=2000, test_pairs=1000)

SFT = list(made.supervised_examples(WORLD))
TRAIN = list(made.train_pairs(WORLD))
TEST = list(made.test_pairs(WORLD))
INSTRUCTIONS = made.alpaca_eval_instructions(WORLD)
QUESTIONS = made.mt_bench_questions(WORLD)


GOLDEN_INSTRUCTIONS = ["in order : 2 3 5", "reverse this : k i g", "you are a parrot : horse blue"]
GOLDEN_IDS = ["07e3b0c4123b763e", "2fd460e4606f7897", "578095abad8c0423"]


def mark(prompt: list[Message], answer: str) -> float:
    if len(prompt) == 1:
        return grade(prompt[0]["content"], answer)
    first, shown, second = (message["content"] for message in prompt)
    return grade_follow_up(first, shown, second, answer)


def first_questions(records: list) -> set[str]:
    return {record.prompt[0]["content"] for record in records}


def test_there_are_eleven_families_in_eight_categories() -> None:
    assert len({task.name for task in TASKS}) == 11
    assert {task.category for task in TASKS} == set(CATEGORIES) and len(CATEGORIES) == 8
    for task in TASKS:
        assert any(not follow_up.sentence for follow_up in follow_ups_of(task.kind))


def test_a_seed_gives_the_same_world_and_another_seed_another() -> None:
    assert list(made.supervised_examples(WORLD)) == SFT
    assert list(made.train_pairs(WORLD)) == TRAIN
    assert made.baseline_outputs(WORLD) == made.baseline_outputs(World())
    other = WORLD.model_copy(update={"seed": 1})
    assert made.alpaca_eval_instructions(other) != INSTRUCTIONS
    assert next(made.train_pairs(other)) != TRAIN[0]


def test_what_was_made_once_is_made_for_ever() -> None:
    """Published figures belong to this world: a change of it must be intended."""
    assert INSTRUCTIONS[:3] == GOLDEN_INSTRUCTIONS
    assert [TRAIN[0].id, TEST[0].id, SFT[0].id] == GOLDEN_IDS


def test_settings_of_one_product_leave_the_others_alone() -> None:
    changed = WORLD.model_copy(update={"imperfect_share": 0.0, "train_pairs": 10, "flipped_share": 0.0})
    assert list(made.test_pairs(changed)) == TEST
    assert made.baseline_outputs(changed) == made.baseline_outputs(WORLD)
    unflipped = list(made.train_pairs(changed))
    assert [pair.prompt for pair in unflipped] == [pair.prompt for pair in TRAIN[:10]]


def test_evaluation_is_never_trained_on() -> None:
    evaluation = set(INSTRUCTIONS) | {question["turns"][0] for question in QUESTIONS}
    assert len(set(INSTRUCTIONS)) == len(INSTRUCTIONS) == 805
    assert len(evaluation) == 885
    test = first_questions(TEST)
    training = first_questions(SFT) | first_questions(TRAIN)
    assert len(test) == len(TEST)
    assert not evaluation & test and not evaluation & training and not test & training


def test_supervised_examples() -> None:
    assert len({example.id for example in SFT}) == len(SFT) == 4000
    assert all((mark(example.prompt, example.response) == 1.0) is not example.imperfect for example in SFT)
    assert statistics.mean(bool(example.imperfect) for example in SFT) == pytest.approx(0.4, abs=0.03)
    assert statistics.mean(len(example.prompt) == 3 for example in SFT) == pytest.approx(0.25, abs=0.03)
    shown = [example for example in SFT if len(example.prompt) == 3]
    assert all(grade(example.prompt[0]["content"], example.prompt[1]["content"]) == 1.0 for example in shown)


def test_pairs() -> None:
    for pairs in (TRAIN, TEST):
        assert len({pair.id for pair in pairs}) == len(pairs)
        for pair in pairs:
            right, wrong = (pair.rejected, pair.chosen) if pair.flipped else (pair.chosen, pair.rejected)
            assert mark(pair.prompt, right) == 1.0 and mark(pair.prompt, wrong) < 1.0
    assert statistics.mean(bool(pair.flipped) for pair in TRAIN) == pytest.approx(0.3, abs=0.03)
    assert not any(pair.flipped for pair in TEST)


def test_length_does_not_give_the_wrong_answer_away() -> None:
    pairs = list(made.test_pairs(World(test_pairs=6000)))
    longer = [len(pair.chosen) - len(pair.rejected) for pair in pairs]
    assert statistics.mean(delta > 0 for delta in longer) == pytest.approx(
        statistics.mean(delta < 0 for delta in longer), abs=0.04
    )


def test_a_set_share_is_said_in_full_sentences_of_many_lengths() -> None:
    answers = [row["output"] for row in made.baseline_outputs(World(verbose_share=0.5))]
    verbose = [answer for answer in answers if answer.endswith(" .")]
    assert len(verbose) / len(answers) == pytest.approx(0.5, abs=0.06)
    assert len({len(answer.split()) for answer in verbose}) > 8


def test_mistakes_are_always_wrong_and_of_the_world() -> None:
    rng = Random(0)
    vocabulary = {word for example in SFT for word in example.response.split()}
    for task in TASKS:
        for _ in range(300):
            slots = task.draw(rng)
            wrong = task.mistake(slots, rng)
            assert wrong != task.solve(slots) and wrong, task.name
            assert set(wrong.split()) <= vocabulary
            for follow_up in follow_ups_of(task.kind):
                asked = follow_up.draw(rng)
                first = Reading(task, slots, task.solve(slots))
                assert follow_up.mistake(first, asked, rng) != follow_up.solve(first.right, asked)


def test_the_vocabulary_is_small_and_the_texts_are_short() -> None:
    texts = [message["content"] for record in SFT for message in record.prompt]
    texts += [record.response for record in SFT]
    vocabulary = {word for text in texts for word in text.split()}
    assert 120 < len(vocabulary) < 300
    unseen = {word for text in INSTRUCTIONS for word in text.split()} - vocabulary
    assert not unseen
    lengths = [
        sum(len(m["content"].split()) for m in record.prompt) + len(record.response.split()) for record in SFT
    ]
    assert statistics.mean(lengths) < 30 and max(lengths) < 90


def test_alpaca_eval_baseline() -> None:
    rows = made.baseline_outputs(WORLD)
    assert [row["instruction"] for row in rows] == INSTRUCTIONS
    assert all(set(row) == {"instruction", "output", "generator", "dataset"} for row in rows)
    right = statistics.mean(grade(row["instruction"], row["output"]) == 1.0 for row in rows)
    assert right == pytest.approx(0.6, abs=0.05)
    assert Counter(row["dataset"] for row in rows).keys() == {task.name for task in TASKS}


def test_variants_of_the_baseline_say_the_same_at_different_length() -> None:
    variants = made.baseline_variants(WORLD)
    rows = zip(made.baseline_outputs(WORLD), variants["concise"], variants["verbose"], strict=True)
    extra = set()
    for original, concise, verbose in rows:
        instruction = original["instruction"]
        marks = {grade(instruction, row["output"]) for row in (original, concise, verbose)}
        assert len(marks) == 1
        assert len(verbose["output"]) > len(concise["output"])
        extra.add(len(verbose["output"]) - len(concise["output"]))
    assert len(extra) > 10, "length control needs differences that differ"


def test_answerers_differ_in_quality_and_length() -> None:
    models = made.answerers(WORLD)
    right = [
        statistics.mean(grade(r["instruction"], r["output"]) == 1.0 for r in rows) for rows in models.values()
    ]
    length = [statistics.mean(len(r["output"]) for r in rows) for rows in models.values()]
    assert len(models) >= 5
    assert max(right) - min(right) > 0.6 and max(length) > 2 * min(length)
    assert all(rows[0]["generator"] == name for name, rows in models.items())


def test_mt_bench() -> None:
    assert Counter(question["category"] for question in QUESTIONS) == dict.fromkeys(CATEGORIES, 10)
    assert [question["question_id"] for question in QUESTIONS] == list(range(1, 81))
    references = {row["question_id"]: row["choices"][0]["turns"] for row in made.mt_bench_references(WORLD)}
    for question in QUESTIONS:
        first, second = question["turns"]
        reading = read_instruction(first)
        assert reading is not None and reading.task.category == question["category"]
        graded = question["category"] in ("math", "reasoning", "coding")
        assert (question["question_id"] in references) == graded
        if graded:
            answers = references[question["question_id"]]
            assert grade(first, answers[0]) == 1.0
            assert grade_follow_up(first, answers[0], second, answers[1]) == 1.0


def test_a_world_that_is_used_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "PATIENCE", 1)
    with pytest.raises(UserError, match=r"data\.world: .* no more than \d+ different .*lower `sft_examples`"):
        for _ in made.test_pairs(World(test_pairs=20_000)):
            pass


def test_validation_pairs_are_as_noisy_as_training_and_in_no_other_split() -> None:
    world = WORLD.model_copy(update={"validation_pairs": 500, "flipped_share": 0.4})
    validation = list(made.validation_pairs(world))
    questions = first_questions(validation)
    assert len(validation) == len(questions) == 500
    assert statistics.fmean(bool(pair.flipped) for pair in validation) == pytest.approx(0.4, abs=0.07)
    assert list(made.test_pairs(world)) == TEST, "the test pairs do not depend on them"
    for others in (TEST, list(made.train_pairs(world)), list(made.supervised_examples(world))):
        assert not questions & first_questions(others)
    assert not questions & set(INSTRUCTIONS)
