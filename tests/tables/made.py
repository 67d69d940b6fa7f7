"""Results folders and studies made by hand, small enough to check a table with a pencil."""

import json
from pathlib import Path
from typing import Any

from sams.study.files import load_study
from sams.study.study import Study


def study(methods: list[str], seeds: list[int], **changes: Any) -> Study:
    """A study of the synthetic world with these methods and seeds."""
    settings: dict[str, Any] = {
        "study": "tiny",
        "setting": "world",
        "seeds": seeds,
        "methods": methods,
        "model": {"architecture": {"model_type": "llama"}, "tokenizer": "words"},
        "data": {"world": {}, "max_length": 64, "max_prompt_length": 32},
        "sft": {},
        "preference": {},
        "method_settings": {method: {} for method in methods if method != "sft"},
        "benchmarks": {"alpaca_eval": {}, "mt_bench": {}},
    }
    return load_study({**settings, **changes})


def write(root: Path, files: dict[str, Any]) -> Path:
    """Write files of JSON (`*.jsonl`: a list of lines) below `root` and return it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = content if name.endswith("jsonl") else [content]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def train(accuracy: float, error: float, seconds: float = 10.0) -> dict[str, Any]:
    """A train_metrics.json of a preference method."""
    return {
        "test_accuracy": accuracy,
        "test_accuracy_se_items": error,
        "chosen_reward": 0.5,
        "chosen_reward_se_items": 0.25,
        "chosen_logp": -20.0,
        "chosen_logp_se_items": 1.0,
        "train_seconds": seconds,
        "peak_memory_mb": 512.0,
        "world_size": 2,
    }


def alpaca_eval(rate: float, error: float, **changes: Any) -> dict[str, Any]:
    """A metrics.json of AlpacaEval."""
    found = {
        "win_rate": rate,
        "standard_error": error,
        "length_controlled_winrate": rate - 1.0,
        "lc_standard_error": error + 1.0,
        "n_total": 805,
        "avg_length": 24,
        "judge": "local",
    }
    return {**found, **changes}


def mt_bench(average: float, error: float) -> dict[str, Any]:
    """A metrics.json of MT-Bench."""
    return {
        "turn_1": average,
        "turn_2": average,
        "average": average,
        "average_standard_error": error,
        "categories": {"math": average},
        "n_judgments": 160,
        "n_failed": 0,
        "judge": "local",
    }
