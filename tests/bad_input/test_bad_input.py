"""Mistakes in settings, data, benchmark inputs and commands: each is one line with place and remedy, before training.

Mistakes in models, hub ids and judges are in bad_input/test_bad_input_models.py.
"""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from sams.data import prepare
from sams.data.forms import read_pairs
from sams.scoring import fetch, questions
from sams.world.judge_prompts import judge_prompts
from tests.bad_input.refused import Case, Refused, cases, refused

__all__ = ["refused"]

# --- settings --------------------------------------------------------------------------------------


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
    ("a seed twice", {"seeds": [1, 1]}, "`seeds` names one twice"),
    ("no seed", {"seeds": []}, "key 'seeds': .*at least 1"),
    (
        "an unknown selector",
        method(selector="rendom"),
        r"dpo.selector': .*'rendom' .*; did you mean random\?",
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


# --- data ------------------------------------------------------------------------------------------

PAIR = {"prompt": "why so", "chosen": "a b", "rejected": "c d"}
USER, ASSISTANT = {"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}
OTHER = {"role": "assistant", "content": "no"}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def second(**changes: Any) -> bytes:
    """Two rows, the second of them changed."""
    return lines(PAIR, {**PAIR, **changes})


def as_parquet(*rows: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows)), stream)
    return stream.getvalue()


PACKED = gzip.compress(lines(*[PAIR] * 50), mtime=0)
AT = "train.jsonl, row 2"

CONTENTS = [
    ("an empty file", b"", "train.jsonl: the data has no row; give at least one"),
    ("blank lines", b"\n\n", "train.jsonl: the data has no row"),
    ("gzip cut off", PACKED[:40], "train.jsonl: the gzip file is cut off or damaged.*; fetch it again"),
    ("gzip without its end", PACKED[:-4], "train.jsonl: the gzip file is cut off"),
    (
        "wrong JSON",
        lines(PAIR) + b'{"prompt": \n',
        f"{AT}: not JSON .*column.*; give one JSON object per line",
    ),
    (
        "a list cut off",
        json.dumps([PAIR, PAIR]).encode()[:-9],
        "train.jsonl: not JSON .*row 2.*; give a list",
    ),
    ("numbers", lines(PAIR, 7), f"{AT}: expected an object with keys, found int; give"),
    ("CSV", b"prompt,chosen,rejected\na,b,c\n", "row 1: not JSON"),
    ("UTF-16", '{"a": 1}\n'.encode("utf-16"), "row 1: not UTF-8.*; convert it"),
    ("invalid UTF-8", lines(PAIR) + b'{"prompt": "\xe9"}\n', f"{AT}: not UTF-8 .*; convert it to UTF-8"),
    ("NUL bytes", lines(PAIR) + b"\0\0\n", f"{AT}: not JSON"),
    ("a NUL character", second(chosen="a\0b"), f"{AT}, key 'chosen': holds a NUL character; drop"),
    ("a lone surrogate", second(rejected="a\ud800"), f"{AT}, key 'rejected': holds half of a surrogate"),
    (
        "a key twice",
        lines(PAIR) + b'{"prompt": "a", "prompt": "b"}\n',
        f"{AT}: not JSON .key 'prompt' is given twice",
    ),
    ("a number without end", lines(PAIR) + b'{"a": ' + b"1" * 9999 + b"}\n", f"{AT}: not JSON .*4300 digits"),
    ("nested too deep", lines(PAIR) + b"[" * 99_999 + b"\n", f"{AT}: not JSON .*recursion"),
    ("a list nested too deep", b"[" * 99_999, "train.jsonl: not JSON .*recursion.*row 1"),
    (
        "mixed forms",
        lines(PAIR, {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}),
        f"{AT}, key 'prompt': missing.*; all rows must have the form of the first",
    ),
    (
        "an unknown form",
        lines({"question": "a", "good": "b"}),
        "row 1: unknown form with keys .*; rename the keys",
    ),
    ("Parquet cut off", as_parquet(PAIR)[:-20], "train.jsonl: the Parquet file is cut off"),
    (
        "Parquet of numbers",
        as_parquet({**PAIR, "chosen": 1}),
        "row 1, key 'chosen': expected text, found int",
    ),
    (
        "a response that is null",
        second(chosen=None),
        f"{AT}, key 'chosen': expected text, found NoneType; drop",
    ),
    ("an empty response", second(chosen=""), f"{AT}, key 'chosen': empty; drop the row or fill it"),
    ("a blank response", second(rejected=" \n"), f"{AT}, key 'rejected': empty"),
    ("an empty prompt", second(prompt=""), f"{AT}, key 'prompt': empty"),
    ("identical responses", second(rejected="a b "), f"{AT}: chosen and rejected are equal; drop"),
    (
        "the assistant begins",
        second(prompt=[ASSISTANT, USER]),
        f"{AT}, prompt: roles out of order: assistant, user",
    ),
    (
        "two users in turn",
        second(prompt=[USER, USER]),
        f"{AT}, prompt: roles out of order.*; a prompt begins",
    ),
    (
        "a system message late",
        second(prompt=[USER, {**USER, "role": "system"}]),
        f"{AT}, prompt: roles out of order",
    ),
    (
        "an unknown role",
        second(prompt=[{**USER, "role": "bot"}]),
        f"{AT}, key 'prompt', message 1: expected a `role`.*'bot'",
    ),
    (
        "no messages",
        second(prompt=[]),
        f"{AT}, key 'prompt': expected a list of messages, found an empty list",
    ),
    ("a message without text", second(prompt=[{"role": "user"}]), "message 1: expected text, found NoneType"),
    (
        "an answer that the user gives",
        lines({"chosen": [USER], "rejected": [USER]}),
        "row 1, key 'chosen': ends with a message of the user.*; drop",
    ),
    (
        "two prompts",
        lines({"chosen": [USER, ASSISTANT], "rejected": [{**USER, "content": "who"}, OTHER]}),
        "row 1: chosen and rejected differ before the last answer; both must",
    ),
    (
        "a prompt of another conversation",
        lines({"prompt": "who", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}),
        "row 1, key 'prompt': is not in the conversation.*; drop the key",
    ),
    (
        "no turns",
        lines({"chosen": "hello", "rejected": "bye"}),
        "row 1, key 'chosen': expected a dialogue.*; or give",
    ),
    (
        "text before the first turn",
        lines({"chosen": "hi\n\nHuman: a\n\nAssistant: b", "rejected": "hi\n\nHuman: a\n\nAssistant: c"}),
        "row 1: expected '.*Human:' at the start.*; drop",
    ),
]


@cases(*CONTENTS)
def test_data(case: Case, refused: Refused, tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_bytes(case.made)
    test.write_bytes(lines(PAIR))
    recipe = json.dumps({"data": {"train": str(train), "test": str(test)}})
    said = refused(prepare.main, recipe=recipe, out=tmp_path / "out", says=case.says)
    assert str(train) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.jsonl", "train.jsonl"], (
        "nothing is left"
    )


SOURCES: list[Any] = [
    (
        "a file that is not there",
        {"train": "DIR/tain.jsonl"},
        r"tain.jsonl: no such file; did you mean train.jsonl\?",
    ),
    (
        "a data set that is not there",
        {"train": "Anthropic/hh-rlfh"},
        r"Anthropic/hh-rlfh: neither a file nor .*; did you mean Anthropic/hh-rlhf\?; correct the path, or check",
    ),
    ("an empty folder", {"train": "DIR/empty"}, "empty: neither a file nor a data set.*; correct"),
    (
        "examples without an answer",
        {"sft": "DIR/asked.jsonl"},
        "asked.jsonl, row 1, key 'messages': ends with .*user",
    ),
    (
        "other rows than published",
        {"published_rows": {"train": 9}, "other_row_counts": "refuse"},
        "data.train: 2 rows, .*9",
    ),
    ("all prompts in test too", {"shared_prompts": "drop"}, "(train|sft): nothing is left of the split"),
    (
        "no row that can be read",
        {"train": "DIR/broken.jsonl", "broken_rows": "drop"},
        "none of 2 rows can be read",
    ),
]


@cases(*SOURCES)
def test_sources(case: Case, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "asked.jsonl").write_bytes(lines({"messages": [USER]}))
    (tmp_path / "broken.jsonl").write_bytes(lines({**PAIR, "chosen": ""}, {**PAIR, "chosen": 1}))
    (tmp_path / "train.jsonl").write_bytes(second(chosen="x"))
    base = {"train": f"{tmp_path}/train.jsonl", "test": f"{tmp_path}/train.jsonl"}
    recipe = json.dumps({"data": base | case.made}).replace("DIR", str(tmp_path))
    refused(prepare.main, recipe=recipe, out=tmp_path / "out", says=case.says)


HANDLED = {
    "a byte order mark": b"\xef\xbb\xbf" + second(prompt="wer"),
    "CRLF": second(prompt="wer").replace(b"\n", b"\r\n"),
    "no last line end": second(prompt="wer").rstrip(b"\n"),
    "blank lines": second(prompt="wer").replace(b"\n", b"\n\n"),
    "gzip by another name": gzip.compress(second(prompt="wer")),
    "a JSON list": json.dumps([PAIR, {**PAIR, "prompt": "wer"}]).encode(),
    "keys in another order": lines(dict(reversed(PAIR.items())), {**PAIR, "prompt": "wer"}),
    "keys that nobody asked for": second(prompt="wer", id="7", score=0.5),
}


@pytest.mark.parametrize("content", HANDLED.values(), ids=HANDLED.keys())
def test_what_is_no_mistake_gives_the_same_records(content: bytes, tmp_path: Path) -> None:
    for name, written in (("clean", second(prompt="wer")), ("other", content)):
        (tmp_path / name).write_bytes(written)
    clean, other = (list(read_pairs(str(tmp_path / name), "train")) for name in ("clean", "other"))
    assert clean == other and len(clean) == 2


def test_ids_are_made_of_the_content_and_repeats_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    rows = [PAIR | {"id": "1"}, PAIR | {"id": "2"}, {**PAIR, "prompt": "wer", "id": "1"}]
    file.write_bytes(lines(*rows))
    prepare.main(json.dumps({"data": {"train": str(file), "test": str(file)}}), tmp_path / "out")
    found = parquet.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert len({row["id"] for row in found}) == len(found) == 2, "one `id` for two rows is no matter"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["train"]["dropped_repeats"] == 1


# --- inputs of the benchmarks, recipes, commands ---------------------------------------------------

OUTPUT = {"instruction": "a", "output": "b", "generator": "c"}
QUESTION = {"question_id": 1, "category": "writing", "turns": ["a", "b"]}
REFERENCE = {"question_id": 1, "choices": [{"turns": ["a", "b"]}]}

INPUTS: list[Any] = [
    (
        "an output that is missing",
        {"reference_outputs": [{"instruction": "a"}]},
        "row 1: expected text at `output`",
    ),
    (
        "an instruction twice",
        {"reference_outputs": [OUTPUT, OUTPUT]},
        "row 2: the same `instruction` as in .*; drop one",
    ),
    (
        "a question without id",
        {"questions": [{"turns": ["a", "b"]}]},
        "row 1: expected an integer `question_id`; correct",
    ),
    (
        "a question twice",
        {"questions": [QUESTION, QUESTION]},
        "row 2: the same `question_id` as in .*; drop one",
    ),
    (
        "a question of one turn",
        {"questions": [{**QUESTION, "turns": ["a"]}]},
        "row 1: expected `turns` of two texts",
    ),
    (
        "a reference without answers",
        {"references": [{"question_id": 1}]},
        "row 1: expected `choices` with `turns`",
    ),
    (
        "a question without reference",
        {"questions": [{**QUESTION, "category": "math", "question_id": 2}]},
        "references: .*question 2 .math. has no reference answer; ",
    ),
    ("judge prompts that lack some", {"judge_prompts": [{"name": "x"}]}, "row 1: expected text at `type`"),
    (
        "a questions file that is not there",
        {"questions": None},
        "mt_bench.questions: no such file: .*; correct",
    ),
]


@cases(*INPUTS)
def test_benchmark_inputs(case: Case, refused: Refused, tmp_path: Path) -> None:
    files = {"questions": [QUESTION], "references": [REFERENCE], "judge_prompts": judge_prompts()} | case.made
    given = {name: str(tmp_path / f"{name}.jsonl") for name in files}
    for name, rows in files.items():
        if rows is not None:
            Path(given[name]).write_bytes(lines(*rows))
    outputs = given.pop("reference_outputs", None)
    recipe = {
        "world": None,
        "alpaca_eval": {"reference_outputs": outputs} if outputs else None,
        "mt_bench": None if outputs else given,
    }
    refused(questions.main, recipe=json.dumps(recipe), out=tmp_path / "out", says=case.says)


COMMANDS = [
    ("a recipe that is not there", ("DIR/no.json",), "no.json: no such file; give a JSON file"),
    ("a recipe that is a folder", ("DIR",), "cannot be read .*; give a JSON file"),
    ("a recipe of another stage", ('{"dta": 1}',), "--recipe: key 'data': Field required; "),
    ("a recipe that is no JSON", ("{",), "--recipe: Invalid JSON.*; "),
]


@cases(*COMMANDS)
def test_recipes(case: Case, refused: Refused, tmp_path: Path) -> None:
    [recipe] = (word.replace("DIR", str(tmp_path)) for word in case.made)
    refused(prepare.main, recipe=recipe, out=tmp_path / "out", says=case.says)


SAMS: list[Any] = [
    (
        "a stage that is not there",
        ("recipe", "train_sftt"),
        r"stage: no stage 'train_sftt'; did you mean train_sft\?; choose",
    ),
    (
        "a method that is not there",
        ("recipe", "train_preference", "--method", "x"),
        "--method: no method 'x'; the",
    ),
    (
        "a study that is not there",
        ("plan", "--study", "tabel2_hh"),
        r"did you mean table2_hh.yaml\?; config/studies",
    ),
    ("a GPU that is not known", ("plan", "--gpu", "H1000"), "--gpu: no GPU 'H1000'; choose one of"),
    ("results that are not there", ("verify", "nowhere"), "nowhere: no such folder; give results/"),
    ("a bundle that is none", ("verify", "pyproject.toml"), "pyproject.toml: expected a name that ends in"),
    ("a grid that is not there", ("grid", "--method", "dpo"), "--method: method 'dpo' has no grid; choose"),
]


@cases(*SAMS)
def test_commands(case: Case, refused: Refused) -> None:
    refused(None, *case.made, says=case.says)


def test_a_published_file_that_is_another_one(refused: Refused, tmp_path: Path) -> None:
    refused(fetch.main, out=tmp_path / "mine.jsonl", says="--out .*: no published file has this name; one of")
