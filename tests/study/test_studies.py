"""The shipped studies: what each trains, on what, from which published or own values; and their rehearsals."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sams.data.templates import CompletionEncoder, encode_prompt
from sams.data.tokeniser import build_tokenizer
from sams.runtime.errors import UserError
from sams.study.files import from_command_line, load_study, read_settings, resolved
from sams.study.grids import own_point, points, written_out
from sams.study.recipes import recipe_of
from sams.study.rehearsal import rehearsal_of
from sams.study.study import Study
from tests.conftest import ROOT

DEFAULT = ROOT / "config" / "config.yaml"
FOLDER = ROOT / "config" / "studies"
STUDIES = sorted(FOLDER.glob("*.yaml"))
MISTRAL, LLAMA = "mistralai/Mistral-7B-Instruct-v0.2", "meta-llama/Meta-Llama-3-8B-Instruct"
TABLE1 = [
    "sft",
    "rrhf",
    "slic-hf",
    "ipo",
    "cpo",
    "kto",
    "orpo",
    "r-dpo",
    "simpo",
    "dpo",
    "dpo-random50",
    "dpo-sams",
]


def study(name: str, **more: Any) -> Study:
    return load_study(read_settings([DEFAULT, FOLDER / f"{name}.yaml"], more))


def test_every_study_of_the_paper_is_there() -> None:
    names = {path.stem for path in STUDIES}
    assert names >= {"table1_mistral_instruct", "table1_llama3_instruct", "table1_llama3_instruct_v02"}
    assert names >= {"table1_gemma_v02", "table2_hh", "table2_shp", "figure3_noise_hh", "figure3_noise_shp"}
    assert names >= {"table3_selective", "table7_ablation", "beyond", "own_data", "checkpoints", "noise"}


@pytest.mark.parametrize("rehearse", [False, True], ids=["study", "rehearsal"])
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_recipe_of_every_study_can_be_made(path: Path, rehearse: bool) -> None:
    made = study(path.stem, rehearse=rehearse)
    assert made.study == ("rehearsal-" if rehearse else "") + path.stem
    for method in made.methods:
        assert recipe_of(made, "export_model", method=method)
    for method in made.preference_methods:
        assert recipe_of(made, "train_preference", method=method)
    for stage in ("prepare_data", "prepare_questions", "tokenise", "score"):
        assert recipe_of(made, stage)


@pytest.mark.parametrize(
    ("name", "path", "data", "rates", "simpo"),
    [
        ("mistral_instruct", MISTRAL, "mistral-instruct-ultrafeedback", 5e-7, (2.5, 0.1, 5e-7)),
        ("llama3_instruct", LLAMA, "llama3-ultrafeedback", 1e-6, (2.5, 0.55, 1e-6)),
        ("llama3_instruct_v02", LLAMA, "llama3-ultrafeedback-armorm", 1e-6, (10, 0.3, 1e-6)),
        ("gemma_v02", "google/gemma-2-9b-it", "gemma2-ultrafeedback-armorm", 5e-7, (10, 0.5, 8e-7)),
    ],
)
def test_table_1_has_the_published_settings(
    name: str, path: str, data: str, rates: float, simpo: tuple[float, float, float]
) -> None:
    made = study(f"table1_{name}")
    assert made.methods == TABLE1
    assert made.model.path == path
    assert made.data.train == f"princeton-nlp/{data}@main:train"
    for method in ("dpo", "dpo-random50", "dpo-sams"):
        training = made.preference_of(method)
        assert (training.beta, training.learning_rate, training.batch_size) == (0.01, rates, 64)
    training = made.preference_of("simpo")
    assert (training.beta, training.loss_settings["gamma_beta_ratio"], training.learning_rate) == simpo
    baselines = [made.preference_of(method) for method in TABLE1[1:9]]
    assert {(b.batch_size, b.schedule, b.warmup_ratio) for b in baselines} == {(128, "cosine", 0.1)}


# The SimPO paper's table of what was searched, and what KTO and CPO keep fixed.
SEARCHED: dict[str, dict[str, list[float]]] = {
    "rrhf": {"loss_settings.nll_weight": [0.1, 0.5, 1, 10]},
    "slic-hf": {"loss_settings.nll_weight": [0.1, 0.5, 1, 10], "loss_settings.delta": [0.1, 0.5, 1, 2]},
    "ipo": {"beta": [0.01, 0.1, 0.5, 1]},
    "cpo": {"beta": [0.01, 0.05, 0.1]},
    "kto": {"beta": [0.01, 0.05, 0.1]},
    "orpo": {"beta": [0.1, 0.5, 1, 2]},
    "r-dpo": {"loss_settings.alpha": [0.05, 0.1, 0.5, 1], "beta": [0.01, 0.05, 0.1]},
}


@pytest.mark.parametrize("name", [path.stem for path in STUDIES if path.stem.startswith("table1")])
def test_every_method_has_the_same_tuning_budget_and_its_default_is_in_its_grid(name: str) -> None:
    made = study(name)
    assert set(made.grids) == set(made.preference_methods)
    for method, axes in SEARCHED.items():
        grid = made.grids[method]
        expected = axes | {"learning_rate": [3e-7, 5e-7, 6e-7, 1e-6]}
        assert {key: axis.values for key, axis in grid.axes.items()} == expected
        assert {axis.source for axis in grid.axes.values()} == {"published"}
        assert grid.default == "ours"
    for method in made.preference_methods:
        tried = points(made, method)
        assert len(tried) == 12 and tried[0] == own_point(made, method)
        assert len({json.dumps(point) for point in tried}) == 12
        axes_of = made.grids[method].axes
        assert all(point[key] in axes_of[key].values for point in tried for key in axes_of)


def test_a_grid_written_out_is_an_overlay_over_its_study(tmp_path: Path) -> None:
    name = FOLDER / "table1_gemma_v02.yaml"
    made = study("table1_gemma_v02")
    overlay = written_out(made, ["r-dpo", "dpo-sams"])
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(overlay))
    grid = load_study(read_settings([DEFAULT, name, file]))
    runs = [name for name in grid.preference_methods if name.startswith("r-dpo")]
    assert len(runs) == 12 and len(grid.preference_methods) == 24
    assert runs[0] == "r-dpo" and grid.preference_of("r-dpo") == made.preference_of("r-dpo")
    assert len({grid.preference_of(run).model_dump_json() for run in runs}) == 12
    named = next(run for run in runs if "-lr" in run)
    rate = float(named.partition("-lr")[2].partition("-beta")[0].partition("-alpha")[0])
    assert grid.preference_of(named).learning_rate == rate != made.preference_of("r-dpo").learning_rate
    # Without KTO, pairs are tokenised otherwise: the study's own results stay as they are.
    assert recipe_of(grid, "tokenise") != recipe_of(made, "tokenise") and grid.study == f"{made.study}-grid"
    file.write_text(yaml.safe_dump(written_out(made, ["kto", "r-dpo"])))
    shared = load_study(read_settings([DEFAULT, name, file]))
    assert shared.results == made.results
    for stage in ("prepare_data", "tokenise", "compute_reference"):
        assert recipe_of(shared, stage) == recipe_of(made, stage)
    with pytest.raises(UserError, match="method 'sft' has no grid"):
        written_out(made, ["sft"])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"dpo": {"learning_rate": [-1.0]}}, "grids.dpo.axes.learning_rate: learning_rate: .*greater than 0"),
        ({"dpo": {"loss_settings.alpha": [0.1]}}, "grids.dpo.axes.loss_settings.alpha: .*alpha"),
        ({"dpo": {"betta": [0.1]}}, "grids.dpo.axes.betta: betta: unknown key"),
        ({"dpoo": {"beta": [0.1]}}, "`grids.dpoo`: no such method"),
        ({"dpo": {"beta": [0.1, 0.2]}}, "`grids.dpo` has 2 points, fewer than `tuning_budget` 3"),
    ],
)
def test_grids_that_make_no_sense_are_refused(grid: dict[str, dict[str, list[float]]], message: str) -> None:
    axes = {
        method: {
            "default": "ours",
            "axes": {key: {"source": "ours", "values": values} for key, values in own.items()},
        }
        for method, own in grid.items()
    }
    with pytest.raises(UserError, match=message):
        load_study(read_settings([DEFAULT], {"grids": axes, "tuning_budget": 3}))


def test_a_grid_without_the_methods_own_value_is_refused_where_it_is_read() -> None:
    grid = {"default": "ours", "axes": {"learning_rate": {"source": "ours", "values": [1e-6]}}}
    made = load_study(read_settings([DEFAULT], {"grids": {"dpo": grid}}))
    with pytest.raises(
        UserError, match=r"grids\.dpo\.axes\.learning_rate: the method's own value 0\.0001 is not in"
    ):
        written_out(made)


def test_figure_3_and_table_7_vary_one_thing_each() -> None:
    noise = study("figure3_noise_hh")
    flips = {method: noise.preference_of(method).flipped_share for method in noise.preference_methods}
    assert flips == {m: 0.2 if m.endswith("flip20") else 0.0 for m in noise.preference_methods}
    ratios = study("table7_ablation")
    for ratio, exploration in itertools.product((25, 50, 75), (0.01, 0.0)):
        method = f"dpo-sams{ratio}" + ("" if exploration else "-no-exploration")
        assert ratios.preference_of(method).ratios == (ratio / 100,)
        assert ratios.scheduler_of(method).exploration == exploration
        assert ratios.scheduler_is_pretrained(method), "another lambda takes the same networks"
    assert ratios.preference_of("dpo-sams100").ratios == (1.0,)


def test_the_ablations_beyond_the_paper_start_from_the_pretrained_scheduler_where_it_fits() -> None:
    made = study("beyond")
    fresh = {
        m
        for m in made.preference_methods
        if made.preference_of(m).selector == "sams" and not made.scheduler_is_pretrained(m)
    }
    assert fresh == {"dpo-sams-not-pretrained", "dpo-sams-merge-mean", "dpo-sams-merge-difference"}
    selectors = [
        {
            made.preference_of(m).selector
            for m in made.preference_methods
            if made.preference_of(m).flipped_share == s
        }
        for s in (0.2, 0.4)
    ]
    assert selectors[0] == selectors[1] and len(selectors[0]) == 10, "every selector there is"


def test_the_noise_study_gives_every_method_the_same_grid_and_each_seed_its_own_data() -> None:
    made = study("noise")
    assert made.chosen is not None and len(made.seeds) >= 5
    assert {"dpo", "cdpo", "robust", "ipo", "random", "sams", "oracle"} <= set(made.chosen.runs)
    tried = []
    for runs in made.chosen.runs.values():
        grid = [made.preference_of(run) for run in runs]
        tried.append([own.learning_rate for own in grid])
        others = [own.model_copy(update={"learning_rate": 1.0}) for own in grid]
        assert all(other == others[0] for other in others), (
            "runs of a method differ in the learning rate alone"
        )
        assert all(own.schedule == "constant" for own in grid), "a prefix of a run stands for a shorter one"
    assert all(rates == tried[0] for rates in tried)
    recipes = [recipe_of(made, "prepare_data", seed=seed) for seed in made.seeds]
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(made.seeds)
    assert recipe_of(made, "assess", seed=3).world.seed == 3  # type: ignore[attr-defined]
    world = made.data.world
    assert world is not None and world.validation_pairs and world.test_pairs == 5000


def test_checkpoints_are_scored_and_not_trained() -> None:
    made = study("checkpoints")
    assert made.preference_methods == [] and made.trained_methods == []
    assert made.finished_methods == TABLE1[1:10]
    model = made.model_of("r-dpo")
    assert (model.path, model.revision) == ("princeton-nlp/Llama-3-Instruct-8B-RDPO", "main")
    assert model.precision == made.model.precision == "bfloat16"


def test_a_study_lies_over_what_it_extends(tmp_path: Path) -> None:
    default = {"methods": ["sft"], "model": {"path": "a", "revision": "1"}, "seeds": [0]}
    base = tmp_path / "base.yaml"
    base.write_text("seeds: [1]\nmodel: {path: b}\nstudy: base\n")
    made = resolved(default, {"extends": str(base), "study": "mine"})
    assert (
        made["seeds"] == [1] and made["model"] == {"path": "b", "revision": "1"} and made["study"] == "mine"
    )
    assert default["model"] == {"path": "a", "revision": "1"}, "what is given is left as it was"
    base.write_text(f"extends: {base}\n")
    with pytest.raises(UserError, match="extends itself"):
        resolved(default, {"extends": str(base)})
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        resolved(default, {"extends": "nowhere.yaml"})


def test_an_extended_study_is_looked_for_next_to_the_study_first(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "mine.yaml").write_text("extends: more/base.yaml\nstudy: mine\n")
    (tmp_path / "more/base.yaml").write_text("extends: lowest.yaml\nsetting: base\n")
    (tmp_path / "more/lowest.yaml").write_text("extends: config/studies/table2_hh.yaml\nseeds: [7]\n")
    (tmp_path / "over.yaml").write_text("seeds: [8]\n")
    made = read_settings([DEFAULT, tmp_path / "mine.yaml"])
    assert (made["study"], made["setting"], made["seeds"]) == ("mine", "base", [7])
    assert made["data"]["train"] == study("table2_hh").data.train
    assert read_settings([DEFAULT, tmp_path / "mine.yaml", tmp_path / "over.yaml"])["seeds"] == [8]


def test_an_architecture_of_another_type_replaces_that_of_the_default() -> None:
    llama, opt = {"model_type": "llama", "hidden_size": 8}, {"model_type": "opt", "ffn_dim": 64}
    for above, made in ((opt, opt), ({"intermediate_size": 9}, {**llama, "intermediate_size": 9})):
        default, given = {"model": {"architecture": llama}}, {"model": {"architecture": above}}
        assert resolved(default, given)["model"]["architecture"] == made


# --- rehearsals -----------------------------------------------------------------------------------


def test_a_rehearsal_keeps_methods_losses_selectors_and_ratios() -> None:
    real, rehearsal = study("table1_gemma_v02"), study("table1_gemma_v02", rehearse=True)
    assert rehearsal.methods == real.methods and rehearsal.seeds == real.seeds
    for method in real.preference_methods:
        ours, theirs = rehearsal.preference_of(method), real.preference_of(method)
        kept = (
            "loss",
            "beta",
            "loss_settings",
            "selector",
            "ratio",
            "batch_size",
            "schedule",
            "flipped_share",
        )
        assert all(getattr(ours, key) == getattr(theirs, key) for key in kept)
    assert rehearsal.model.path is None and rehearsal.model.architecture is not None
    assert rehearsal.model.architecture["model_type"] == "gemma2"
    assert rehearsal.data.world is not None and rehearsal.data.form == real.data.form == "messages"
    assert rehearsal.benchmarks.judge.kind == "local"
    assert (rehearsal.benchmarks.alpaca_eval is None) == (real.benchmarks.alpaca_eval is None)
    assert rehearsal.scheduler.gamma == real.scheduler.gamma and rehearsal.scheduler.width < 256


def test_a_rehearsal_keeps_the_benchmarks_that_are_judged() -> None:
    for given in ({"own_prompts": {}}, {"own_prompts": "mine.jsonl"}, {"own_prompts": None}, {"lm_eval": {}}):
        kept = rehearsal_of(resolved({"model": {"model_type": "llama"}}, {"benchmarks": given}))["benchmarks"]
        assert ("own_prompts" in kept) == (given.get("own_prompts") is not None) and "lm_eval" not in kept


@pytest.mark.parametrize("text", ["true", "True", True])
def test_rehearse_is_understood_as_snakemake_gives_it(text: Any) -> None:
    assert study("table2_hh", **from_command_line({"rehearse": text})).rehearse
    with pytest.raises(UserError, match="expected a boolean, found 'perhaps'; set it to true or false"):
        study("table2_hh", rehearse="perhaps")


def test_a_model_of_an_unknown_class_has_no_rehearsal() -> None:
    with pytest.raises(UserError, match=r"model\.model_type: .*class None; name the architecture class"):
        study("table2_hh", rehearse=True, model={"model_type": None})


@pytest.mark.parametrize(
    ("name", "prompt", "end"),
    [
        ("table1_llama3_instruct", "<bos>{0}user{1}\n\nadd : 1 and 2<eos>{0}assistant{1}\n\n", "<eos>"),
        ("table1_mistral_instruct", "<bos>[INST] add : 1 and 2 [/INST]", "<eos>"),
        (
            "table1_gemma_v02",
            "<bos><start_of_turn>user\nadd : 1 and 2<end_of_turn>\n<start_of_turn>model\n",
            "<end_of_turn><eos>",
        ),
        ("table2_hh", "<bos>\n\nHuman: add : 1 and 2\n\nAssistant:", "<eos>"),
    ],
)
def test_a_rehearsal_has_a_template_of_its_class(name: str, prompt: str, end: str) -> None:
    tokenizer = build_tokenizer(study(name, rehearse=True).model, iter(["add : 1 and 2"] * 3))
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "add : 1 and 2"}])
    assert tokenizer.decode(ids) == prompt.format("<|start_header_id|>", "<|end_header_id|>")
    encode = CompletionEncoder(tokenizer)
    assert tokenizer.decode(encode.end) == end
    [answer] = encode(["3"])
    assert tokenizer.decode(answer).strip() == f"3{end}"
