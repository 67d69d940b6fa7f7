"""Prompts of AlpacaEval's annotator, and its figures by the package, which runs in a child process.

The child works in a temporary folder with a hub cache of its own, so that nothing is written into the installation of
the package or the caches of the user.
"""

import functools
import importlib.util
import os
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sams.judge.calls import Call, label_call
from sams.runtime.files import read_json, sha256_of, write_json
from sams.runtime.processes import end_child, start_child
from sams.scoring.inputs import Row, read_text

if TYPE_CHECKING:  # the child is started by name; this import makes its code part of the digest
    import sams.scoring.alpaca_eval_child  # noqa: F401

BOOTSTRAP_SAMPLES = 200
LABELS = ("m", "M")
TEMPLATE = "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
START, END = "<|im_start|>", "<|im_end|>"


class PairCall(NamedTuple):
    """A call for a pair of outputs, and whether the model's output is shown first."""

    call: Call
    switched: bool

    def preference(self, value: float) -> float:
        """Return the preference from 1 (baseline) to 2 (model) of a judgment of this call."""
        return 1 + value if self.switched else 2 - value


def pair_calls(
    name: str, reference: Row, output: Row, *, log_probs: bool, both_orders: bool = False
) -> list[PairCall]:
    """Return the calls that judge an output against the baseline's.

    The first has the prompt and the random order of alpaca_eval 0.6.2. With log-probs it is the only one, unless both
    orders are requested; without them, there is one call for each order.
    """
    instruction, baseline, ours = reference["instruction"], reference["output"], output["output"]
    # RandomSwitchTwoColumnsProcessor of the package, with its seed.
    drawn = random.Random(f"is_switched_outputs{instruction}0").choices([False, True], k=1)[0]
    found = []
    both = both_orders or not log_probs
    for switched in [drawn, not drawn] if both else [drawn]:
        messages = _messages(instruction, *((ours, baseline) if switched else (baseline, ours)))
        order = f", order {2 if switched else 1}" if both else ""
        found.append(PairCall(label_call(f"{name}{order}", messages, LABELS, log_probs=log_probs), switched))
    return found


def _messages(instruction: str, first: str, second: str) -> list[dict[str, str]]:
    """Fill in the template by the rules of the package's `make_prompts` and `prompt_to_chatml`."""
    prompt = _template()
    values = {"instruction": instruction, "output_1": first, "output_2": second}
    # The first occurrence only: a text may hold a name in braces.
    for key in dict.fromkeys(re.findall(r"{([^ \s]+?)}", prompt)):
        prompt = prompt.replace("{" + key + "}", values[key], 1)
    messages = []
    for part in prompt.strip().split(START)[1:]:
        role, content = part.split("\n", 1)
        messages.append({"content": content.split(END, 1)[0].strip(), "role": role.strip()})
    return messages


@functools.cache
def _template() -> str:
    package = importlib.util.find_spec("alpaca_eval")
    assert package is not None and package.origin is not None
    return (Path(package.origin).parent / TEMPLATE).read_text(encoding="utf-8")


def compute_figures(
    annotations: Sequence[Sequence[Row]], difficulty: Path | None = None, bootstrap: int = BOOTSTRAP_SAMPLES
) -> list[dict[str, Any]]:
    """Return the package's figures of models.

    Args:
        annotations: of each model, rows in AlpacaEval's form in the order of the instructions; a preference of None
            is missing.
        difficulty: checked difficulty table; None for no length control.
        bootstrap: samples for the standard error of the length-controlled win rate; 0 for none.
    """
    with tempfile.TemporaryDirectory(prefix="sams-alpaca-eval-") as name:
        folder = Path(name)
        if difficulty is not None:
            _make_hub_cache(folder / "hub", difficulty)
        job = {
            "annotations": [list(rows) for rows in annotations],
            "length_control": difficulty is not None,
            "bootstrap": bootstrap,
        }
        write_json(folder / "job.json", job)
        process = start_child(["sams.scoring.alpaca_eval_child", str(folder)], env=_environment(folder))
        try:
            status = process.wait()
        finally:
            end_child(process)
        if status:
            raise RuntimeError(f"alpaca_eval ended with status {status}; its messages are above")
        figures: list[dict[str, Any]] = read_json(folder / "result.json")
    return figures


def _make_hub_cache(hub: Path, difficulty: Path) -> None:
    """Write the table in the layout of the hub's cache, from which the package reads it."""
    commit = sha256_of(difficulty)[:40]
    repository = hub / "datasets--tatsu-lab--alpaca_eval"
    for path, text in (
        (repository / "refs" / "main", commit),
        (repository / "snapshots" / commit / "df_gamed.csv", read_text(difficulty)),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")


def _environment(folder: Path) -> dict[str, str]:
    return {
        **{key: value for key, value in os.environ.items() if key != "DATASETS_FORCE_DOWNLOAD"},
        "IS_ALPACA_EVAL_2": "True",
        "PYTHON_DOTENV_DISABLED": "1",
        "HF_HOME": str(folder),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
