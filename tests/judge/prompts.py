"""Judge prompts as the packages build them."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sams.study.settings import World
from sams.world.examples import alpaca_eval_instructions, mt_bench_questions, mt_bench_references
from sams.world.tasks import read_instruction

SINGLE = (
    "[Instruction]\nPlease act as an impartial judge.\n\n[Question]\n{question}\n\n"
    "[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
)
SINGLE_MATH = (
    "[Instruction]\nPlease act as an impartial judge.\n\n[Question]\n{question}\n\n"
    "[The Start of Reference Answer]\n{ref_answer_1}\n[The End of Reference Answer]\n\n"
    "[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
)
CONVERSATION = (
    "<|The Start of Assistant A's Conversation with User|>\n\n### User:\n{question_1}\n\n"
    "### Assistant A:\n{answer_1}\n\n### User:\n{question_2}\n\n### Assistant A:\n{answer_2}\n\n"
    "<|The End of Assistant A's Conversation with User|>"
)
REFERENCES = (
    "<|The Start of Reference Answer|>\n\n### User:\n{question_1}\n\n"
    "### Reference answer:\n{ref_answer_1}\n\n### User:\n{question_2}\n\n"
    "### Reference answer:\n{ref_answer_2}\n\n<|The End of Reference Answer|>\n\n\n"
)
# FastChat's prompts for single-answer grading, the introductions shortened.
FASTCHAT_PROMPTS = {
    "single-v1": SINGLE,
    "single-math-v1": SINGLE_MATH,
    "single-v1-multi-turn": CONVERSATION,
    "single-math-v1-multi-turn": REFERENCES + CONVERSATION,
}


@pytest.fixture(scope="session")
def judge_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge_prompts.jsonl."""
    path = tmp_path_factory.mktemp("prompts") / "judge_prompts.jsonl"
    rows = [
        {
            "name": name,
            "type": "single",
            "system_prompt": "You are a helpful assistant.",
            "prompt_template": template,
            "output_format": "[[rating]]",
        }
        for name, template in FASTCHAT_PROMPTS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def question() -> tuple[str, str]:
    """An instruction of the synthetic world and its right answer, of two words or more."""
    for instruction in alpaca_eval_instructions(World()):
        reading = read_instruction(instruction)
        if reading is not None and " " in reading.right:
            return instruction, reading.right
    raise AssertionError("the world has no such instruction")


@pytest.fixture(scope="session")
def two_turns() -> tuple[list[str], list[str]]:
    """Both questions of a conversation of the synthetic world, and the right answers."""
    reference = mt_bench_references(World())[0]
    asked = {row["question_id"]: row["turns"] for row in mt_bench_questions(World())}
    return asked[reference["question_id"]], reference["choices"][0]["turns"]


@pytest.fixture(scope="session")
def pair_prompt() -> Callable[[str, str, str], str]:
    """AlpacaEval's judge prompt, filled in by the package's rule."""
    package = importlib.util.find_spec("alpaca_eval")
    assert package is not None and package.origin is not None
    configs = Path(package.origin).parent / "evaluators_configs"
    text = (configs / "alpaca_eval_clf_gpt4_turbo" / "alpaca_eval_clf.txt").read_text()
    user = text.split("<|im_start|>user\n", 1)[1].split("<|im_end|>", 1)[0].strip()

    def fill(instruction: str, first: str, second: str) -> str:
        values = {"instruction": instruction, "output_1": first, "output_2": second}
        prompt = user
        for key, value in values.items():
            prompt = prompt.replace("{" + key + "}", value, 1)
        return prompt

    return fill
