"""The plan of a study: its jobs compared with Snakemake's, its figures and its warnings."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sams.planning.data import facts_of
from sams.planning.memory import RESERVE, Passes, Simulation
from sams.planning.parts import Plan
from sams.planning.plan import GIB, Planner
from sams.planning.show import print_plan
from sams.runtime.errors import UserError
from sams.runtime.gpus import GPUS, Gpu, gpu_named
from sams.study.files import load_study, read_settings
from sams.study.settings import Lora
from sams.study.study import Study
from sams.training.memory import MEMORY_SHARE
from sams.training.tuning import MODES
from tests.conftest import ROOT

STUDIES = ROOT / "config" / "studies"
SMALL: dict[str, Any] = {
    "methods": ["sft", "dpo", "dpo-sams"],
    "model": {"precision": "bfloat16", "architecture": {"num_hidden_layers": 1}},
    "launch": {"strategy": "fsdp2", "nproc_per_node": 8},
    "data": {"max_length": 64, "max_prompt_length": 32},
}


def study(name: str, **more: Any) -> Study:
    files = [ROOT / "config" / "config.yaml", *([STUDIES / f"{name}.yaml"] if name else [])]
    return load_study(read_settings(files, more))


def planner(settings: Study, results: Path, gpu: Gpu = GPUS["H100"], **more: Any) -> Planner:
    return Planner(
        settings, facts_of(settings, results), gpu=("H100", gpu), world=8, use=None, results=results, **more
    )


@pytest.mark.parametrize(
    "name",
    [
        "table3_selective",
        "checkpoints",
        # A dry run takes 4 s.
        pytest.param("table1_llama3_instruct", marks=pytest.mark.slow),
        pytest.param("table2_hh", marks=pytest.mark.slow),
        pytest.param("noise", marks=pytest.mark.slow),
    ],
)
def test_the_jobs_are_those_of_the_workflow(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--cores", "8"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path)]
    command += ["--configfile", str(STUDIES / f"{name}.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    counted = {}
    for line in (done.stdout + done.stderr).splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            counted[words[0]] = int(words[1])
    planned: Counter[str] = Counter()
    for stage in planner(study(name), tmp_path).stages():
        planned[stage.name.split()[0]] += stage.jobs
    assert counted, done.stderr[-2000:]
    assert dict(planned) == {rule: counted.get(rule, 0) for rule in planned}
    trained = {
        rule for rule in counted if rule.startswith(("train", "pretrain", "generate", "score", "compute"))
    }
    assert trained <= set(planned)


def test_hours_follow_the_arithmetic_and_the_gpu(tmp_path: Path) -> None:
    settings = study("table1_llama3_instruct")
    hours = {stage.name: stage.gpu_hours for stage in planner(settings, tmp_path).stages()}
    dpo, sams = hours["train_preference dpo"], hours["train_preference dpo-sams"]
    assert dpo is not None and sams is not None
    # Llama's body and output layer: 8 passes of 58,112 pairs with checkpointing, 2 of the test pairs.
    pair = 1200 * 6.98e9 + 1000 * 0.525e9
    passes = 8 * 58112 + 2 * 1906 * settings.preference_of("dpo").evaluations
    assert dpo == pytest.approx(passes * pair / (0.3 * 989e12) / 3600, rel=0.01)
    assert 0.7 < sams / dpo < 0.85
    assert hours["export_model"] is None


def test_what_does_not_fit_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = study("", **SMALL)
    small = Gpu(memory=2.1e9, bandwidth=1e12, peak=1e15, use=0.3)
    plan = planner(settings, tmp_path, small).plan()
    assert [row.fits for row in plan.memory if "dpo" in row.stages] == [False, False]
    assert any("dpo-sams will not fit" in warning for warning in plan.warnings)
    assert any("no GPUs" in warning for warning in plan.warnings)
    print_plan(plan, "a title")
    shown = capsys.readouterr().out
    assert "NO" in shown and "train_preference dpo-sams" in shown and "Warning" in shown
    assert not any("fit" in warning for warning in planner(settings, tmp_path).plan().warnings)


@pytest.mark.slow
def test_auto_takes_the_largest_micro_batch_that_fits(tmp_path: Path) -> None:
    auto = {
        "preference": {"micro_batch_size": "auto", "scoring_micro_batch_size": 1},
        "methods": ["sft", "dpo"],
        "benchmarks": {},
    }
    settings = study("", **{**SMALL, **auto})
    [roomy] = [row for row in planner(settings, tmp_path).memory() if row.stages == "dpo"]
    assert roomy.passes == "1 x 8"
    tight = Gpu(memory=2 * GIB + 1.1 * 0.8 * roomy.policy, bandwidth=1e12, peak=1e15, use=0.3)
    [found] = [row for row in planner(settings, tmp_path, tight).memory() if row.stages == "dpo"]
    assert int(found.passes.split(" x ")[1]) < 8


def test_the_judge_is_asked_for_every_question_of_every_model(tmp_path: Path) -> None:
    priced = {"benchmarks": {"judge": {"prices": {"input": 10.0, "output": 30.0}}}}
    alpaca, bench = planner(study("table1_llama3_instruct", **priced), tmp_path).judge()
    assert (alpaca.calls, bench.calls) == (12 * 805, 12 * 160)
    assert alpaca.dollars == pytest.approx((alpaca.tokens.prompt * 10 + alpaca.calls * 30) / 1e6)
    assert planner(study(""), tmp_path).judge() == []


def test_prompts_of_ones_own_are_judged_twice_and_not_for_the_start_model(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"{number} {'?' * 998}"}) + "\n" for number in range(10))
    )
    judge = {"kind": "openai", "model": "judge", "repeats": 3}
    own = {"own_prompts": {"prompts": str(prompts)}, "alpaca_eval": None, "mt_bench": None, "judge": judge}
    made = study("", methods=["sft", "dpo", "dpo-sams"], seeds=[0, 1], benchmarks=own)
    [part] = planner(made, tmp_path).judge()
    assert part.calls == 2 * 2 * 10 * 2 * 3  # methods, seeds, prompts, orders, repeats
    assert 1000 / 4 < part.tokens.prompt / part.calls < 1500  # the prompt and two answers


def test_a_retired_judge_is_a_warning(tmp_path: Path) -> None:
    judge = {"kind": "openai", "base_url": "https://api.openai.com/v1", "model": "gpt-4-turbo"}
    retired = planner(study("table1_llama3_instruct", benchmarks={"judge": judge}), tmp_path)
    plan = Plan([], [], [], retired.judge())
    retired._add_warnings(plan)
    assert any("gpt-4-turbo was shut down on 2026-10-23" in warning for warning in plan.warnings)


@pytest.mark.slow
def test_gradients_are_exchanged_in_every_micro_batch_before_anything_is_recomputed(tmp_path: Path) -> None:
    own = {"preference": {"micro_batch_size": 1, "scoring_micro_batch_size": 1}, "methods": ["sft", "dpo"]}
    model = {**SMALL["model"], "activation_checkpointing": "auto"}
    settings = study("", **{**SMALL, **own, "model": model, "benchmarks": {}})
    peaks = planner(settings, tmp_path).peaks
    weights = peaks.sizes.total

    def choice(room: float) -> tuple[str, bool]:
        """What is chosen if `room` bytes are left for gradients that wait and for activations."""
        memory = RESERVE + 16 * weights / 8 + room / MEMORY_SHARE
        tight = planner(settings, tmp_path, Gpu(memory, bandwidth=1e12, peak=1e15, use=0.3)).peaks
        tight._peaks = peaks._peaks  # simulated once
        row = tight.trained("dpo", settings.preference_of("dpo"), 64, 2)
        assert row.passes == "8 x 1" and (row.accumulated == 0) == row.sync_each
        return row.checkpointing, row.sync_each

    added = {mode: peaks._added(2, mode, None) for mode in MODES["auto"]}
    waiting = 4 * weights * MEMORY_SHARE
    assert choice(waiting + 1.01 * added["none"]) == ("none", False)
    assert choice(1.01 * added["none"]) == ("none", True)
    assert added["none"] > added["selective"] > added["full"]
    assert choice(1.01 * added["selective"]) == ("selective", True)
    assert choice(1.01 * added["full"]) == ("full", True)


@pytest.mark.slow
def test_adapters_take_less_memory_and_disk_than_all_weights(tmp_path: Path) -> None:
    own = {"methods": ["sft", "dpo"], "benchmarks": {}}
    full = planner(study("", **{**SMALL, **own}), tmp_path)
    adapted = planner(study("", **{**SMALL, **own, "preference": {"lora": {"r": 2}}}), tmp_path)
    files = {part.what: part for part in adapted.disk()}
    adapters = adapted.peaks.trained_weights(adapted.study.preference_of("dpo").lora)
    assert 0 < adapters < full.sizes.total / 10
    assert files["trained adapters, float32"].bytes == len(adapted.study.seeds) * 4 * adapters
    assert files["trained weights, float32"].bytes == len(adapted.study.seeds) * 4 * full.sizes.total
    rows = [{row.stages: row for row in made.memory()}["dpo"] for made in (full, adapted)]
    # Of a sharded policy: a weight in bfloat16, instead of a weight, a gradient and two moments in float32.
    assert rows[0].policy - rows[1].policy > 10 * full.sizes.total / 8


def test_a_base_in_4_bits_takes_half_a_byte_a_weight(tmp_path: Path) -> None:
    peaks = planner(study("", **{**SMALL, "launch": {"strategy": "ddp"}}), tmp_path).peaks
    two, four = (peaks.peak(Passes(1), Lora(load_in_4bit=low)) for low in (False, True))
    assert two - four == pytest.approx(1.484 * peaks.sizes.body, rel=0.01)


def test_disk_holds_weights_models_and_checkpoints(tmp_path: Path) -> None:
    made = planner(study("table1_llama3_instruct"), tmp_path)
    found = {part.what: part for part in made.disk()}
    assert found["trained weights, float32"].bytes == 11 * 4 * made.sizes.total
    assert found["exported models"].bytes == 12 * 2 * made.sizes.total
    assert found["checkpoints of the job that runs"].bytes > 3 * 12 * made.sizes.total
    assert made.host_bytes == 0
    replicated = planner(study("table1_llama3_instruct", launch={"strategy": "ddp"}), tmp_path)
    assert replicated.host_bytes == 8 * 4 * made.sizes.total


def test_the_data_that_is_there_counts_before_what_is_assumed(tmp_path: Path) -> None:
    settings = study("table1_llama3_instruct")
    assumed = facts_of(settings, tmp_path)
    assert (assumed.train, assumed.test) == (58119, 1906)
    assert facts_of(settings, tmp_path, response_tokens=10.0).chosen == 10.0
    with pytest.raises(UserError, match="--pairs"):
        hub = {"world": None, "train": "some/data", "test": "some/data"}
        facts_of(study("", data=hub, benchmarks={"judge": {"kind": "openai", "model": "gpt-x"}}), tmp_path)
    folder = tmp_path / settings.study / settings.setting / "tokens"
    folder.mkdir(parents=True)
    lengths = ", ".join(f'"{name}_ids": {{"mean": 7.5}}' for name in ("prompt", "chosen", "rejected"))
    splits = ", ".join(f'"{split}": {{"kept": 64, {lengths}}}' for split in ("sft", "train", "test"))
    (folder / "report.json").write_text(f"{{{splits}}}")
    counted = facts_of(settings, tmp_path)
    assert (counted.sft, counted.train, counted.rejected) == (64, 64, 7.5)
    with pytest.raises(UserError, match="L40S"):
        gpu_named("TPU")


@pytest.mark.slow  # a minute
def test_the_command_finds_that_llama_8b_fits_8_gpus_of_80_gb() -> None:
    command = [sys.executable, "-c", "from sams.cli import main; main()", "plan"]
    command += ["--study", "table1_llama3_instruct", "--gpu", "H100", "--gpus", "8"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "8 H100" in shown and "dpo-sams" in shown and "NO" not in shown and "will not fit" not in shown


@pytest.mark.slow
def test_a_deep_model_takes_what_two_shallow_ones_say(tmp_path: Path) -> None:
    deep = {**SMALL, "model": {"precision": "bfloat16", "architecture": {"num_hidden_layers": 10}}}
    peaks = planner(study("", **deep), tmp_path).peaks
    for passes in (Passes(1, checkpointing="full"), Passes(2, trained=False)):
        complete = Simulation(peaks.config, peaks.study.model, 8, True, 64).peak(passes)
        assert peaks.peak(passes) == pytest.approx(complete, rel=0.01)
