"""Fixtures with the judge prompts of the packages."""

from tests.judge.prompts import judge_prompts, pair_prompt, question, two_turns  # noqa: F401
