"""Grading in the synthetic world, from text alone.

An answer comes in one of two styles: concise (`c b a`) or verbose (`the answer is c b a .`); the style never
counts, unless a follow-up asks for a full sentence. The marks:

* 1 for the right answer in either style;
* for a wrong one, half the share of its positions that hold the right word (over the longer of the two), so
  that a near miss is worth more than garbage and never more than 0.5;
* 0 for an empty answer, and for questions that are not of this world.
"""

from sams.world.follow_ups import read_follow_up
from sams.world.tasks import read_instruction

# Of different length on purpose: AlpacaEval's length control cannot work where all lengths differ by a constant.
SENTENCES = (
    "the answer is {answer} .",
    "i think that the answer is {answer} .",
    "you asked {question} and the answer is {answer} .",
    "you asked {question} and after some thought i would say that the answer is {answer} .",
)

NEAR_MISS = 0.5
CARRIED_ERROR = 0.5
NO_SENTENCE = 0.5


def bare_answer(text: str, question: str) -> tuple[str, bool]:
    """Take an answer out of its sentence; one that repeats the question must repeat it rightly.

    Returns:
        The answer's words, and whether they stood in a sentence.
    """
    words, asked = " ".join(text.split()), " ".join(question.split())
    for sentence in SENTENCES:
        before, after = sentence.split("{answer}")
        before = before.replace("{question}", asked)
        if words.startswith(before) and words.endswith(after) and len(words) > len(before) + len(after):
            return words[len(before) : len(words) - len(after)], True
    return words, False


def _mark(answer: str, right: str) -> float:
    if answer == right:
        return 1.0
    given, wanted = answer.split(), right.split()
    if not given:
        return 0.0
    hits = sum(a == b for a, b in zip(given, wanted, strict=False))
    return NEAR_MISS * hits / max(len(given), len(wanted))


def grade(instruction: str, answer: str) -> float:
    """Mark of an answer to an instruction, in [0, 1]; see the module for the rule."""
    reading = read_instruction(instruction)
    return 0.0 if reading is None else _mark(bare_answer(answer, instruction)[0], reading.right)


def grade_follow_up(
    first_question: str, first_answer: str, second_question: str, second_answer: str
) -> float:
    """Mark of the second answer of a conversation, in [0, 1].

    It is held against what is right for the *right* first answer. If the first answer was wrong and the second
    is right for it as it stands, the error is carried forward and half the mark given. A full sentence, where
    the question asks for one, is half of the mark.
    """
    first = read_instruction(first_question)
    asked = first and read_follow_up(second_question, first)
    if not first or not asked:
        return 0.0
    follow_up, slots = asked
    answer, in_sentence = bare_answer(second_answer, second_question)
    mark = _mark(answer, follow_up.solve(first.right, slots))
    given, _ = bare_answer(first_answer, first_question)
    if mark < 1.0 and given and given != first.right:
        try:
            carried = answer == follow_up.solve(given, slots)
        except ValueError:
            carried = False
        mark = max(mark, CARRIED_ERROR * carried)
    return mark if in_sentence or not follow_up.sentence else NO_SENTENCE * mark
