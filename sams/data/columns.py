"""Columns of rows: which hold text that the model should see, which are known to be harmless, and renaming."""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from sams.runtime.errors import UserError

Row = dict[str, Any]

SYSTEM = ("system", "system_prompt", "system_message")
HISTORY = ("history",)
CONVERSATIONS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "question", "query", "instruction", *CONVERSATIONS, "input")
SIDES = ("chosen", "rejected")
RESPONSES = ("response", "output", "completion", "answer")
READ = frozenset((*SYSTEM, *HISTORY, *PROMPTS, *SIDES, *RESPONSES))
"""Columns that the readers use, or compare with what they use."""

# Last words of the names of columns that are about a row, or about how it was made: a model does not see them.
# The plurals are other answers to the same prompt.
HARMLESS = frozenset(
    "id ids idx index uuid uid hash sha md5 key rank order turn turns count num number length len tokens time "
    "score scores rating ratings reward rewards logp logps logprob logprobs margin margins quality difficulty "
    "confidence agreement toxicity perplexity votes upvotes source sources dataset datasets origin url link "
    "model models generator engine author annotator annotators worker license licence date timestamp created "
    "updated version category categories topic topics tag tags type types subset subsets split task tasks "
    "domain language lang locale metadata meta info status responses completions generations candidates "
    "answers".split()
)
ENDINGS = frozenset("chosen rejected a b j k avg mean at".split())
"""Last words that add to the one before: `score_chosen`, `created_at`."""

TRAINED_BY = frozenset("label labels weight weights preference winner".split())
"""Last words of columns that say how a row is to be learned, also as numbers."""

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|true|false|nan", re.IGNORECASE)


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """Return a row with the names that the readers know.

    Args:
        row: the row.
        columns: own name of each known column (`data.columns`). A row without the own name stays as it is.
    """
    own = {name: known for known, name in columns.items() if name in row}
    if not own:
        return row
    kept = {key: value for key, value in row.items() if key not in own and key not in own.values()}
    return kept | {known: row[name] for name, known in own.items()}


def is_empty(value: Any) -> bool:
    """Return whether a value says nothing: null, blank text, or an empty list or object."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value in ([], {}) or (isinstance(value, float) and math.isnan(value))


def refuse_unknown(row: Mapping[str, Any], where: str, ignored: frozenset[str] = frozenset()) -> None:
    """Check that a row has no column that may hold what the model should see and that no reader uses.

    Harmless are empty values, numbers (except labels and weights), and columns whose name says that they are ids,
    scores, sources, dates, categories or other answers (`HARMLESS`).

    Raises:
        UserError: it has one; the message names it.
    """
    for key in _unknown(tuple(row)):
        value = row[key]
        if key in ignored or is_empty(value) or (_is_number(value) and _last(key) not in TRAINED_BY):
            continue
        raise UserError(
            f"unknown column that the model may need to see, {_short(value)}",
            where=f"{where}, key '{key}'",
            remedy="name it in data.ignored_columns to leave it out, or in data.columns to use it",
        )


@functools.lru_cache(maxsize=1024)
def _unknown(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key in keys if key not in READ and not _is_harmless(str(key)))


def _is_harmless(key: str) -> bool:
    # The index that pandas writes to CSV files has no name.
    return not key or key.startswith(("Unnamed:", "__")) or _last(key) in HARMLESS


def _last(key: str) -> str:
    """Return the last word of a name before `ENDINGS` and numbers."""
    words = [word.lower() for word in WORD.findall(str(key))]
    while words and (words[-1] in ENDINGS or words[-1].isdigit()):
        words.pop()
    return words[-1] if words else ""


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, bool | int | float)


def number_of(value: Any, where: str) -> float:
    """Return a value as a number.

    Raises:
        UserError: it is none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise UserError(
            f"expected a number, found {_short(value)}", where=where, remedy="data.keep_columns takes numbers"
        )
    return number


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
