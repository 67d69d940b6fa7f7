"""AlpacaEval's prompts and preferences compared with those of the package, which runs with its own client."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sams.scoring.alpaca_eval import score_alpaca_eval
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge, World
from sams.world.examples import alpaca_eval_instructions
from sams.world.tasks import read_instruction
from tests.judge.endpoint import KEY, Endpoint, serving

PROGRAM = """
import json, sys
import pandas as pd
from alpaca_eval import evaluate
base, ours, annotations = (json.load(open(path)) if path.endswith(".json") else path for path in sys.argv[1:4])
leaderboard, rows = evaluate(
    model_outputs=pd.DataFrame(ours, dtype=object), reference_outputs=pd.DataFrame(base, dtype=object),
    caching_path=annotations, output_path=None, precomputed_leaderboard=None, is_return_instead_of_print=True,
    annotation_kwargs={"num_procs": 2}, fn_metric="get_winrate", sort_by="win_rate",
)
json.dump({"metrics": leaderboard.iloc[0].to_dict(), "rows": rows}, open(sys.argv[4], "w"), default=float)
"""

# Texts that a prompt's form could trip over: names in braces, markers, quotes, other scripts.
TEXTS = [
    "{output_2}",
    '"""',
    "a\\n{b}",
    "{instruction} {output_1}",
    "日本 \u2028 ø",
    "  blank  ",
    "{}",
    "x" * 3000,
]


def inputs(folder: Path) -> tuple[Path, Path]:
    """Write outputs of a baseline and of a model on instructions of the synthetic world."""
    base, ours = [], []
    for number, instruction in enumerate(alpaca_eval_instructions(World())[:32]):
        reading = read_instruction(instruction)
        assert reading is not None
        said = reading.right if number % 3 else TEXTS[number // 3 % len(TEXTS)]
        baseline = TEXTS[number % len(TEXTS)] if number % 4 else reading.right
        base.append({"instruction": instruction, "output": baseline, "generator": "base", "dataset": "d"})
        ours.append({"instruction": instruction, "output": said, "generator": "ours", "dataset": "d"})
    paths = folder / "base.json", folder / "ours.json"
    for path, rows in zip(paths, (base, ours), strict=True):
        path.write_text(json.dumps(rows))
    return paths


def requests(endpoint: Endpoint) -> set[str]:
    return {json.dumps(request, sort_keys=True) for _, request in endpoint.requests}


def test_prompts_preferences_and_figures_are_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    base, ours = inputs(tmp_path)
    with serving(Endpoint()) as endpoint:
        clients = tmp_path / "clients.yaml"
        clients.write_text(yaml.safe_dump({"default": [{"base_url": endpoint.base_url, "api_key": KEY}]}))
        settings = {
            "OPENAI_CLIENT_CONFIG_PATH": str(clients),
            "IS_ALPACA_EVAL_2": "True",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path),
        }
        done = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-c", PROGRAM),
                *(base, ours, tmp_path / "annotations", tmp_path / "out.json"),
            ],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        theirs = requests(endpoint)
        endpoint.requests.clear()

        recipe = ScoreRecipe(
            judge=Judge(kind="openai", base_url=endpoint.base_url, model="gpt-4-1106-preview"), world=None
        )
        metrics = score_alpaca_eval(ours, base, recipe=recipe, annotations_out=tmp_path / "ours_out.json")
        assert requests(endpoint) == theirs and len(theirs) == 32 - metrics["n_identical"]
    package: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    found = {
        row["instruction"]: row["preference"] for row in json.loads((tmp_path / "ours_out.json").read_text())
    }
    assert found == pytest.approx(
        {row["instruction"]: row["preference"] for row in package["rows"]}, abs=1e-12
    )
    for key in (
        "win_rate",
        "standard_error",
        "discrete_win_rate",
        "n_wins",
        "n_wins_base",
        "n_draws",
        "n_total",
    ):
        assert metrics[key] == pytest.approx(package["metrics"][key]), key
    assert metrics["avg_length"] == package["metrics"]["avg_length"]
