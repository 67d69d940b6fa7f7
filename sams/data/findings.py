"""What to know about a study's data before believing its figures, in sentences from the stages' reports."""

from collections.abc import Mapping
from typing import Any

MOST_CUT = 0.1
"""Share of cut responses from which they are reported."""

ANSWERS = {"sft": 1, "train": 2, "test": 2, "validation": 2}
"""Responses of a row of each split."""


def of_records(report: Mapping[str, Any]) -> list[str]:
    """Return sentences on the records: contradictions, by the report of `prepare_data`."""
    return [
        f"Contradictions: {counts['contradictions']} of {counts['written']} pairs of {split} have the prompt and the "
        "answers of another pair, with the opposite label."
        for split, counts in report.items()
        if split in ANSWERS and counts.get("contradictions")
    ]


def of_tokens(report: Mapping[str, Any]) -> list[str]:
    """Return sentences on the token ids: cut responses, by the report of `tokenise`."""
    found = []
    for split, each in ANSWERS.items():
        counts = report.get(split, {})
        responses = each * counts.get("read", 0)
        if responses and counts["response_cut"] >= MOST_CUT * responses:
            found.append(
                f"Cut responses: {counts['response_cut'] / responses:.0%} of {responses} responses of {split} are "
                "longer than data.max_length leaves room for: the model does not see their ends."
            )
    return found


def of_leak(leak: Mapping[str, int]) -> list[str]:
    """Return a sentence on training prompts among the test pairs."""
    if not leak["prompts"]:
        return []
    return [
        f"Leaks: {leak['prompts']} prompts of the training pairs are also in {leak['test_pairs']} test pairs: "
        "test figures look better than they are."
    ]
