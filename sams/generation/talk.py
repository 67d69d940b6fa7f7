"""Look at what a run has learned: answers of start and trained model side by side, and a chat, on a terminal."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sams.data.forms import read_prompts
from sams.data.prompts import test_prompts
from sams.data.records import Message
from sams.generation.decode import Answer, Conversation, Decoder
from sams.runtime.errors import UserError
from sams.runtime.progress import quiet_loading
from sams.runtime.terminal import printable
from sams.study.settings import Decoding, ModelDecoding
from sams.study.study import BASE_METHOD

if TYPE_CHECKING:
    from rich.console import Console

MODEL = "model"
LINES = (".txt", ".md")
"""Files of prompts with one prompt a line."""


def model_of(run: Path) -> Path:
    """Return the exported model of a run (results/<study>/<setting>/<method>/seed<k>), or the folder if it is one.

    Raises:
        UserError: the run has none.
    """
    for folder in (run / MODEL, run):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(
        "no exported model",
        where=str(run),
        remedy="give a finished run, results/<study>/<setting>/<method>/seed<k>, or an exported folder",
    )


def start_of(run: Path) -> Path | None:
    """Return the start model of a run: that of method `sft` with the same seed; None if there is none."""
    start = run.resolve().parent.parent / BASE_METHOD / run.resolve().name / MODEL
    return start if (start / "config.json").is_file() and start != (run / MODEL).resolve() else None


def prompts_of_study(run: Path) -> Iterator[Conversation]:
    """Yield the prompts of the study's test pairs.

    Raises:
        UserError: the run's study has none.
    """
    data = run.resolve().parent.parent / "data"
    file = data / run.resolve().name / "test.parquet"  # of a study whose seeds have data of their own
    if not file.is_file():
        file = data / "test.parquet"
    if not file.is_file():
        raise UserError("no test pairs beside the run", where=str(file), remedy="give --prompts FILE")
    yield from (row["prompt"] for row in test_prompts(file, ["prompt"]))


def prompts_of(file: Path) -> Iterator[Conversation]:
    """Yield the prompts of a file: one a line in a text file, else rows with a prompt.

    Raises:
        UserError: the file cannot be read, or has none.
    """
    if file.suffix not in LINES:
        yield from read_prompts(str(file), "test")
        return
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=str(file)) from None
    if not lines:
        raise UserError("no prompt in it", where=str(file), remedy="write one a line")
    yield from ([Message(role="user", content=line)] for line in lines)


def sample(
    run: Path,
    prompts: Iterable[Conversation],
    *,
    count: int,
    decoding: Decoding | ModelDecoding,
    seed: int,
    console: Console,
    out: Path | None = None,
) -> None:
    """Print, and with `out` write as JSONL, the answers of start and trained model to the first `count` prompts."""
    models = {"start": start_of(run), "trained": model_of(run)}
    wanted = list(itertools.islice(prompts, count))
    answers: dict[str, list[Answer]] = {}
    for name, folder in models.items():
        if folder is not None:
            decoder = open_decoder(folder, decoding, seed)
            temperatures = [decoder.decoding.temperature] * len(wanted)
            answers[name] = decoder.answer(wanted, temperatures, "samples")
            del decoder
    for number, prompt in enumerate(wanted):
        console.rule(f"{number + 1} of {len(wanted)}", align="left")
        for message in prompt:
            _print(console, message["role"], message["content"], "dim")
        for name, given in answers.items():
            answer = given[number]
            cut = " (cut)" if answer.truncated else ""
            _print(console, f"{name}, {answer.tokens} tokens{cut}", answer.text, "green")
    if out is not None:
        with out.open("w", encoding="utf-8") as stream:
            for number, prompt in enumerate(wanted):
                row = {name: given[number].text for name, given in answers.items()}
                stream.write(json.dumps({"prompt": prompt, **row}, ensure_ascii=False) + "\n")


def chat(
    run: Path,
    *,
    decoding: Decoding | ModelDecoding,
    seed: int,
    console: Console,
    ask: Callable[[str], str] = input,
) -> None:
    """Answer what is typed, until an empty line or the end of the input. `/new` starts another conversation."""
    decoder = open_decoder(model_of(run), decoding, seed)
    console.print("An empty line ends; /new starts another conversation.", style="dim")
    history: Conversation = []
    while True:
        try:
            text = ask("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if not text:
            return
        if text == "/new":
            history = []
            continue
        turn = [*history, Message(role="user", content=text)]
        try:
            (answer,) = decoder.answer([turn], [decoder.decoding.temperature], f"turn {len(history)}")
        except UserError as error:  # the conversation fills the context
            console.print(f"{error}; /new starts another one", style="red", markup=False)
            continue
        _print(console, "model", answer.text, "green")
        history = [*turn, Message(role="assistant", content=answer.text)]


def open_decoder(folder: Path, decoding: Decoding | ModelDecoding, seed: int) -> Decoder:
    """Return a model that answers, on a GPU in bfloat16 if there is one."""
    logging.getLogger("generate").setLevel(logging.WARNING)
    quiet_loading()
    precision = "bfloat16" if torch.cuda.is_available() else "float32"
    return Decoder(folder, precision, decoding, seed)


def _print(console: Console, who: str, text: str, style: str) -> None:
    console.print(f"{who}:", style="bold", markup=False, highlight=False)
    console.print(printable(text), style=style, markup=False, highlight=False)
