"""Settings: what is refused when a study is read, and with which words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sams.runtime.errors import UserError
from sams.study.files import load_study, read_settings
from sams.study.recipes import recipe_json, recipe_of, scheduler_is_pretrained
from sams.study.study import Study
from tests.conftest import ROOT

DEFAULT = ROOT / "config" / "config.yaml"
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
        ({"preference__betta": 0.1}, "betta: unknown key"),
        ({"preference__learning_rate": "5e-7"}, "learning_rate.*valid number, found '5e-7'"),
        ({"sft__learning_rate": "5e-7"}, "key 'sft.learning_rate'.*write 5.0e-7"),
        ({"preference__beta": 0.0}, "beta: .*greater than 0, found 0.0"),
        ({"preference__beta": "a"}, "beta: .*valid number"),
        ({"method_settings__dpo-random50": {"selector": "random", "ratio": 0.0}}, "ratio.*greater than 0"),
        (
            {"method_settings__dpo-random50": {"selector": "random", "ratio": 1.5}},
            "ratio.*less than or equal to 1",
        ),
        (
            {"method_settings__dpo-random50": {"selector": "random", "ratio": 0.51}},
            "64 times ratio 0.51 is 32.64",
        ),
        ({"method_settings__dpo-random50": {"selector": "rendom", "ratio": 0.5}}, "selector: .*'rendom'"),
        ({"method_settings__dpo": {"selector": "all", "ratio": 0.5}}, "selector `all` has ratio 1.0"),
        ({"preference__loss": "sigmoit"}, "loss: .*'sigmoit'"),
        ({"seeds": [-1]}, r"key 'seeds.0': .*greater than or equal to 0"),
        ({"seeds": []}, "key 'seeds': .*at least 1"),
        ({"seeds": [1, 1]}, "`seeds` names one twice"),
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
        ({"method_settings__dpo": {"model": "some/model"}}, "method_settings.dpo.model` takes {path"),
        (
            {"method_settings__dpo": {"model": {"pth": "some/model"}}},
            "method_settings.dpo.model: pth: unknown key",
        ),
        ({"method_settings__sft": {"model": {"path": "some/model"}}}, "and not for `sft`"),
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
    assert scheduler_is_pretrained(tiny_study(), "dpo-sams")
    assert not scheduler_is_pretrained(tiny_study(), "dpo")
    own = {"selector": "sams", "ratio": 0.5, "scheduler": {"width": 256}}
    study = tiny_study(**{"method_settings__dpo-sams": own})
    assert study.scheduler_of("dpo-sams").width == 256
    assert not scheduler_is_pretrained(study, "dpo-sams")
    own = {"selector": "sams", "ratio": 0.5, "scheduler": {"gamma": 0.1}}
    assert scheduler_is_pretrained(tiny_study(**{"method_settings__dpo-sams": own}), "dpo-sams")
    own = {"selector": "sams", "ratio": 0.5, "fresh_scheduler": True}
    assert not scheduler_is_pretrained(tiny_study(**{"method_settings__dpo-sams": own}), "dpo-sams")


def test_config_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(UserError, match=r"broken\.yaml, line 1: not YAML"):
        read_settings([broken])
    with pytest.raises(UserError, match=r"missing\.yaml: no such file"):
        read_settings([tmp_path / "missing.yaml"])


def test_the_schema_is_up_to_date() -> None:
    text = (ROOT / "config" / "schema.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == Study.model_json_schema(), "run `sams schema`"


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
