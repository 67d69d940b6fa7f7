"""Questions of a benchmark: their files, and a model's answers in the form that the benchmark's scorer expects.

Stages `prepare_questions` and `generate_answers` use no other part of a benchmark's file, so that an edit of its
scoring or of its captions generates no answers again (`sams.study.code`).
"""

import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sams.data.prompts import TEST_PAIRS, test_prompts
from sams.data.records import Message
from sams.runtime.errors import UserError
from sams.runtime.files import write_json
from sams.runtime.jsonl import write_lines
from sams.scoring.inputs import Row
from sams.study.code import questions_of
from sams.study.settings import Decoding, World


class Decoded(Protocol):
    """A decoded answer: its text, its number of tokens, and whether it ends without a stop token."""

    text: str
    tokens: int
    truncated: bool


class Decoder(Protocol):
    """The parts of `sams.generation.decode.Decoder` that answer questions."""

    decoding: Decoding

    def answer(
        self, conversations: Sequence[list[Message]], temperatures: Sequence[float], label: str
    ) -> list[Any]:
        """Decoded each conversation, at its temperature, in the order given."""


class Prepared(NamedTuple):
    """Rows of a file of questions, and the path of the file that they are from; None: of the synthetic world."""

    rows: Sequence[Row]
    source: str | None


class QuestionSet:
    """Questions of one benchmark."""

    key: str = ""
    """Key of the benchmark in the settings, for errors."""

    def prepare(self, settings: Any, world: World | None) -> dict[str, Prepared]:
        """Return the files of the questions by name, from the files of the study or from the synthetic world.

        Each has been read by the scorer's own readers. Stage `prepare_questions` writes the files, `.json` as a list
        and `.jsonl` as lines.

        Args:
            settings: the benchmark's settings, of which only the `question_keys` count.
            world: the synthetic world; None for a study with its own data.

        Raises:
            UserError: a file is missing or broken; the message names key, file and row.
        """
        return {}

    def check(self, settings: Any, world: World | None) -> None:
        """Check the files that `prepare` and the scoring stage read, as far as they exist.

        Raises:
            UserError: as `prepare`.
        """
        self.prepare(settings, world)

    def read(self, folder: Path) -> tuple[list[Row], Path]:
        """Read the questions in the folder of stage `prepare_questions`; return the rows and their file."""
        raise NotImplementedError

    def answer(
        self, decoder: Decoder, rows: Sequence[Row], name: str
    ) -> tuple[list[Row], dict[str, Decoded]]:
        """Return the answers to rows in the benchmark's form, and each answer by a name for the facts.

        Args:
            decoder: answers prompts.
            rows: the questions.
            name: name of the model.
        """
        raise NotImplementedError

    def write(self, path: Path, answers: Sequence[Row]) -> None:
        """Write answers; as a JSON list if the name of the file ends with `.json`, else as JSON lines."""
        write_rows(path, answers)

    def where(self, key: str) -> str:
        """Return the name of a setting of the benchmark, for errors."""
        return f"benchmarks.{self.key}.{key}"

    @contextmanager
    def naming(self, key: str) -> Iterator[None]:
        """Put the name of a setting in front of the location that a `UserError` inside names."""
        try:
            yield
        except UserError as error:
            raise UserError(str(error), where=self.where(key)) from None

    def world(self, world: World | None, key: str) -> World:
        """Return the synthetic world, which a setting without a value needs.

        Raises:
            UserError: there is none.
        """
        if world is None:
            raise UserError(
                "a file is required, since the study has no synthetic world",
                where=self.where(key),
                remedy="give its path",
            )
        return world


class TestPrompts(QuestionSet):
    """Different prompts of the test pairs, each with the id of its first pair, and answers to them."""

    def read(self, folder: Path) -> tuple[list[Row], Path]:
        """Read rows {id, prompt} in the folder of the prepared data; return them and their file."""
        path = folder / TEST_PAIRS
        return list(test_prompts(path, ["id", "prompt"])), path

    def answer(
        self, decoder: Decoder, rows: Sequence[Row], name: str
    ) -> tuple[list[Row], dict[str, Decoded]]:
        """Return rows {id, answer, tokens, truncated}, and the answers by id."""
        answers = decoder.answer(
            [row["prompt"] for row in rows], [decoder.decoding.temperature] * len(rows), "prompts"
        )
        outputs = [
            {"id": row["id"], "answer": answer.text, "tokens": answer.tokens, "truncated": answer.truncated}
            for row, answer in zip(rows, answers, strict=True)
        ]
        return outputs, {row["id"]: answer for row, answer in zip(rows, answers, strict=True)}


QUESTIONS = TestPrompts()


def question_set(benchmark: str) -> QuestionSet:
    """Import the questions of a benchmark; `samples` are the test prompts."""
    found: QuestionSet = pkgutil.resolve_name(questions_of(benchmark))
    return found


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as a JSON list if the name of the file ends with `.json`, else as JSON lines."""
    if path.suffix == ".json":
        write_json(path, rows)
    else:
        write_lines(path, rows)


def user(content: str) -> Message:
    """Return a message of the user."""
    return {"role": "user", "content": content}


def sample_label(label: str, sample: int) -> str:
    """Return the label of a sample, counted from 0. The first has the label of a single sample."""
    return f"{label}, sample {sample + 1}" if sample else label
