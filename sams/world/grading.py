"""Grade answers in the synthetic world, from text alone.

An answer is concise (`c b a`) or verbose (`the answer is c b a .`); the style has no effect on the mark, unless a
follow-up requires a full sentence. The marks:

* 1 for the right answer in either style;
* for a wrong answer, half the share of positions with the right word (over the longer of the two), so that a near
  miss has a higher mark than garbage, and never more than 0.5;
* 0 for an empty answer, and for a question that is not of the synthetic world.
"""

from sams.world.follow_ups import read_follow_up
from sams.world.tasks import read_instruction

# Of different lengths, because AlpacaEval's length control requires length differences that vary.
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
    """Extract an answer from its sentence; a sentence that repeats the question must repeat it exactly.

    Returns:
        The words of the answer, and whether they were in a sentence.
    """
    words, question = " ".join(text.split()), " ".join(question.split())
    for sentence in SENTENCES:
        before, after = sentence.split("{answer}")
        before = before.replace("{question}", question)
        if words.startswith(before) and words.endswith(after) and len(words) > len(before) + len(after):
            return words[len(before) : len(words) - len(after)], True
    return words, False


def _mark(answer: str, right: str) -> float:
    if answer == right:
        return 1.0
    given, expected = answer.split(), right.split()
    if not given:
        return 0.0
    hits = sum(a == b for a, b in zip(given, expected, strict=False))
    return NEAR_MISS * hits / max(len(given), len(expected))


def grade(instruction: str, answer: str) -> float:
    """Return the mark of an answer to an instruction, from 0 to 1 (see the module)."""
    reading = read_instruction(instruction)
    return 0.0 if reading is None else _mark(bare_answer(answer, instruction)[0], reading.right)


def grade_follow_up(
    first_question: str, first_answer: str, second_question: str, second_answer: str
) -> float:
    """Return the mark of the second answer of a conversation, from 0 to 1.

    The second answer is compared with the one that follows from the right first answer. If the first answer is wrong
    and the second follows from it, the mark is one half. If the question requires a full sentence, an
    answer without one gets half of the mark.
    """
    first = read_instruction(first_question)
    second = first and read_follow_up(second_question, first)
    if not first or not second:
        return 0.0
    follow_up, slots = second
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
