"""Judge prompts as the packages build them, for these tests too."""

from tests.judge.prompts import judge_prompts, pair_prompt, question, two_turns  # noqa: F401
