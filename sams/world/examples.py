"""Examples, preference pairs and benchmark questions of the synthetic world, deterministic by seed.

Each kind of data has its own random stream, so that a changed share in one does not change others. Questions for
evaluation are drawn first: no first question of an AlpacaEval instruction, an MT-Bench question, a test or a
validation pair occurs in training.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, TypeVar

from sams.data.records import Example, Message, Pair
from sams.runtime.errors import UserError
from sams.study.settings import World
from sams.world.follow_ups import FollowUp, follow_ups_of
from sams.world.grading import SENTENCES, grade, grade_follow_up
from sams.world.tasks import CATEGORIES, TASKS, Reading, Slots

__all__ = [
    "ALPACA_EVAL_INSTRUCTIONS",
    "QUESTIONS_PER_CATEGORY",
    "alpaca_eval_instructions",
    "answerers",
    "baseline_outputs",
    "baseline_variants",
    "grade",
    "grade_follow_up",
    "mt_bench_questions",
    "mt_bench_references",
    "supervised_examples",
    "test_pairs",
    "train_pairs",
    "validation_pairs",
]

ALPACA_EVAL_INSTRUCTIONS = 805
QUESTIONS_PER_CATEGORY = 10
REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
TWO_TURN_SHARE = 0.25
BASELINE = "world-baseline"
# Shares of wrong answers and of full sentences of the models that measure difficulty.
ANSWERERS = ((0.1, 0.0), (0.25, 0.5), (0.4, 1.0), (0.4, 0.0), (0.55, 0.5), (0.7, 1.0), (0.85, 0.2))

# After this number of repeats in a row, the world counts as exhausted.
PATIENCE = 10_000

T = TypeVar("T")


@dataclass(frozen=True)
class _Question:
    """Question of the world: an instruction, or a follow-up after an instruction and its answer.

    Args:
        first: the parsed instruction.
        text: the instruction.
        follow_up: the second question, if any, and its slot values.
        shown: the answer to the instruction in the conversation, before the follow-up.
    """

    first: Reading
    text: str
    follow_up: tuple[FollowUp, Slots] | None = None
    shown: str = ""

    @property
    def last(self) -> str:
        """Text of the last question."""
        return self.follow_up[0].wording.format(**self.follow_up[1]) if self.follow_up else self.text

    @property
    def prompt(self) -> list[Message]:
        """The conversation up to the last question."""
        messages = [{"role": "user", "content": self.text}]
        if self.follow_up:
            messages.append({"role": "assistant", "content": self.shown})
            messages.append({"role": "user", "content": self.last})
        return messages

    @property
    def right(self) -> str:
        """Right answer to the last question."""
        return (
            self.follow_up[0].solve(self.first.right, self.follow_up[1])
            if self.follow_up
            else self.first.right
        )

    def mistake(self, rng: Random) -> str:
        """Return a plausible wrong answer to the last question."""
        if self.follow_up:
            return self.follow_up[0].mistake(self.first, self.follow_up[1], rng)
        return self.first.task.mistake(self.first.slots, rng)

    def say(self, answer: str, verbose_share: float, rng: Random) -> str:
        """Word an answer: concise, or with the given probability (or if required) as a full sentence."""
        verbose = rng.random() < verbose_share
        if verbose or (self.follow_up and self.follow_up[0].sentence):
            return rng.choice(SENTENCES).format(answer=answer, question=self.last)
        return answer


def _stream(world: World, purpose: str) -> Random:
    return Random(f"{purpose}/{world.seed}")


def _instructions(rng: Random, taken: set[str], category: str | None = None) -> Iterator[_Question]:
    """Yield instructions without end, of all categories or one, none of which is in `taken`."""
    tasks = [task for task in TASKS if category in (None, task.category)]
    while True:
        task = rng.choice(tasks)
        slots = task.draw(rng)
        text = rng.choice(task.wordings).format(**slots)
        if text not in taken:
            yield _Question(Reading(task, slots, task.solve(slots)), text)


def _fresh(draw: Callable[[], T], key: Callable[[T], str], seen: set[str]) -> T:
    """Draw until the key is not in `seen`, and add it.

    Raises:
        UserError: the world seems to be exhausted.
    """
    for _ in range(PATIENCE):
        drawn = draw()
        if key(drawn) not in seen:
            seen.add(key(drawn))
            return drawn
    raise UserError(
        f"the world seems to have no more than {len(seen)} different examples of a kind",
        where="data.world",
        remedy="lower `sft_examples`, `train_pairs` or `test_pairs`",
    )


def _followed(question: _Question, verbose_share: float, rng: Random) -> _Question:
    """Add a follow-up to a question, after a right first answer."""
    follow_up = rng.choice(follow_ups_of(question.first.task.kind))
    shown = question.say(question.first.right, verbose_share, rng)
    return replace(question, follow_up=(follow_up, follow_up.draw(rng)), shown=shown)


def _questions(world: World, rng: Random, taken: set[str]) -> Iterator[_Question]:
    """Yield questions for training: single instructions, and a share of conversations of two turns."""
    for question in _instructions(rng, taken):
        yield _followed(question, world.verbose_share, rng) if rng.random() < TWO_TURN_SHARE else question


# --- for evaluation -------------------------------------------------------------------------------


def _text(question: _Question) -> str:
    return question.text


def _alpaca_eval(world: World) -> list[_Question]:
    drawn = _instructions(_stream(world, "alpaca_eval"), set())
    seen: set[str] = set()
    return [_fresh(partial(next, drawn), _text, seen) for _ in range(ALPACA_EVAL_INSTRUCTIONS)]


def alpaca_eval_instructions(world: World) -> list[str]:
    """Return the 805 different instructions of the world's AlpacaEval, in their order."""
    return [question.text for question in _alpaca_eval(world)]


def _mt_bench(world: World) -> list[_Question]:
    rng = _stream(world, "mt_bench")
    seen = set(alpaca_eval_instructions(world))
    questions = []
    for category in CATEGORIES:
        drawn = _instructions(rng, set(), category)
        for _ in range(QUESTIONS_PER_CATEGORY):
            questions.append(_followed(_fresh(partial(next, drawn), _text, seen), world.verbose_share, rng))
    return questions


def mt_bench_questions(world: World) -> list[dict[str, Any]]:
    """Return eighty two-turn questions, ten of each category, in FastChat's format."""
    return [
        {
            "question_id": number,
            "category": question.first.task.category,
            "turns": [question.text, question.last],
        }
        for number, question in enumerate(_mt_bench(world), start=1)
    ]


def mt_bench_references(world: World) -> list[dict[str, Any]]:
    """Return right answers to the questions that are graded with a reference, in FastChat's answer format."""
    # Concise, except for a follow-up that requires a sentence.
    rng = _stream(world, "references")
    return [
        {
            "question_id": number,
            "answer_id": f"world-{number}",
            "model_id": "world-reference",
            "choices": [
                {"index": 0, "turns": [question.first.right, question.say(question.right, 0.0, rng)]}
            ],
            "tstamp": 0.0,
        }
        for number, question in enumerate(_mt_bench(world), start=1)
        if question.first.task.category in REFERENCE_CATEGORIES
    ]


# --- for training ---------------------------------------------------------------------------------


def _evaluation_instructions(world: World) -> set[str]:
    return {*alpaca_eval_instructions(world), *(question.text for question in _mt_bench(world))}


def supervised_examples(world: World) -> Iterator[Example]:
    """Yield different examples, of which the set share has a wrong answer (`imperfect`)."""
    rng = _stream(world, "sft")
    questions = _questions(world, rng, _held_out(world))

    def draw(imperfect: bool) -> Example:
        question = next(questions)
        answer = question.mistake(rng) if imperfect else question.right
        return Example(question.prompt, question.say(answer, world.verbose_share, rng), imperfect)

    seen: set[str] = set()
    for _ in range(world.sft_examples):
        # Decided before the draw: right answers repeat more often, which would change the share.
        imperfect = rng.random() < world.imperfect_share
        yield _fresh(partial(draw, imperfect), _id, seen)


def _pair_drawer(world: World, purpose: str, taken: set[str]) -> Callable[[bool], Pair]:
    """Return a function that draws the next pair, with its label swapped or not."""
    rng = _stream(world, purpose)
    questions = _questions(world, rng, taken)

    def draw(flipped: bool) -> Pair:
        question = next(questions)
        # The styles are drawn independently, so that length does not separate right from wrong.
        right = question.say(question.right, world.verbose_share, rng)
        wrong = question.say(question.mistake(rng), world.verbose_share, rng)
        chosen, rejected = (wrong, right) if flipped else (right, wrong)
        return Pair(question.prompt, chosen, rejected, flipped)

    return draw


def train_pairs(world: World) -> Iterator[Pair]:
    """Yield different pairs of a right and a wrong answer; the labels of the set share are swapped (`flipped`)."""
    draw = _pair_drawer(world, "train", _held_out(world))
    rng = _stream(world, "flips")
    seen: set[str] = set()
    for _ in range(world.train_pairs):
        flipped = rng.random() < world.flipped_share
        yield _fresh(partial(draw, flipped), _id, seen)


def test_pairs(world: World) -> Iterator[Pair]:
    """Yield pairs without swapped labels, whose first questions differ and occur nowhere else."""
    draw = _pair_drawer(world, "test", set())
    seen = _evaluation_instructions(world)
    for _ in range(world.test_pairs):
        yield _fresh(partial(draw, False), _first_question, seen)


def validation_pairs(world: World) -> Iterator[Pair]:
    """Yield pairs with the training share of swapped labels, whose first questions differ and occur nowhere else."""
    draw = _pair_drawer(world, "validation", set())
    rng = _stream(world, "validation flips")
    seen = _evaluation_instructions(world) | {_first_question(pair) for pair in test_pairs(world)}
    for _ in range(world.validation_pairs):
        yield _fresh(partial(draw, rng.random() < world.flipped_share), _first_question, seen)


def _id(record: Example | Pair) -> str:
    return record.id


def _first_question(pair: Pair) -> str:
    return pair.prompt[0]["content"]


def _held_out(world: World) -> set[str]:
    """Return the instructions that must not occur in training."""
    pairs = itertools.chain(test_pairs(world), validation_pairs(world))
    return _evaluation_instructions(world) | {_first_question(pair) for pair in pairs}


# --- the AlpacaEval baseline, and answerers to measure difficulty with ----------------------------


def _answer_all(world: World, purpose: str, error_share: float) -> list[tuple[_Question, str]]:
    """Return an answer, right or wrong, to every AlpacaEval instruction."""
    rng = _stream(world, purpose)
    return [
        (question, question.mistake(rng) if rng.random() < error_share else question.right)
        for question in _alpaca_eval(world)
    ]


def _outputs(
    world: World, answers: list[tuple[_Question, str]], generator: str, verbose_share: float
) -> list[dict[str, str]]:
    rng = _stream(world, f"style/{generator}")
    return [
        {
            "instruction": question.text,
            "output": question.say(answer, verbose_share, rng),
            "generator": generator,
            "dataset": question.first.task.name,
        }
        for question, answer in answers
    ]


def baseline_outputs(world: World) -> list[dict[str, str]]:
    """Return the baseline's answers in AlpacaEval's format: a set share wrong, a set share in full sentences."""
    answers = _answer_all(world, BASELINE, world.reference_error_share)
    return _outputs(world, answers, BASELINE, world.verbose_share)


def baseline_variants(world: World) -> dict[str, list[dict[str, str]]]:
    """Return the baseline's answers worded `concise` and `verbose` throughout."""
    answers = _answer_all(world, BASELINE, world.reference_error_share)
    return {
        style: _outputs(world, answers, f"{BASELINE}-{style}", share)
        for style, share in (("concise", 0.0), ("verbose", 1.0))
    }


def answerers(world: World) -> dict[str, list[dict[str, str]]]:
    """Return answers of models with different error shares and lengths, by generator name."""
    made = {}
    for error_share, verbose_share in ANSWERERS:
        name = f"answerer-{error_share:g}-wrong-{verbose_share:g}-verbose"
        made[name] = _outputs(world, _answer_all(world, name, error_share), name, verbose_share)
    return made
