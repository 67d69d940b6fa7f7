"""Readers of published preference data sets: their pairs, and the responses that SFT learns.

The rules are those of DPO's reference code (Rafailov et al. 2023; eric-mitchell/direct-preference-optimization,
commit 21fd7fe, `preference_datasets.py`):

* `hh` (Anthropic/hh-rlhf): the prompt is the text before the last `Assistant:`; SFT learns the chosen response.
* `shp` (stanfordnlp/SHP): pairs whose scores differ by a factor of 2 or more; SFT learns the response to a post
  with the highest score.
* `stack_exchange` (HuggingFaceH4/stack-exchange-preferences): every two answers to a question, the one with the
  higher score preferred; HTML is stripped; SFT learns the answer with the highest score.

and `messages` is the form of the UltraFeedback variants. docs/studies.md names what differs from that code.
"""

from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import combinations
from typing import Any

from sams.data.forms import Reading, read_pairs, value_of
from sams.data.messages import text_of
from sams.data.records import Example, Message, Pair
from sams.data.sources import Row, numbered_rows
from sams.runtime.errors import UserError
from sams.study.settings import Form

LEAST_SCORE_RATIO = 2.0
BELOW_RATIO = "left_out_score_ratio"
EQUAL_SCORES = "left_out_equal_scores"

Answers = tuple[list[Message], list[tuple[str, float]]]
"""A prompt and its answers, each with its score."""


def published_pairs(form: Form, source: str, split: str, reading: Reading) -> Iterator[Pair]:
    """Yield the preference pairs of a data set in a named form.

    Args:
        form: form of the rows.
        source: file, hub id or folder.
        split: split of a hub data set, unless `source` names one.
        reading: counts of rows, and whether rows that cannot be read are skipped.

    Raises:
        UserError: a row cannot be read; the message names source, row and key.
    """
    if form == "shp":
        for answers in reading.each(numbered_rows(source, split), _post):
            yield from _shp_pair(answers, reading)
    elif form == "stack_exchange":
        for answers in reading.each(numbered_rows(source, split), _question):
            yield from _pairs_of_two(answers, reading)
    else:
        yield from read_pairs(source, split, reading)


def sft_targets(form: Form, source: str, split: str, reading: Reading) -> Iterator[Example]:
    """Yield the responses of a preference data set that SFT learns.

    Raises:
        UserError: a row cannot be read; the message names source, row and key.
    """
    if form == "shp":
        best: dict[str, tuple[float, str]] = {}
        for answers in reading.each(numbered_rows(source, split), _post):
            for _ in _shp_pair(answers, reading):
                [post], scored = answers
                response, score = _best(scored)
                if post["content"] not in best or score > best[post["content"]][0]:
                    best[post["content"]] = score, response
        for post_text, (_, response) in best.items():
            yield Example(_user_prompt(post_text), response)
    elif form == "stack_exchange":
        for prompt, scored in reading.each(numbered_rows(source, split), _question):
            yield Example(prompt, _best(scored)[0])
    else:
        for pair in read_pairs(source, split, reading):
            yield Example(pair.prompt, pair.chosen)


def _user_prompt(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _best(scored: list[tuple[str, float]]) -> tuple[str, float]:
    return max(scored, key=lambda answer: answer[1])


# --- SHP ------------------------------------------------------------------------------------------


def _post(row: Row, where: str) -> Answers:
    """Read a post and two comments, the preferred one first."""
    post = text_of(value_of(row, "history", where), f"{where}, key 'history'")
    scored = []
    for side in "AB":
        text = text_of(value_of(row, f"human_ref_{side}", where), f"{where}, key 'human_ref_{side}'")
        scored.append((text, _score(row, f"score_{side}", where, above=0)))
    label = value_of(row, "labels", where)
    if label not in (0, 1):
        raise UserError(f"expected 0 or 1, found {label!r:.40}", where=f"{where}, key 'labels'")
    if scored[0][0] == scored[1][0]:
        raise UserError("both comments are equal", where=where, remedy="drop the row or correct it")
    return _user_prompt(post), scored if label == 1 else scored[::-1]


def _shp_pair(answers: Answers, reading: Reading) -> Iterator[Pair]:
    prompt, ((chosen, high), (rejected, low)) = answers
    if max(high / low, low / high) < LEAST_SCORE_RATIO:
        reading.left_out[BELOW_RATIO] += 1
    else:
        yield Pair(prompt, chosen, rejected)


def _score(row: Row, key: str, where: str, above: float | None = None) -> float:
    value = value_of(row, key, where)
    if not isinstance(value, int | float) or (above is not None and value <= above):
        expected = "a number" if above is None else f"a number above {above:g}"
        raise UserError(f"expected {expected}, found {value!r:.40}", where=f"{where}, key '{key}'")
    return float(value)


# --- StackExchange --------------------------------------------------------------------------------


def _question(row: Row, where: str) -> Answers:
    """Read a question and its answers, without HTML."""
    question = text_of(_stripped(value_of(row, "question", where)), f"{where}, key 'question'")
    given = value_of(row, "answers", where)
    if not isinstance(given, list) or not given:
        raise UserError("expected a list of answers", where=f"{where}, key 'answers'")
    scored = []
    for number, answer in enumerate(given, start=1):
        location = f"{where}, answer {number}"
        if not isinstance(answer, dict):
            raise UserError("expected `text` and `pm_score`", where=location)
        text = text_of(_stripped(value_of(answer, "text", location)), f"{location}, key 'text'")
        scored.append((text, _score(answer, "pm_score", location)))
    return _user_prompt(question), scored


def _pairs_of_two(answers: Answers, reading: Reading) -> Iterator[Pair]:
    prompt, scored = answers
    for (first, one), (second, other) in combinations(scored, 2):
        if one == other or first == second:
            reading.left_out[EQUAL_SCORES] += 1
        else:
            yield Pair(prompt, *((first, second) if one > other else (second, first)))


class _Text(HTMLParser):
    """HTML parser that collects the text of each block and keeps `<code>` tags."""

    BLOCKS = ("p", "pre", "li", "ul", "ol", "blockquote", "div", "h1", "h2", "h3", "h4", "hr", "table", "tr")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [""]

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in self.BLOCKS:
            self.blocks.append("")
        elif tag == "br":
            self.blocks[-1] += "\n"
        elif tag == "code":
            self.blocks[-1] += "<code>"

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BLOCKS:
            self.blocks.append("")
        elif tag == "code":
            self.blocks[-1] += "</code>"

    def handle_data(self, data: str) -> None:
        self.blocks[-1] += data


def _stripped(html: Any) -> Any:
    """Return the text of an HTML string; other values are returned for the caller to check."""
    if not isinstance(html, str):
        return html
    parser = _Text()
    parser.feed(html)
    parser.close()
    return "\n\n".join(block.strip() for block in parser.blocks if block.strip())


# --- writers for rehearsals ----------------------------------------------------------------------------------


def rendered(form: Form) -> Callable[[Pair], Row]:
    """Return a function that writes a pair as a row of a form; rehearsals read the synthetic world through it."""
    writers: dict[str, Callable[[Pair], Row]] = {
        "hh": _as_dialogues,
        "messages": _as_messages,
        "shp": _as_post,
        "stack_exchange": _as_question,
    }
    return writers[form]


def _as_dialogues(pair: Pair) -> Row:
    speakers = {"user": "Human", "assistant": "Assistant"}
    prompt = "".join(f"\n\n{speakers[turn['role']]}: {turn['content']}" for turn in pair.prompt)
    return {
        "chosen": f"{prompt}\n\nAssistant: {pair.chosen}",
        "rejected": f"{prompt}\n\nAssistant: {pair.rejected}",
    }


def _as_messages(pair: Pair) -> Row:
    sides = {
        key: [*pair.prompt, {"role": "assistant", "content": text}]
        for key, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    }
    return {"prompt_id": pair.id, "prompt": pair.prompt[-1]["content"], **sides}


def _joined(pair: Pair) -> str:
    """Join the messages of a prompt, for forms without dialogues."""
    return " ".join(turn["content"] for turn in pair.prompt)


def _as_post(pair: Pair) -> Row:
    return {
        "post_id": pair.id,
        "history": _joined(pair),
        "human_ref_A": pair.chosen,
        "human_ref_B": pair.rejected,
        "labels": 1,
        "score_A": 6,
        "score_B": 2,
        "score_ratio": 3.0,
    }


def _as_question(pair: Pair) -> Row:
    answers = [
        {"text": f"<p>{text}</p>", "pm_score": score}
        for text, score in ((pair.chosen, 3), (pair.rejected, 1))
    ]
    return {"qid": pair.id, "question": f"<p>{_joined(pair)}</p>", "answers": answers}
