"""Numbers and lengths of a study's pairs: counted if the data is on this machine, otherwise assumed and reported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sams.data.sources import numbered_rows
from sams.runtime.errors import UserError
from sams.runtime.files import read_json

if TYPE_CHECKING:
    from sams.study.study import Study

# Mean tokens of prompt and response by data set, at four characters a token. HH: measured on 3,000 pairs of its
# helpful part. UltraFeedback's variants: responses as long as a Llama-3.1-8B's to AlpacaEval (2,034 characters). Its
# prompts, and SHP, are guesses.
ASSUMED: dict[str, tuple[float, float]] = {
    "princeton-nlp/": (200, 500),
    "Anthropic/hh-rlhf": (75, 66),
    "stanfordnlp/SHP": (200, 120),
}


@dataclass(frozen=True)
class Facts:
    """Sizes of a study's data.

    Attributes:
        sft: number of supervised examples.
        train: number of training pairs.
        test: number of test pairs.
        prompt: mean tokens of a prompt.
        chosen: mean tokens of a chosen response.
        rejected: mean tokens of a rejected response.
        notes: sources of these figures.
    """

    sft: int
    train: int
    test: int
    prompt: float
    chosen: float
    rejected: float
    notes: tuple[str, ...] = ()

    def pair(self, *, packed: bool) -> tuple[float, float]:
        """Return the tokens of a pair and the predicted ones among them; a packed pair computes its prompt once."""
        answers = self.chosen + self.rejected
        return (1 if packed else 2) * self.prompt + answers, answers

    @property
    def example(self) -> tuple[float, float]:
        """Tokens of a prompt with one response, and the predicted ones among them."""
        return self.prompt + self.chosen, self.chosen


def facts_of(
    study: Study,
    results: Path,
    *,
    pairs: int | None = None,
    prompt_tokens: float | None = None,
    response_tokens: float | None = None,
) -> Facts:
    """Return the sizes of a study's data; given values take precedence over counted and assumed ones.

    Raises:
        UserError: the number of pairs is unknown.
    """
    report = results / study.study / study.setting / "tokens" / "report.json"
    given = {"prompt": prompt_tokens, "chosen": response_tokens, "rejected": response_tokens}
    if report.is_file():
        counted = read_json(report)
        counts = {split: counted[split]["kept"] for split in ("sft", "train", "test")}
        lengths = {name: counted["train"][f"{name}_ids"]["mean"] for name in given}
        notes = [f"Pairs and their tokens are counted in {report}."]
    else:
        counts, notes = _counts(study, pairs)
        lengths, note = _lengths(study)
        notes.append(note)
    if any(given.values()):
        lengths |= {name: value for name, value in given.items() if value is not None}
        notes.append(
            f"Given lengths: prompt {lengths['prompt']:.0f}, responses {lengths['chosen']:.0f} tokens."
        )
    return Facts(**counts, **lengths, notes=tuple(notes))


def _counts(study: Study, pairs: int | None) -> tuple[dict[str, int], list[str]]:
    data = study.data
    if data.world is not None:
        world = data.world
        return {"sft": world.sft_examples, "train": world.train_pairs, "test": world.test_pairs}, []
    published = data.published_rows
    train = pairs or _rows(data.train) or published.get("train")
    if train is None:
        raise UserError(
            "the number of pairs is not known on this machine",
            where="data.train",
            remedy="give --pairs, set data.published_rows, or run the rule `tokenise` first",
        )
    test: int | None
    if isinstance(data.test, float):
        test = max(1, round(data.test * train))
        train -= test
    else:
        test = _rows(data.test) or published.get("test")
    notes = [] if test is not None else ["The size of the test split is not known; 2,000 pairs are assumed."]
    sft = train if data.sft is None else _rows(data.sft)
    if sft is None:
        sft = train
        notes.append(f"The size of {data.sft} is not known; as many examples as pairs are assumed.")
    if published and not _rows(data.train):
        notes.append("The number of pairs is the published one, before any pair is left out.")
    return {"sft": sft, "train": train, "test": test or 2000}, notes


def _rows(source: str | None) -> int | None:
    """Return the number of rows of a local file, or None for other sources."""
    if source is None or not Path(source).is_file():
        return None
    return sum(1 for _ in numbered_rows(source, "train"))


def _lengths(study: Study) -> tuple[dict[str, Any], str]:
    data = study.data
    known = next((name for name in ASSUMED if data.train is not None and data.train.startswith(name)), None)
    if known is not None:
        prompt, response = ASSUMED[known]
        why = f"assumed for {known.rstrip('/')}"
    else:
        prompt, response = data.max_prompt_length / 2, (data.max_length - data.max_prompt_length) / 2
        why = "assumed: half of what the limits allow"
    note = (
        f"Mean tokens of prompt and response: {prompt:.0f} and {response:.0f} ({why}; --prompt-tokens, "
        "--response-tokens)."
    )
    return {"prompt": prompt, "chosen": response, "rejected": response}, note
