"""Mistakes in settings: each is reported in one line with its position and a remedy, before anything runs."""

from pathlib import Path
from typing import Any

import yaml

from tests.bad_input.refused import Case, Refused, cases, refused

__all__ = ["refused"]


def method(**settings: Any) -> dict[str, Any]:
    return {"method_settings": {"dpo": {"selector": "random", **settings}}}


SETTINGS = [
    ("a key that is not there", {"seds": [1]}, r"key 'seds': unknown key; did you mean seeds\?; "),
    (
        "the same in a group",
        {"sft": {"batch_sise": 8}},
        r"'sft.batch_sise': unknown key; did you mean batch_s",
    ),
    (
        "the same in a group of groups",
        {"benchmarks": {"judge": {"modell": "x"}}},
        r"'benchmarks.judge.modell': unknown key; did you mean model\?",
    ),
    (
        "the same in a method",
        method(betta=0.1),
        r"'method_settings.dpo.betta': unknown key; did you mean beta",
    ),
    ("beta is 0", {"preference": {"beta": 0.0}}, "preference.beta': .*greater than 0, found 0.0"),
    ("beta is negative", {"preference": {"beta": -0.1}}, "preference.beta': .*greater than 0, found -0.1"),
    (
        "beta is infinite",
        {"preference": {"beta": float("inf")}},
        "preference.beta': .*finite number, found inf",
    ),
    (
        "weight decay is NaN",
        {"sft": {"weight_decay": float("nan")}},
        "'sft.weight_decay': .*finite.*found nan",
    ),
    ("ratio is 0", method(ratio=0.0), "method_settings.dpo.*ratio.*greater than 0"),
    ("ratio is above 1", method(ratio=1.5), "method_settings.dpo.*ratio.*less than or equal to 1"),
    ("K is below 1", method(ratio=0.001), "64 times ratio 0.001 is 0.064 pairs: choose a whole number"),
    ("K is no whole number", method(ratio=0.51), "64 times ratio 0.51 is 32.64 pairs: choose"),
    (
        "learning rate as text",
        {"sft": {"learning_rate": "5e-7"}},
        "'sft.learning_rate': .*found '5e-7'.*write 5.0e-7",
    ),
    ("learning rate is 0", {"sft": {"learning_rate": 0.0}}, "'sft.learning_rate': .*greater than 0"),
    ("a negative seed", {"seeds": [-1]}, "key 'seeds.0': .*greater than or equal to 0, found -1"),
    ("a seed as text", {"seeds": ["0"]}, "key 'seeds.0': .*integer, found '0'"),
    ("a seed twice", {"seeds": [1, 1]}, "`seeds` has a duplicate"),
    ("no seed", {"seeds": []}, "key 'seeds': .*at least 1"),
    (
        "an unknown selector",
        method(selector="rendom"),
        r"dpo.selector': .*'rendom' .*; did you mean random\?",
    ),
    (
        "a column that the data does not keep",
        method(selector="rho_loss", selector_settings={"column": "held_out"}),
        "dpo.selector_settings.column` is 'held_out': add it to `data.keep_columns`",
    ),
    (
        "an unknown loss",
        {"preference": {"loss": "sigmoit"}},
        r"loss': .*'sigmoit' .*; did you mean sigmoid\?",
    ),
    (
        "a setting that the loss has not",
        method(loss="simpo", loss_settings={"gama": 1.0}),
        "loss 'simpo' has no setting 'gama'; it has gamma_beta_ratio",
    ),
    (
        "an unknown precision",
        {"model": {"precision": "bf16"}},
        r"'model.precision'.*'bf16'; did you mean bfl",
    ),
    (
        "a method without settings",
        {"methods": ["sft", "dpo-sms"]},
        r"'dpo-sms' has no entry.*; did you mean dpo-sams\?",
    ),
    ("a method's scheduler is no group", method(scheduler=3), "'method_settings.dpo.scheduler': .*found 3"),
    (
        "a method's flag is no flag",
        method(fresh_scheduler="yes"),
        "dpo.fresh_scheduler': .*boolean, found 'yes'",
    ),
    (
        "a method named as a folder of results",
        {"methods": ["sft", "data"]},
        "method 'data' has the name.*rename",
    ),
    ("a setting named as one", {"setting": "tables"}, "`setting` tables is the name of another.*rename"),
    ("a group is a text", {"model": "gpt2"}, "key 'model': .*dictionary.*found 'gpt2'"),
    ("a group is empty", {"preference": None}, "key 'preference': .*dictionary"),
    ("no epochs", {"sft": {"epochs": 0}}, "'sft.epochs': .*greater than or equal to 1"),
    (
        "a batch that processes do not divide",
        {"sft": {"batch_size": 63}, "launch": {"nproc_per_node": 2}},
        "`sft.batch_size` 63 is not divisible by `launch.nproc_per_node` 2",
    ),
    ("no room for a response", {"data": {"max_prompt_length": 128}}, "`max_prompt_length` must be below"),
    ("neither world nor files", {"data": {"world": None}}, "key 'data': give `train` and `test`"),
    (
        "world and files",
        {"data": {"train": "a.jsonl"}},
        "key 'data': .*exclude each other: set `world: null`",
    ),
    ("two models", {"model": {"path": "a/b"}}, "key 'model': give exactly one of `path` and `architecture`"),
    (
        "a password in the judge's address",
        {"benchmarks": {"judge": {"base_url": "https://me:secret@host/v1"}}},
        "judge.base_url': expected .*without a password; the key is OPENAI_API_KEY",
    ),
    (
        "a cost limit without prices",
        {"benchmarks": {"judge": {"max_cost": 1.0}}},
        "`max_cost` needs `prices`",
    ),
    ("a rehearsal that is no boolean", {"rehearse": "maybe"}, "key 'rehearse': expected a boolean.*; set it"),
    (
        "a study that extends none",
        {"extends": "config/studies/tabel2_hh.yaml"},
        "did you mean table2_hh.yaml",
    ),
    ("a study that extends a folder", {"extends": "config"}, "config: cannot be read .*; name a YAML file"),
    (
        "a local judge for real data",
        {"data": {"world": None, "train": "a.jsonl", "test": "b.jsonl"}},
        "`benchmarks.judge.kind: local` can only grade the synthetic world: set it to openai",
    ),
    (
        "an unknown table of the paper",
        {"paper": {"table": "table1", "setting": "gemma"}},
        "has no setting gemma",
    ),
]


@cases(*SETTINGS)
def test_settings(case: Case, refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(case.made))
    said = refused(None, "check", configfile=file, says=case.says)
    assert "secret" not in said


FILES = [
    ("no YAML", b"seeds: [1", "mine.yaml, line 1: not YAML: .*; correct"),
    ("a tab", b"sft:\n\tepochs: 1\n", "mine.yaml, line 2: not YAML"),
    (
        "a key twice",
        b"seeds: [0]\nsft:\n  epochs: 1\n  epochs: 2\n",
        "line 4: not YAML: key 'epochs' is given twice",
    ),
    ("a list", b"- sft\n", "mine.yaml: expected keys and values at the top; write"),
    ("nothing", b"", "mine.yaml: expected keys and values at the top"),
    ("not UTF-8", b"study: \xe9\n", "mine.yaml: not YAML: .*decode byte 0xe9"),
    (
        "an object of Python",
        b"study: !!python/object/apply:os.getcwd []\n",
        "line 1: not YAML: could not determine",
    ),
    ("nested too deep", b"study: " + b"[" * 1500, "mine.yaml.*: not YAML"),
]


@cases(*FILES)
def test_a_settings_file(case: Case, refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(case.made)
    refused(None, "check", configfile=file, says=case.says)
