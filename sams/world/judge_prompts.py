"""Judge prompts for the world's MT-Bench, in FastChat's format and with its markers."""

from typing import Any

_TASK = (
    "You grade answers of an assistant. Hold {what} against what the instruction asks for{reference}. "
    "First say in a sentence what is right or wrong, then end with a rating from 1 (worthless) to 10 (right) "
    'in exactly this form: "[[rating]]", for example: "Rating: [[5]]".\n\n'
)
_QUESTION = "[Question]\n{question}\n\n"
_REFERENCE = "[The Start of Reference Answer]\n{ref_answer_1}\n[The End of Reference Answer]\n\n"
_ANSWER = "[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
_CONVERSATION = (
    "<|The Start of Assistant A's Conversation with User|>\n\n"
    "### User:\n{question_1}\n\n### Assistant A:\n{answer_1}\n\n"
    "### User:\n{question_2}\n\n### Assistant A:\n{answer_2}\n\n"
    "<|The End of Assistant A's Conversation with User|>"
)
_REFERENCES = (
    "<|The Start of Reference Answer|>\n\n"
    "### User:\n{question_1}\n\n### Reference answer:\n{ref_answer_1}\n\n"
    "### User:\n{question_2}\n\n### Reference answer:\n{ref_answer_2}\n\n"
    "<|The End of Reference Answer|>\n\n\n"
)


def judge_prompts() -> list[dict[str, Any]]:
    """Return the four prompts of single-answer grading: one or two turns, with and without reference."""
    one = _TASK.replace("{what}", "the answer")
    two = _TASK.replace("{what}", "the assistant's answer to the second question")
    alone, given = {"{reference}": ""}, {"{reference}": ", and against the reference answer"}
    prompts = {
        "single-v1": (_filled(one, alone) + _QUESTION + _ANSWER, "general"),
        "single-math-v1": (_filled(one, given) + _QUESTION + _REFERENCE + _ANSWER, "math"),
        "single-v1-multi-turn": (_filled(two, alone) + _CONVERSATION, "general"),
        "single-math-v1-multi-turn": (_filled(two, given) + _REFERENCES + _CONVERSATION, "general"),
    }
    return [
        {
            "name": name,
            "type": "single",
            "system_prompt": "You are a strict and fair examiner.",
            "prompt_template": template,
            "description": "Prompt for the local judge of the synthetic world",
            "category": category,
            "output_format": "[[rating]]",
        }
        for name, (template, category) in prompts.items()
    ]


def _filled(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace(key, value)
    return text
