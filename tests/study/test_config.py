"""Settings: what is refused when a study is read, and with which words."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sams.runtime.errors import UserError
from sams.study.files import DEFAULT, from_command_line, from_options, load_study, read_settings
from sams.study.recipes import recipe_json, recipe_of
from sams.study.reference import SHARED, groups, schema_text, settings_page
from sams.study.rounds import required_rows
from sams.study.settings.base import Overlay
from sams.study.study import Study
from tests.conftest import ROOT

STUDIES = sorted((ROOT / "config" / "studies").glob("*.yaml"))


def tiny_study(**overlay: Any) -> Study:
    settings = read_settings([DEFAULT])
    for path, value in overlay.items():
        *groups, key = path.split("__")
        place = settings
        for group in groups:
            place = place[group]
        place[key] = value
    return load_study(settings)


def test_own_prompts_need_a_start_model_and_may_be_a_file() -> None:
    given = {"benchmarks__own_prompts": "mine.jsonl"}
    study = tiny_study(**given)
    assert study.benchmarks.own_prompts and study.benchmarks.own_prompts.prompts == "mine.jsonl"
    assert tiny_study(methods=["dpo"], **given).started_methods == ["sft", "dpo"]
    finished = {"methods": ["other"], "method_settings": {"other": {"model": {"path": "m"}}}}
    with pytest.raises(UserError, match="add `sft` to `methods`"):
        tiny_study(**finished, **given)


def test_methods_need_not_name_their_start_and_settings_of_no_job_require_nothing() -> None:
    assert tiny_study(methods=["dpo"]).trained_methods == ["sft", "dpo"]
    assert tiny_study(methods=["dpo"], sft=None).trained_methods == ["dpo"]
    sizes = {"pretrain__batch_size": 640, "preference__batch_size": 32}
    assert required_rows(tiny_study(methods=["sft", "dpo-sams"], **sizes))["train"][0] == 640
    assert required_rows(tiny_study(methods=["sft", "dpo"], **sizes))["train"][0] == 32


@pytest.mark.parametrize("overlay", [None, *STUDIES], ids=lambda path: path.stem if path else "default")
def test_every_shipped_study_is_valid(overlay: Path | None) -> None:
    study = load_study(read_settings([DEFAULT, *([overlay] if overlay else [])]))
    assert recipe_of(study, "export_model", method=study.methods[0])


def test_the_paper_settings_launch_eight_processes_and_keep_32_of_64() -> None:
    for name in ("table1_llama3_instruct", "table2_hh"):
        study = load_study(read_settings([DEFAULT, ROOT / "config" / "studies" / f"{name}.yaml"]))
        assert study.launch.nproc_per_node == 8
        method = study.preference_of("dpo-sams")
        assert (method.batch_size, method.batch_size * method.ratios[0]) == (64, 32)
        assert (study.scheduler.width, study.scheduler.depth) == (4096, 16)


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"seds": [1]}, "key 'seds': unknown key"),
        ({"preference__betta": 0.1}, r"key 'preference.betta': unknown key; did you mean beta\?"),
        ({"preference__learning_rate": "5e-7"}, "learning_rate.*valid number, found '5e-7'.*write 5.0e-7"),
        ({"sft__learning_rate": "5e-7"}, "key 'sft.learning_rate'.*write 5.0e-7"),
        ({"preference__beta": 0.0}, "'preference.beta': .*greater than 0, found 0.0"),
        (
            {"preference__lora": {"load_in_4bit": True}, "launch__strategy": "fsdp2"},
            "load_in_4bit` of .*: 4-bit weights cannot be sharded, set `launch.strategy: ddp`",
        ),
        (
            {"method_settings__dpo-random50": {"selector": "random", "lora": {"load_in_4bit": True}}},
            "methods share their reference log-probs, set it for all of them or for none",
        ),
        ({"preference__beta": "a"}, "'preference.beta': .*valid number"),
        ({"method_settings__dpo-random50": {"selector": "random", "ratio": 0.0}}, "ratio.*greater than 0"),
        (
            {"method_settings__dpo-random50": {"selector": "random", "ratio": 1.5}},
            "ratio.*less than or equal to 1",
        ),
        (
            {"method_settings__dpo-random50": {"selector": "random", "ratio": 0.51}},
            "64 times ratio 0.51 is 32.64",
        ),
        (
            {"method_settings__dpo-random50": {"selector": "rendom", "ratio": 0.5}},
            r"dpo-random50.selector': .*'rendom'.*did you mean random\?",
        ),
        ({"method_settings__dpo": {"selector": "all", "ratio": 0.5}}, "selector `all` has ratio 1.0"),
        ({"preference__loss": "sigmoit"}, r"'preference.loss': .*'sigmoit'.*did you mean sigmoid\?"),
        ({"seeds": [-1]}, r"key 'seeds.0': .*greater than or equal to 0"),
        ({"seeds": []}, "key 'seeds': .*at least 1"),
        ({"seeds": [1, 1]}, "`seeds` has a duplicate"),
        ({"methods": ["sft", "dpo-sms"]}, r"'dpo-sms' has no entry.*did you mean dpo-sams\?"),
        ({"study": "; rm -rf ~"}, "key 'study'"),
        ({"study": "../up"}, "key 'study'"),
        ({"model__path": "x/y"}, "exactly one of `path` and `architecture`"),
        ({"model__tokenizer": None}, "`architecture` needs `tokenizer`"),
        ({"data__world": None}, "give `train` and `test`"),
        ({"data__train": "pairs.jsonl"}, "exclude each other"),
        ({"data__max_prompt_length": 128}, "must be below `max_length`"),
        ({"data__world__flipped_share": 1.2}, "flipped_share.*less than or equal to 1"),
        ({"sft__batch_size": 63, "launch__nproc_per_node": 2}, "`sft.batch_size` 63 is not divisible"),
        ({"preference__batch_size": 0}, "batch_size.*greater than or equal to 1"),
        ({"launch__nproc_per_node": 0}, "launch.nproc_per_node"),
        ({"benchmarks__judge__kind": "gpt"}, "benchmarks.judge.kind"),
        ({"scheduler__block": 7}, "`block` 7 does not divide"),
        (
            {"method_settings__dpo": {"model": "some/model"}},
            "'method_settings.dpo.model': .*found 'some/model'",
        ),
        (
            {"method_settings__dpo": {"scheduler": {"gama": 0.1}}},
            r"'method_settings.dpo.scheduler.gama'.*mean gamma\?",
        ),
        (
            {"method_settings__dpo": {"selector": "all", "beta": "x"}},
            "'method_settings.dpo.beta': .*found 'x'",
        ),
        ({"pretrain__gamma": 0.0}, "'pretrain.gamma': unknown key"),
        (
            {"method_settings__dpo": {"model": {"pth": "some/model"}}},
            r"'method_settings.dpo.model.pth': unknown key; did you mean path\?",
        ),
        ({"method_settings__sft": {"model": {"path": "some/model"}}}, "is the study's own model"),
        (
            {"method_settings__dpo": {"selector": "selective", "ratio": 0.5, "easiest": 0.5}},
            "takes its share from `ratio`",
        ),
        (
            {"method_settings__dpo": {"selector": "sams", "ratio": 0.75, "easiest": 0.03125}},
            "batch_size 2 times ratio 0.75 is 1.5 pairs",
        ),
    ],
)
def test_mistakes_are_refused_in_one_line_that_names_the_key(overlay: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        tiny_study(**overlay)
    assert "\n" not in str(refused.value)


def test_a_recipe_depends_on_its_own_settings_only() -> None:
    plain, other_beta = tiny_study(), tiny_study(preference__beta=0.3)
    more_gpus = tiny_study(launch__nproc_per_node=8, tracking__enabled=False)

    def recipes(study: Study) -> dict[str, str]:
        stages = ("prepare_data", "tokenise", "train_sft", "compute_reference", "pretrain_scheduler", "score")
        found = {stage: recipe_json(recipe_of(study, stage)) for stage in stages}
        return found | {"dpo": recipe_json(recipe_of(study, "train_preference", method="dpo"))}

    changed = [stage for stage, recipe in recipes(plain).items() if recipe != recipes(other_beta)[stage]]
    assert changed == ["dpo"]
    assert recipes(plain) == recipes(more_gpus)


def test_method_settings_lie_over_the_shared_ones() -> None:
    study = tiny_study(method_settings__dpo={"selector": "all", "beta": 0.5})
    assert study.preference_of("dpo").beta == 0.5
    assert study.preference_of("dpo-sams").beta == 0.1


def test_a_scheduler_of_other_sizes_does_not_take_the_pretrained_weights() -> None:
    assert tiny_study().scheduler_is_pretrained("dpo-sams")
    assert not tiny_study().scheduler_is_pretrained("dpo")
    own = {"selector": "sams", "ratio": 0.5, "scheduler": {"width": 256}}
    study = tiny_study(**{"method_settings__dpo-sams": own})
    assert study.scheduler_of("dpo-sams").width == 256
    assert not study.scheduler_is_pretrained("dpo-sams")
    own = {"selector": "sams", "ratio": 0.5, "scheduler": {"gamma": 0.1}}
    assert tiny_study(**{"method_settings__dpo-sams": own}).scheduler_is_pretrained("dpo-sams")
    own = {"selector": "sams", "ratio": 0.5, "fresh_scheduler": True}
    assert not tiny_study(**{"method_settings__dpo-sams": own}).scheduler_is_pretrained("dpo-sams")


def test_config_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(UserError, match=r"broken\.yaml, line 1: not YAML"):
        read_settings([broken])
    with pytest.raises(UserError, match=r"missing\.yaml: no such file"):
        read_settings([tmp_path / "missing.yaml"])


def test_schema_and_page_are_up_to_date_and_hold_every_key() -> None:
    text = (ROOT / "config" / "schema.yaml").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert text == schema_text() and page == settings_page(), "run `sams schema`"
    schema = yaml.safe_load(text)
    sections = {section.partition("\n")[0]: section for section in page.split("\n## ")[1:]}
    keys = 0
    for path, kind in groups(Study):
        section = sections[f"`{path}`" if path else "A study"]
        properties = (schema if kind is Study else schema["$defs"][kind.__name__])["properties"]
        for key, field in kind.model_fields.items():
            keys += 1
            assert properties[key]["description"] == field.description, f"{path}.{key}"
            if issubclass(kind, Overlay):
                assert "default" not in properties[key], "a key that is not given is that of the shared group"
                if key in SHARED[kind][1].model_fields:
                    section_of_key = sections[f"`{SHARED[kind][0]}`"]
                    assert f"[`{SHARED[kind][0]}`](#{SHARED[kind][0]})" in section
                    assert f"| `{key}` |" in section_of_key
                    continue
            assert f"| `{key}` |" in section, f"{path}.{key}"
    assert keys > 199


def test_keys_of_a_method_are_written_as_they_were_given() -> None:
    """A study that is written as JSON and read again is the same study, with the same keys of its methods."""
    own = {"selector": "sams", "ratio": 0.5, "scheduler": {"delta": 0.25}}
    made = tiny_study(**{"method_settings__dpo-sams": own, "preference__beta": 0.3})
    assert made.model_dump()["method_settings"]["dpo-sams"] == own
    again = Study.model_validate_json(made.model_dump_json())
    assert again.preference_of("dpo-sams") == made.preference_of("dpo-sams")
    assert again.preference_of("dpo-sams").beta == 0.3
    assert again.scheduler_of("dpo-sams") == made.scheduler_of("dpo-sams")


def test_pretraining_on_a_frozen_policy_leaves_the_batch_reward_out() -> None:
    frozen, other = tiny_study(), tiny_study(scheduler__gamma=0.9)
    recipe = recipe_of(frozen, "pretrain_scheduler")
    assert recipe == recipe_of(other, "pretrain_scheduler")
    assert recipe.scheduler.gamma == 0.0  # type: ignore[attr-defined]
    moving = recipe_of(tiny_study(pretrain__policy="moving", scheduler__gamma=0.9), "train_sft")
    assert moving.watching.scheduler.gamma == 0.9  # type: ignore[attr-defined]


# --- values on the command line -----------------------------------------------------------------


def test_values_of_the_command_line_are_typed_and_those_of_files_are_not() -> None:
    given = {"preference": {"beta": "0.3", "lora": "null"}, "seeds": ["0", "1"], "rehearse": "true"}
    assert from_command_line(given) == {
        "preference": {"beta": 0.3, "lora": None},
        "seeds": [0, 1],
        "rehearse": True,
    }
    rates = {
        "preference.learning_rate": "5e-7",
        "preference__beta": "3",
        "study": "1st",
        "model": {"path": "yes"},
    }
    assert from_command_line(rates) == {
        "preference": {"learning_rate": 5e-7, "beta": 3},
        "study": "1st",
        "model": {"path": "yes"},
    }
    with pytest.raises(UserError, match=r"found '0\.3'"):
        load_study(read_settings([DEFAULT], {"preference": {"beta": "0.3"}}))


def test_options_have_every_type_of_a_setting() -> None:
    given = [
        'study="2024"',
        "seeds=[0,1]",
        "sft=null",
        "preference={beta: 0.3, learning_rate: 5e-7}",
        "data.train=a b.csv",
    ]
    assert from_options([*given, "method_settings.dpo-sams.ratio=[0.5, 1]", "tracking.enabled=false"]) == {
        "study": "2024",
        "seeds": [0, 1],
        "sft": None,
        "preference": {"beta": 0.3, "learning_rate": 5e-7},
        "data": {"train": "a b.csv"},
        "method_settings": {"dpo-sams": {"ratio": [0.5, 1]}},
        "tracking": {"enabled": False},
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"pretrain": {"batch_size": 62}, "launch": {"nproc_per_node": 4}},
        {"sft": None, "pretrain": {"policy": "moving"}},
    ],
)
def test_settings_that_no_job_reads_refuse_nothing(settings: dict[str, Any]) -> None:
    load_study(read_settings([DEFAULT], settings | {"methods": ["sft", "dpo"]}))
    with pytest.raises(UserError, match="pretrain"):
        load_study(read_settings([DEFAULT], settings | {"methods": ["dpo-sams"]}))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("preference.beta", "--set preference.beta: expected key=value"),
        ("seeds=[0", "--set seeds=.0: .*for example"),
    ],
)
def test_options_that_cannot_be_read_are_named(entry: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_options([entry])


@pytest.mark.parametrize("overlay", [None, "table1_gemma_v02"])
def test_snakemake_parses_a_study_with_typed_values_and_without_heavy_imports(
    overlay: str | None, tmp_path: Path
) -> None:
    """Real `snakemake -n`; peak memory of a fresh process, whose interpreter and Snakemake take some 100 MB."""
    files = ["--configfile", str(ROOT / "config" / "studies" / f"{overlay}.yaml")] if overlay else []
    given = ["preference={weight_decay: 0.1, max_grad_norm: 5e-1}", "seeds=[0,1]", "model={compile: true}"]
    given += ["launch__nproc_per_node=1", "launch__device=cpu", "study=typed"]
    code = f"""
import sys
from snakemake.cli import main
sys.argv = ["snakemake", "-n", "--quiet", "all", "--cores", "1", "--snakefile", {str(ROOT / "Snakefile")!r}]
sys.argv += ["--directory", {str(tmp_path)!r}, *{files!r}, "--config", *{given!r}]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = {{"torch", "transformers", "datasets", "pyarrow", "pandas", "mlflow", "alpaca_eval", "fastchat"}}
heavy &= set(sys.modules)
assert not heavy, heavy
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
megabytes = int(peak.split()[1]) / 1024
assert megabytes < 150, megabytes
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_snakemake_names_a_mistake_of_the_command_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-n",
        "--cores",
        "1",
        "--snakefile",
        str(ROOT / "Snakefile"),
    ]
    done = subprocess.run(
        [*command, "--directory", str(tmp_path), "--config", "preference={betta: 0.3}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert "key 'preference.betta': unknown key; did you mean beta?" in done.stdout + done.stderr


def test_every_key_of_the_default_study_has_a_comment() -> None:
    lines = DEFAULT.read_text(encoding="utf-8").splitlines()
    bare = []
    for number, line in enumerate(lines):
        key = line.strip()
        if not key or key.startswith(("#", "- ")) or ":" not in key:
            continue
        # A comment heads its key, or the unbroken run of keys that it speaks of.
        above = number - 1
        while above >= 0 and lines[above].strip() and not lines[above].strip().startswith("#"):
            above -= 1
        if above < 0 or not lines[above].strip().startswith("#"):
            bare.append(key)
    assert not bare


def test_a_study_with_some_methods_says_nothing_of_others() -> None:
    study = tiny_study()
    pair = study.with_methods("sft", "dpo")
    assert pair.methods == ["sft", "dpo"]
    assert set(pair.method_settings) == {"dpo"}
    assert load_study(pair.model_dump(mode="json")) == pair


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.compile", "maybe", "key 'model.compile': .*boolean or 'auto', found 'maybe'"),
        ("preference.micro_batch_size", 0, "key 'preference.micro_batch_size': .* 1 or 'auto', found 0"),
    ],
)
def test_a_value_of_several_types_is_named_by_its_key_with_all_of_them(
    key: str, value: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tiny_study(**{key.replace(".", "__"): value})
