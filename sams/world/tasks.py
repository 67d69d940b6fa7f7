"""Task families of the synthetic world: wordings, solutions, parsing from text, and mistakes.

Every text consists of words of a small closed vocabulary, separated by single spaces; a number is written digit by
digit (`4 7`). An instruction can be parsed from its text alone, so that a judge that sees only text can grade an
answer.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

Slots = dict[str, str]
AnswerKind = Literal["list", "number", "choice"]

LETTERS = "a b c d e f g h i j k l m n o p".split()
DIGITS = "0 1 2 3 4 5 6 7 8 9".split()
GROUPS = {
    "colours": "red blue green black white brown".split(),
    "animals": "dog cat horse cow pig fox".split(),
    "tools": "hammer saw drill nail rope brush".split(),
    "foods": "bread rice soup cheese apple egg".split(),
}
WORDS = [word for group in GROUPS.values() for word in group]
GERMAN = dict(
    zip(
        WORDS,
        "rot blau gruen schwarz weiss braun hund katze pferd kuh schwein fuchs "
        "hammer saege bohrer nagel seil pinsel brot reis suppe kaese apfel ei".split(),
        strict=True,
    )
)

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")

# Longer texts are not of the synthetic world; the limit keeps the matching of hostile input cheap.
LONGEST_TEXT = 1000


def digits(number: int) -> str:
    """Return a number digit by digit: 47 as `4 7`."""
    return " ".join(str(number))


def number(text: str) -> int:
    """Parse a number written digit by digit.

    Raises:
        ValueError: anything but single ASCII digits.
    """
    parts = text.split()
    if not parts or not set(parts) <= set(DIGITS):
        raise ValueError(f"not a number: {text!r:.40}")
    return int("".join(parts))


@dataclass(frozen=True)
class Task:
    """One family of instructions.

    Args:
        name: short name.
        category: one of MT-Bench's eight.
        wordings: texts with `{slots}` and the same meaning.
        draw: draws slot values.
        solve: returns the right answer from the slot values; ValueError or KeyError for invalid values.
        kind: kind of the answer, which decides on its mistakes and follow-ups.
        options: for kind `choice`, the answers one could mistake for the right one.
    """

    name: str
    category: str
    wordings: tuple[str, ...]
    draw: Callable[[Random], Slots]
    solve: Callable[[Slots], str]
    kind: AnswerKind
    options: Callable[[Slots], list[str]] | None = None

    def mistake(self, slots: Slots, rng: Random) -> str:
        """Return a plausible wrong answer, never equal to the right one."""
        right = self.solve(slots)
        if self.options is not None:
            return rng.choice([option for option in self.options(slots) if option != right])
        return wrong_number(right, rng) if self.kind == "number" else wrong_list(right, rng)


def wrong_number(right: str, rng: Random) -> str:
    """Return a number that is off by one, two or ten, and not below zero."""
    near = [number(right) + step for step in (-10, -2, -1, 1, 2, 10)]
    return digits(rng.choice([value for value in near if value >= 0]))


def wrong_list(right: str, rng: Random) -> str:
    """Return a list with two neighbours swapped, an item dropped or an item repeated.

    Drops and repeats are equally likely, so that length does not reveal a wrong answer.
    """
    items = right.split()
    swaps = [at for at in range(len(items) - 1) if items[at] != items[at + 1]]
    if swaps and rng.random() < 0.6:
        at = rng.choice(swaps)
        items[at], items[at + 1] = items[at + 1], items[at]
    elif len(items) > 1 and rng.random() < 0.5:
        del items[rng.randrange(len(items))]
    else:
        at = rng.randrange(len(items))
        items.insert(at, items[at])
    return " ".join(items)


# --- draws and solutions --------------------------------------------------------------------------


def _some(pool: list[str], count: int) -> Callable[[Random], Slots]:
    """Return a function that draws different words of a pool into slot `items`."""
    return lambda rng: {"items": " ".join(rng.sample(pool, count))}


def _known(text: str, pool: list[str]) -> list[str]:
    """Return the words of a text, all of which must be in the pool."""
    items = text.split()
    if not set(items) <= set(pool):
        raise ValueError(f"unknown word in {text!r:.60}")
    return items


def _capitals(slots: Slots) -> str:
    return " ".join(_known(slots["items"], LETTERS)).upper()


def _reversed(slots: Slots) -> str:
    return " ".join(reversed(_known(slots["items"], LETTERS + WORDS)))


def _twice(slots: Slots) -> str:
    return " ".join(_known(slots["items"], WORDS) * 2)


def _draw_odd(rng: Random) -> Slots:
    common, other = rng.sample(list(GROUPS), 2)
    items = [*rng.sample(GROUPS[common], 2), rng.choice(GROUPS[other])]
    rng.shuffle(items)
    return {"items": " ".join(items)}


def _odd(slots: Slots) -> str:
    items = _known(slots["items"], WORDS)
    alone = [members for members in GROUPS.values() if len(set(members) & set(items)) == 1]
    if len(items) != 3 or len(alone) != 1:
        raise ValueError("not three of a group and one of another")
    return next(item for item in items if item in alone[0])


def _draw_sum(rng: Random) -> Slots:
    """Draw a number of two digits and one of one digit whose sum needs no carry."""
    units = rng.randint(0, 9)
    added = rng.randint(0, units)
    return {"a": f"{rng.randint(1, 9)} {units - added}", "b": str(added)}


def _sum(slots: Slots) -> str:
    return digits(number(slots["a"]) + number(slots["b"]))


def _draw_difference(rng: Random) -> Slots:
    """Draw a number of two digits and one of one digit to subtract without a borrow."""
    units = rng.randint(0, 9)
    return {"a": f"{rng.randint(1, 9)} {units}", "b": str(rng.randint(0, units))}


def _difference(slots: Slots) -> str:
    return digits(number(slots["a"]) - number(slots["b"]))


def _sorted(slots: Slots) -> str:
    number(slots["items"])
    return " ".join(sorted(slots["items"].split()))


def _draw_values(rng: Random) -> Slots:
    keys, values = rng.sample(LETTERS, 3), rng.sample(DIGITS, 3)
    pairs = " ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
    return {"pairs": pairs, "key": rng.choice(keys)}


def _values(slots: Slots) -> dict[str, str]:
    words = slots["pairs"].split()
    keys, values = _known(" ".join(words[::2]), LETTERS), _known(" ".join(words[1::2]), DIGITS)
    return dict(zip(keys, values, strict=True))


def _draw_count(rng: Random) -> Slots:
    letters = rng.sample(LETTERS, 2)
    items = [rng.choice(letters) for _ in range(4)]
    return {"item": rng.choice(items), "items": " ".join(items)}


def _count(slots: Slots) -> str:
    return digits(_known(slots["items"], LETTERS).count(slots["item"]))


def _next_letters(slots: Slots) -> str:
    return " ".join(LETTERS[LETTERS.index(item) + 1] for item in _known(slots["items"], LETTERS[:-1]))


def _translated(slots: Slots) -> str:
    return " ".join(GERMAN[item] for item in _known(slots["items"], WORDS))


TASKS = (
    Task(
        "capitals",
        "writing",
        ("write in capitals : {items}", "make large : {items}"),
        _some(LETTERS, 3),
        _capitals,
        "list",
    ),
    Task(
        "echo",
        "roleplay",
        ("you are a parrot : {items}", "you are an echo : {items}", "be my echo : {items}"),
        _some(WORDS, 2),
        _twice,
        "list",
    ),
    Task(
        "odd",
        "reasoning",
        ("which is odd : {items}", "find the stranger : {items}"),
        _draw_odd,
        _odd,
        "choice",
        lambda slots: slots["items"].split(),
    ),
    Task(
        "sum",
        "math",
        ("what is {a} plus {b}", "add : {a} and {b}", "find the sum : {a} and {b}"),
        _draw_sum,
        _sum,
        "number",
    ),
    Task(
        "difference",
        "math",
        ("what is {a} minus {b}", "subtract : {a} less {b}", "find the rest : {a} less {b}"),
        _draw_difference,
        _difference,
        "number",
    ),
    Task(
        "sort",
        "coding",
        ("sort this : {items}", "in order : {items}"),
        _some(DIGITS, 3),
        _sorted,
        "list",
    ),
    Task(
        "reverse",
        "coding",
        ("reverse this : {items}", "read backwards : {items}"),
        _some(LETTERS, 3),
        _reversed,
        "list",
    ),
    Task(
        "lookup",
        "extraction",
        ("in {pairs} find {key}", "from {pairs} take {key}"),
        _draw_values,
        lambda slots: _values(slots)[slots["key"]],
        "choice",
        lambda slots: list(_values(slots).values()),
    ),
    Task(
        "count",
        "stem",
        ("how many {item} : {items}", "count {item} : {items}"),
        _draw_count,
        _count,
        "number",
    ),
    Task(
        "shift",
        "stem",
        ("next letters : {items}", "one step up : {items}"),
        _some(LETTERS[:-1], 3),
        _next_letters,
        "list",
    ),
    Task(
        "translate",
        "humanities",
        ("in german : {items}", "translate : {items}"),
        _some(WORDS, 3),
        _translated,
        "list",
    ),
)


@dataclass(frozen=True)
class Reading:
    """A parsed instruction: its task, slot values and right answer."""

    task: Task
    slots: Slots
    right: str


@cache
def _pattern(wording: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(wording)))


def match_wording(wording: str, text: str) -> Slots | None:
    """Return the slot values with which `wording` gives `text`; None if there are none."""
    if len(text) > LONGEST_TEXT:
        return None
    match = _pattern(wording).fullmatch(" ".join(text.split()))
    return match.groupdict() if match else None


def read_instruction(instruction: str) -> Reading | None:
    """Parse an instruction from its text; None for text that is not of the synthetic world."""
    for task in TASKS:
        for wording in task.wordings:
            slots = match_wording(wording, instruction)
            if slots is None:
                continue
            try:
                return Reading(task, slots, task.solve(slots))
            except (ValueError, KeyError):
                continue
    return None
