"""The synthetic world: examples, preference pairs and benchmark questions, all deterministic by seed.

Each product draws from a random stream of its own, so that a changed share in one does not move another. What
is for evaluation is drawn first and never used again: no first question of an AlpacaEval instruction, an MT-Bench
question or a test pair occurs in training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from sams.config import World
from sams.data.follow_ups import FollowUp, follow_ups_of
from sams.data.grading import SENTENCES, grade, grade_follow_up
from sams.data.records import Example, Message, Pair
from sams.data.tasks import CATEGORIES, TASKS, Reading, Slots, read_instruction
from sams.errors import UserError

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
]

ALPACA_EVAL_INSTRUCTIONS = 805
QUESTIONS_PER_CATEGORY = 10
REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
TWO_TURN_SHARE = 0.25
BASELINE = "world-baseline"
# Share of wrong answers and share of full sentences of the models that difficulty is measured with.
ANSWERERS = ((0.1, 0.0), (0.25, 0.5), (0.4, 1.0), (0.4, 0.0), (0.55, 0.5), (0.7, 1.0), (0.85, 0.2))

# How often in a row a drawn question may be taken before the world counts as used up.
PATIENCE = 10_000


@dataclass(frozen=True)
class _Question:
    """An instruction, or an instruction, its right answer and a follow-up."""

    first: Reading
    text: str
    follow_up: FollowUp | None = None
    slots: Slots | None = None
    shown: str = ""

    @property
    def prompt(self) -> list[Message]:
        first = {"role": "user", "content": self.text}
        if self.follow_up is None:
            return [first]
        second = self.follow_up.wording.format(**(self.slots or {}))
        return [first, {"role": "assistant", "content": self.shown}, {"role": "user", "content": second}]

    @property
    def right(self) -> str:
        if self.follow_up is None:
            return self.first.right
        return self.follow_up.solve(self.first.right, self.slots or {})

    def mistake(self, rng: Random) -> str:
        if self.follow_up is None:
            return self.first.task.mistake(self.first.slots, rng)
        return self.follow_up.mistake(self.first, self.slots or {}, rng)

    def say(self, answer: str, verbose_share: float, rng: Random) -> str:
        """Put an answer into words: concise, or with the given probability a full sentence."""
        if rng.random() < verbose_share or (self.follow_up is not None and self.follow_up.sentence):
            return rng.choice(SENTENCES).format(
                answer=answer, question=self.prompt[-1]["content"] if self.follow_up else self.text
            )
        return answer


def _stream(world: World, purpose: str) -> Random:
    return Random(f"{purpose}/{world.seed}")


def _instructions(rng: Random, taken: set[str], category: str | None = None) -> Iterator[_Question]:
    """Draw instructions without end, none of which is in `taken` or repeated."""
    tasks = [task for task in TASKS if category in (None, task.category)]
    taken = set(taken)
    refused = 0
    while refused < PATIENCE:
        task = rng.choice(tasks)
        slots = task.draw(rng)
        text = rng.choice(task.wordings).format(**slots)
        if text in taken:
            refused += 1
            continue
        refused = 0
        taken.add(text)
        yield _Question(Reading(task, slots, task.solve(slots)), text)
    raise UserError(
        f"the world holds no more than {len(taken)} different instructions",
        where="data.world",
        remedy="lower `sft_examples`, `train_pairs` or `test_pairs`",
    )


def _followed(question: _Question, verbose_share: float, rng: Random) -> _Question:
    """Add a follow-up to a question, after a right first answer."""
    follow_up = rng.choice(follow_ups_of(question.first.task.kind))
    shown = question.say(question.first.right, verbose_share, rng)
    return _Question(question.first, question.text, follow_up, follow_up.draw(rng), shown)


def _questions(world: World, rng: Random, taken: set[str]) -> Iterator[_Question]:
    """Questions to learn from: single instructions, and the set share of two turns."""
    for question in _instructions(rng, taken):
        yield _followed(question, world.verbose_share, rng) if rng.random() < TWO_TURN_SHARE else question


# --- for evaluation --------------------------------------------------------------------------------------


def alpaca_eval_instructions(world: World) -> list[str]:
    """The 805 different instructions of the world's AlpacaEval, in their fixed order."""
    drawn = _instructions(_stream(world, "alpaca_eval"), set())
    return [next(drawn).text for _ in range(ALPACA_EVAL_INSTRUCTIONS)]


def _mt_bench(world: World) -> list[_Question]:
    rng = _stream(world, "mt_bench")
    taken = set(alpaca_eval_instructions(world))
    return [
        _followed(question, world.verbose_share, rng)
        for category in CATEGORIES
        for _, question in zip(
            range(QUESTIONS_PER_CATEGORY), _instructions(rng, taken, category), strict=False
        )
    ]


def mt_bench_questions(world: World) -> list[dict[str, Any]]:
    """Eighty two-turn questions, ten of each category, in FastChat's format."""
    return [
        {
            "question_id": number,
            "category": question.first.task.category,
            "turns": [question.text, question.prompt[-1]["content"]],
        }
        for number, question in enumerate(_mt_bench(world), start=1)
    ]


def mt_bench_references(world: World) -> list[dict[str, Any]]:
    """Right answers to the questions that are graded with a reference, in FastChat's answer format."""
    return [
        {
            "question_id": number,
            "answer_id": f"world-{number}",
            "model_id": "world-reference",
            "choices": [{"index": 0, "turns": [question.first.right, _in_form(question)]}],
            "tstamp": 0.0,
        }
        for number, question in enumerate(_mt_bench(world), start=1)
        if question.first.task.category in REFERENCE_CATEGORIES
    ]


def _in_form(question: _Question) -> str:
    """The right second answer, in a sentence where one is asked for."""
    sentence = question.follow_up is not None and question.follow_up.sentence
    return SENTENCES[0].format(answer=question.right) if sentence else question.right


# --- for training ----------------------------------------------------------------------------------------


def _evaluation_instructions(world: World) -> set[str]:
    return {*alpaca_eval_instructions(world), *(question.text for question in _mt_bench(world))}


def supervised_examples(world: World) -> Iterator[Example]:
    """Examples of which the set share has a wrong answer (`imperfect`)."""
    rng = _stream(world, "sft")
    questions = _questions(world, rng, _evaluation_instructions(world) | _first_questions(test_pairs(world)))
    for _, question in zip(range(world.sft_examples), questions, strict=False):
        imperfect = rng.random() < world.imperfect_share
        answer = question.mistake(rng) if imperfect else question.right
        yield Example(question.prompt, question.say(answer, world.verbose_share, rng), imperfect)


def _pairs(world: World, purpose: str, count: int, flipped_share: float, taken: set[str]) -> Iterator[Pair]:
    rng = _stream(world, purpose)
    for _, question in zip(range(count), _questions(world, rng, taken), strict=False):
        # The styles are drawn independently, so that length does not tell chosen from rejected.
        right = question.say(question.right, world.verbose_share, rng)
        wrong = question.say(question.mistake(rng), world.verbose_share, rng)
        flipped = rng.random() < flipped_share
        yield (
            Pair(question.prompt, wrong, right, True)
            if flipped
            else Pair(question.prompt, right, wrong, False)
        )


def train_pairs(world: World) -> Iterator[Pair]:
    """Pairs of a right and a wrong answer; the labels of the set share are swapped (`flipped`)."""
    taken = _evaluation_instructions(world) | _first_questions(test_pairs(world))
    return _pairs(world, "train", world.train_pairs, world.flipped_share, taken)


def test_pairs(world: World) -> Iterator[Pair]:
    """Clean pairs, whose first questions occur nowhere else."""
    return _pairs(world, "test", world.test_pairs, 0.0, _evaluation_instructions(world))


def _first_questions(pairs: Iterator[Pair]) -> set[str]:
    return {pair.prompt[0]["content"] for pair in pairs}


# --- the AlpacaEval baseline, and answerers to measure difficulty with ----------------------------------


def _answer_all(world: World, purpose: str, error_share: float) -> list[tuple[_Question, str]]:
    """An answer, right or wrong, to every AlpacaEval instruction."""
    rng = _stream(world, purpose)
    questions = []
    for text in alpaca_eval_instructions(world):
        reading = read_instruction(text)
        assert reading is not None, text
        questions.append(_Question(reading, text))
    return [(q, q.mistake(rng) if rng.random() < error_share else q.right) for q in questions]


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
    """The baseline's answers in AlpacaEval's format: a set share wrong, a set share in full sentences."""
    answers = _answer_all(world, BASELINE, world.reference_error_share)
    return _outputs(world, answers, BASELINE, world.verbose_share)


def baseline_variants(world: World) -> dict[str, list[dict[str, str]]]:
    """The baseline's same answers said `concise` and `verbose` throughout."""
    answers = _answer_all(world, BASELINE, world.reference_error_share)
    return {
        style: _outputs(world, answers, f"{BASELINE}-{style}", share)
        for style, share in (("concise", 0.0), ("verbose", 1.0))
    }


def answerers(world: World) -> dict[str, list[dict[str, str]]]:
    """Answers of several models of different error share and length, by generator name."""
    made = {}
    for error_share, verbose_share in ANSWERERS:
        name = f"answerer-{error_share:g}-wrong-{verbose_share:g}-verbose"
        made[name] = _outputs(world, _answer_all(world, name, error_share), name, verbose_share)
    return made
