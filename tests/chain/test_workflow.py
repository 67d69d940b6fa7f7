"""The workflow as people run it: dry runs of every study, and the whole chain in miniature."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import transformers
import yaml
from pyarrow import parquet

from sams.data.forms import read_pairs
from sams.study.files import load_study, read_settings
from sams.study.settings import World
from sams.tables.verify import verify
from sams.world.examples import alpaca_eval_instructions
from tests.conftest import ROOT

STUDIES = sorted((ROOT / "config" / "studies").glob("*.yaml"))

# The default study with everything small, and one method besides SFT: a rehearsal has many. Its figures mean nothing;
# that all of them are there does.
MINIATURE = {
    "study": "miniature",
    "methods": ["sft", "dpo-sams"],
    "data": {"world": {"sft_examples": 640, "train_pairs": 192, "test_pairs": 64}},
    "model": {"architecture": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}},
    "sft": {"epochs": 1},
    "preference": {"evaluations": 2, "checkpoint_every": 1},
    "benchmarks": {
        "alpaca_eval": {"decoding": {"max_new_tokens": 8}},
        "mt_bench": {"decoding": {"max_new_tokens": 8}},
        "own_prompts": {"prompts": "prompts.jsonl", "decoding": {"max_new_tokens": 8}},
    },
    "launch": {"nproc_per_node": 1, "device": "cpu"},
}


def snakemake(folder: Path, *arguments: str, status: int = 0, seconds: int = 3000) -> str:
    """Run snakemake with `folder` as working directory; return what it printed."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder),
            *("--cores", "2", "--profile", ROOT / "profiles/default", *arguments),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    output = done.stdout + done.stderr
    assert done.returncode == status, output[-6000:]
    return output


def jobs(output: str) -> dict[str, int]:
    """Job counts of a dry run's table."""
    found = {}
    for line in output.partition("Job stats:")[2].splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            found[words[0]] = int(words[1])
        elif found and not words:
            break
    return found


# A dry run takes seconds: three studies and a rehearsal stand for the others (tests/study/test_studies.py).
QUICK = ((None, False), ("own_data", False), ("table1_gemma_v02", True))


@pytest.mark.parametrize(
    ("study", "rehearse"),
    [
        pytest.param(
            study,
            rehearse,
            id=f"{study.stem if study else 'default'}{'-rehearsal' if rehearse else ''}",
            marks=[] if (study and study.stem, rehearse) in QUICK else [pytest.mark.slow],
        )
        for study in (None, *STUDIES)
        for rehearse in (False, True)
    ],
)
def test_dry_run_of_every_study_needs_no_gpu_no_key_and_no_network(
    study: Path | None, rehearse: bool, tmp_path: Path
) -> None:
    settings = read_settings(
        [ROOT / "config" / "config.yaml", *([study] if study else [])], {"rehearse": rehearse}
    )
    made = load_study(settings)
    arguments = ["--configfile", str(study)] if study else []
    counts = jobs(snakemake(tmp_path, "-n", *arguments, "--config", f"rehearse={str(rehearse).lower()}"))
    assert counts["preflight"] == 1
    seeds = len(made.seeds)
    assert counts.get("train_preference", 0) == len(made.preference_methods) * seeds
    assert counts.get("show_pairs", 0) == len(made.preference_methods)
    assert counts.get("train_crossfit", 0) == 2 * len(made.selective_methods)
    assert counts.get("compute_reference", 0) == bool(made.preference_methods) * seeds
    assert counts["export_model"] == len(made.exported_methods) * seeds
    assert counts.get("train_sft", 0) == (made.sft is not None) * seeds
    assert counts.get("assess", 0) == (made.chosen is not None) * seeds
    scored = made.benchmarks.alpaca_eval is not None
    assert counts.get("score_alpaca_eval", 0) == scored * len(made.methods)
    assert counts.get("show_answers", 0) == scored * (2 * len(made.methods) - 3)
    assert counts.get("generate_samples", 0) == len(made.sampled_methods)
    assert counts.get("fetch_benchmark_inputs", 0) == (5 if scored and made.data.world is None else 0)


def test_a_workflow_killed_in_its_first_job_goes_on_with_all_others(tmp_path: Path) -> None:
    """Snakemake alone would make the unfinished file again, and nothing else, and end with status 0."""
    found = tmp_path / "results/tiny/preflight.json"
    found.parent.mkdir(parents=True)
    found.write_text("{}")
    marker = base64.urlsafe_b64encode(b"results/tiny/preflight.json").decode()
    (tmp_path / ".snakemake/incomplete").mkdir(parents=True)
    (tmp_path / ".snakemake/incomplete" / marker).touch()
    counts = jobs(snakemake(tmp_path, "-n", "sft"))
    assert counts["preflight"] == counts["prepare_data"] == counts["train_sft"] == 1


@pytest.mark.parametrize(
    ("target", "present", "absent"),
    [
        # A dry run takes 4 s: the parts of others.
        pytest.param("sft", "train_sft", "compute_reference", marks=pytest.mark.slow),
        ("pretrain", "pretrain_scheduler", "train_preference"),
        ("dpo", "train_preference", "score_mt_bench"),
        pytest.param("train_all", "train_preference", "generate_alpaca_eval", marks=pytest.mark.slow),
        ("score_all", "score_mt_bench", "main_table"),
        pytest.param("tables", "main_table", "all", marks=pytest.mark.slow),
    ],
)
def test_targets(target: str, present: str, absent: str, tmp_path: Path) -> None:
    counts = jobs(snakemake(tmp_path, "-n", target))
    assert present in counts
    assert absent not in counts


def test_a_mistake_in_the_config_stops_the_parse_with_one_line(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({"sft": {"learning_rate": "5e-7"}}))
    output = snakemake(tmp_path, "-n", "--configfile", str(file), status=1)
    assert "write 5.0e-7" in output and "Traceback" not in output


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The chain in miniature, run to its tables in a folder with a space and an umlaut in its name."""
    folder = tmp_path_factory.mktemp("chain") / "a folder für alles"
    folder.mkdir()
    config = folder / "miniature.yaml"
    config.write_text(yaml.safe_dump(MINIATURE))
    asked = [json.dumps({"prompt": text}) for text in alpaca_eval_instructions(World())[:6]]
    (folder / "prompts.jsonl").write_text("\n".join(asked))
    # SFT by torchrun, and by a launch setting on the command line; the other jobs in one process each.
    snakemake(folder, "sft", "--configfile", str(config), "--config", "launch={nproc_per_node: 2}")
    snakemake(folder, "--configfile", str(config))
    yield folder, str(config)
    shutil.rmtree(folder)


def test_the_chain_fills_every_cell_of_the_main_table(miniature: tuple[Path, str]) -> None:
    folder, _ = miniature
    table = pd.read_csv(folder / "results/miniature/tables/main.csv").set_index("method")
    assert list(table.index) == ["sft", "dpo-sams"]
    scores = ["length_controlled_winrate", "win_rate", "mt_bench"]
    assert table[[*scores, *(f"{score}_se_items" for score in scores)]].notna().all(axis=None)
    assert table.loc["sft", "own_prompts"] == 50 and 0 <= table.loc["dpo-sams", "own_prompts"] <= 100
    page = (folder / "results/miniature/tables/answers/dpo-sams/with_sft.html").read_text()
    assert page.count('<article data-on="own_prompts"') == 6 and "sft, the baseline" in page
    preference = ["test_accuracy", "chosen_reward", "chosen_logp"]
    assert table.loc["sft", preference].isna().all()
    assert table.loc["dpo-sams", preference].notna().all()
    assert table[["train_seconds", "peak_memory_mb"]].gt(0).all(axis=None)
    assert table.filter(like="_se_seeds").isna().all(axis=None)
    for name in (
        "main.md",
        "main.html",
        "main.tex",
        "comparisons.csv",
        "difficulty.svg",
        "noise.svg",
        "learning_curves.svg",
        "selection.png",
        "cost.svg",
        "answers/dpo-sams/with_sft.html",
        "samples.html",
        "pairs/dpo-sams.html",
        "pair_margins.svg",
    ):
        assert (folder / "results/miniature/tables" / name).stat().st_size > 0


def test_the_results_of_the_chain_hold(miniature: tuple[Path, str]) -> None:
    folder, config = miniature
    study = load_study(read_settings([ROOT / "config" / "config.yaml", Path(config)]))
    findings = verify(folder / "results/miniature", study)
    # A checkout that is being worked on has edited files, and a copy of it no commit at all.
    assert not [found for found in findings if not found.holds and found.check != "commit"]
    checks = {"files", "made from", "sources", "recipe", "figures", "code", "environment", "commit", "tables"}
    assert {found.check for found in findings} == checks


def test_figures_are_of_all_items(miniature: tuple[Path, str]) -> None:
    folder, _ = miniature
    for method in ("sft", "dpo-sams"):
        seed = folder / f"results/miniature/world/{method}/seed0"
        assert json.loads((seed / "alpaca_eval/metrics.json").read_text())["n_total"] == 805
        mt_bench = json.loads((seed / "mt_bench/metrics.json").read_text())
        assert (mt_bench["n_judgments"], mt_bench["n_failed"]) == (160, 0)
        assert len(mt_bench["categories"]) == 8


def test_mlflow_holds_a_finished_run_of_every_training_and_scoring_job(miniature: tuple[Path, str]) -> None:
    import mlflow

    from sams.tables.from_mlflow import main_from_mlflow

    folder, _ = miniature
    uri = f"sqlite:///{folder}/results/mlflow.db"
    mlflow.set_tracking_uri(uri)
    runs = mlflow.search_runs(experiment_names=["sams-miniature"])
    assert isinstance(runs, pd.DataFrame)
    assert set(runs.status) == {"FINISHED"}
    expected = {"train_sft": 1, "pretrain_scheduler": 1, "train_preference": 1}
    expected |= {"score_alpaca_eval": 2, "score_mt_bench": 2, "score_own_prompts": 2}
    assert runs["tags.stage"].value_counts().to_dict() == expected
    sft_run = runs.loc[runs["tags.stage"] == "train_sft", "run_id"].item()
    scheduled = runs[runs["tags.stage"] == "train_preference"].iloc[0]
    assert scheduled["tags.method"] == "dpo-sams" and sft_run in scheduled["tags.upstream_run_id"]
    assert scheduled["params.training.beta"] == "0.1"
    curve = mlflow.MlflowClient(uri).get_metric_history(scheduled.run_id, "rewards/margins")
    assert [point.step for point in curve] == [64, 128, 192]

    built = pd.read_csv(folder / "results/miniature/tables/main.csv")
    study = load_study(read_settings([ROOT / "config" / "config.yaml", folder / "miniature.yaml"]))
    rebuilt = main_from_mlflow(study, uri)
    pd.testing.assert_frame_equal(rebuilt.reset_index(drop=True), built, check_dtype=False, rtol=1e-9)


def test_adapters_are_merged_into_the_model_that_they_started_from(tmp_path: Path) -> None:
    printed = snakemake(tmp_path, "-n", "-p", "--config", "preference={lora: {r: 4}}", "sft={lora: {r: 4}}")
    commands = [line for line in printed.splitlines() if "-m sams.training.export " in line]
    bases = {re.search(r"results/\S+/(\S+)/seed0/trained", line)[1]: "--model" in line for line in commands}  # type: ignore[index]
    assert bases.pop("sft") is False and bases and all(bases.values())
    assert all("/sft/seed0/model" in line for line in commands)


def test_nothing_runs_again_and_a_changed_beta_runs_what_depends_on_it(miniature: tuple[Path, str]) -> None:
    folder, config = miniature
    assert "Nothing to be done" in snakemake(folder, "-n", "--configfile", config)
    more = folder / "beta.yaml"
    more.write_text(yaml.safe_dump({"method_settings": {"dpo-sams": {"beta": 0.2}}}))
    counts = jobs(snakemake(folder, "-n", "--configfile", config, str(more)))
    assert counts["train_preference"] == 1
    assert counts["export_model"] == 1
    assert not {"train_sft", "compute_reference", "pretrain_scheduler", "tokenise"} & set(counts)
    launch = folder / "launch.yaml"
    launch.write_text(yaml.safe_dump({"launch": {"nproc_per_node": 2, "device": "cpu"}}))
    again = set(jobs(snakemake(folder, "-n", "--configfile", config, str(launch))))
    assert not {"train_sft", "train_preference", "score_mt_bench"} & again


def test_the_report_is_made(miniature: tuple[Path, str]) -> None:
    folder, config = miniature
    snakemake(folder, "--configfile", config, "--report", "report.zip")
    assert (folder / "report.zip").stat().st_size > 10_000


@pytest.mark.slow  # five processes more; generation/test_on_policy.py tests the stage
def test_pairs_of_the_models_own_answers_are_sampled(miniature: tuple[Path, str]) -> None:
    folder, config = miniature
    results = folder / "results/miniature/world"
    tokenizer = transformers.AutoTokenizer.from_pretrained(results / "tokens/tokenizer")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    judge = transformers.LlamaConfig(
        vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes
    )
    transformers.LlamaForSequenceClassification(judge).save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    asked = parquet.read_table(results / "data/train.parquet")["prompt"].to_pylist()[:8]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
    overlay = folder / "on_policy.yaml"
    decoding = {"max_new_tokens": 6}
    settings = {"prompts": "prompts.jsonl", "reward_model": "reward", "decoding": decoding}
    overlay.write_text(yaml.safe_dump({"on_policy": settings}))

    output = snakemake(folder, "on_policy", "--configfile", config, str(overlay))
    assert "sample_pairs" in output and "train_sft" not in output
    pairs = list(read_pairs(str(results / "sft/seed0/on_policy/pairs.jsonl"), "train"))
    assert pairs and all(pair.prompt in asked and pair.chosen != pair.rejected for pair in pairs)
    meta = json.loads((results / "sft/seed0/on_policy/pairs.jsonl.meta.json").read_text())
    assert meta["decoding"]["samples"] == 5 and meta["n_prompts"] == 8
