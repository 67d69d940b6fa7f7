"""Second questions of a conversation: wording, right answers, and parsing from text."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from sams.world.tasks import (
    AnswerKind,
    Reading,
    Slots,
    digits,
    match_wording,
    number,
    wrong_list,
    wrong_number,
)


@dataclass(frozen=True)
class FollowUp:
    """A kind of second question.

    Args:
        wording: its text, with `{slots}`.
        kinds: the kinds of first answer it can follow.
        solve: returns the right answer from the first answer and the slot values; ValueError if there is none.
        kind: kind of its answer; None for that of the first answer.
        draw: draws slot values.
        sentence: whether the answer must be a full sentence.
    """

    wording: str
    kinds: tuple[AnswerKind, ...]
    solve: Callable[[str, Slots], str]
    kind: AnswerKind | None = None
    draw: Callable[[Random], Slots] = lambda rng: {}
    sentence: bool = False

    def mistake(self, first: Reading, slots: Slots, rng: Random) -> str:
        """Return a plausible wrong answer, never equal to the right one."""
        right = self.solve(first.right, slots)
        kind = self.kind or first.task.kind
        if kind == "list":
            return wrong_list(right, rng)
        if kind == "number":
            return wrong_number(right, rng)
        if first.task.kind == "list":
            return rng.choice([item for item in first.right.split() if item != right])
        return first.task.mistake(first.slots, rng)


def _draw_step(rng: Random) -> Slots:
    return {"n": str(rng.randint(1, 5))}


EVERY_KIND: tuple[AnswerKind, ...] = ("list", "number", "choice")

FOLLOW_UPS = (
    FollowUp("now reverse your answer", ("list",), lambda first, slots: " ".join(reversed(first.split()))),
    FollowUp("now give only the first item", ("list",), lambda first, slots: first.split()[0], "choice"),
    FollowUp("now give only the last item", ("list",), lambda first, slots: first.split()[-1], "choice"),
    FollowUp(
        "now add {n} to it",
        ("number",),
        lambda first, slots: digits(number(first) + number(slots["n"])),
        draw=_draw_step,
    ),
    FollowUp("now say it twice", EVERY_KIND, lambda first, slots: f"{first} {first}", "list"),
    FollowUp("now say it in a full sentence", EVERY_KIND, lambda first, slots: first, sentence=True),
)


def follow_ups_of(kind: AnswerKind) -> list[FollowUp]:
    """Return the second questions that can follow an answer of a kind."""
    return [follow_up for follow_up in FOLLOW_UPS if kind in follow_up.kinds]


def read_follow_up(question: str, first: Reading) -> tuple[FollowUp, Slots] | None:
    """Parse a second question from its text; None if it cannot follow the first."""
    for follow_up in follow_ups_of(first.task.kind):
        slots = match_wording(follow_up.wording, question)
        if slots is None:
            continue
        try:
            follow_up.solve(first.right, slots)
        except ValueError:
            continue
        return follow_up, slots
    return None
