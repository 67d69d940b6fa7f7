"""Stage `tokenise`: trained and loaded tokenizers, length limits, counts of truncated and dropped rows."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sams.data import prepare, tokenise
from sams.data.templates import PLAIN_TEMPLATE, encode_prompt
from sams.data.tokeniser import build_tokenizer, train_tokenizer
from sams.data.tokens import read_columns
from sams.policy.model import build_model
from sams.runtime.errors import UserError
from sams.runtime.files import manifest_digest, read_json
from sams.study.settings import Model, World
from sams.training.tasks.pairs import PairTask
from sams.world import examples as world
from tests import tiny
from tests.data.test_templates import IN_THE_PROMPT

FRESH: dict[str, Any] = {"architecture": {"model_type": "llama"}}
WORDS = Model.model_validate({**FRESH, "tokenizer": "words"})
TEXTS = ["\n\nHuman: red dog\n\nAssistant: rot hund", "\n\nHuman: blue dog\n\nAssistant: blau hund <eos>"]


def run(data: Path, out: Path, *, most: int = 128, prompt: int = 96, **model: Any) -> dict[str, Any]:
    recipe = {
        "model": model or {**FRESH, "tokenizer": "words"},
        "max_length": most,
        "max_prompt_length": prompt,
    }
    tokenise.main(json.dumps(recipe), data, out)
    return read_json(out / "report.json")


def split(out: Path, name: str) -> Any:
    return datasets.load_from_disk(str(out / name))


@pytest.fixture(scope="module")
def world_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "data"
    prepare.main(
        json.dumps({"data": {"world": {"sft_examples": 3000, "train_pairs": 500, "test_pairs": 100}}}), out
    )
    return out


@pytest.fixture(scope="module")
def world_tokens(world_data: Path) -> Path:
    out = world_data.parent / "tokens"
    run(world_data, out)
    return out


def own_data(tmp_path: Path, *pairs: tuple[str, str, str]) -> Path:
    """Prepared pairs of one's own, the same for training and testing."""
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in pairs]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare.main(json.dumps({"data": {"train": str(file), "test": str(file)}}), tmp_path / "data")
    return tmp_path / "data"


# --- the complete stage ---------------------------------------------------------------------------


def test_the_world_is_tokenised(world_data: Path, world_tokens: Path) -> None:
    report = read_json(world_tokens / "report.json")
    assert 120 < report["vocabulary"] < 300
    for name, count in (("sft", 3000), ("train", 500), ("test", 100)):
        counts = report[name]
        assert counts["read"] == counts["kept"] == count
        assert not any(
            counts[key] for key in ("dropped_empty", "dropped_equal", "prompt_cut", "response_cut")
        )
        assert counts["unknown"] == 0, "the vocabulary covers the world"
        assert counts["prompt_ids"]["max"] < 64
    sft, train = split(world_tokens, "sft"), split(world_tokens, "train")
    assert sft.column_names == ["id", "prompt_ids", "response_ids"]
    assert train.column_names == ["id", "prompt_ids", "chosen_ids", "rejected_ids", "flipped"]
    assert report["sft"]["tokens"] == sum(len(row["prompt_ids"]) + len(row["response_ids"]) for row in sft)
    manifest = read_json(world_tokens / "manifest.json")
    assert manifest["upstream"] == {"data": manifest_digest(world_data)}
    assert not list(world_tokens.parent.glob("tmp*")), "no cache is left behind"


def test_ids_say_what_the_records_say(world_data: Path, world_tokens: Path) -> None:
    from pyarrow import parquet

    tokenizer = AutoTokenizer.from_pretrained(world_tokens / "tokenizer")
    records = parquet.read_table(world_data / "train.parquet").to_pylist()
    for record, row in zip(records, split(world_tokens, "train"), strict=True):
        assert (row["id"], row["flipped"]) == (record["id"], record["flipped"])
        assert row["prompt_ids"] == encode_prompt(tokenizer, record["prompt"])
        for side in ("chosen", "rejected"):
            ids = row[f"{side}_ids"]
            assert tokenizer.decode(ids, skip_special_tokens=True) == record[side]
            assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
        assert row["prompt_ids"][0] == tokenizer.bos_token_id
        assert row["prompt_ids"].count(tokenizer.bos_token_id) == 1


def test_every_question_of_the_benchmarks_is_in_the_vocabulary(world_tokens: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world_tokens / "tokenizer")
    asked = world.alpaca_eval_instructions(World())
    asked += [turn for question in world.mt_bench_questions(World()) for turn in question["turns"]]
    asked += [message["content"] for pair in world.test_pairs(World()) for message in pair.prompt]
    ids = [token for text in asked for token in encode_prompt(tokenizer, [{"role": "user", "content": text}])]
    assert tokenizer.unk_token_id not in ids


def test_the_same_input_gives_the_same_bytes(world_data: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        run(world_data, tmp_path / out, **FRESH, tokenizer="bpe", vocab_size=400)
    assert manifest_digest(tmp_path / "a") == manifest_digest(tmp_path / "b")


def test_every_pair_gets_the_completion_of_another(
    world_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "READ_ROWS", 64)
    recipe = {"model": {**FRESH, "tokenizer": "words"}, "max_length": 40, "max_prompt_length": 36}
    tokenise.main(json.dumps(recipe | {"mismatched": True}), world_data, tmp_path / "tokens")
    pairs = split(tmp_path / "tokens", "train").to_list()
    assert list(pairs[0])[-1] == "mismatched_ids" and len(pairs) > 450
    shifts = {
        shift
        for shift in range(1, len(pairs))
        if all(
            pair["mismatched_ids"]
            == pairs[(place + shift) % len(pairs)]["rejected_ids" if place % 2 else "chosen_ids"][
                : 40 - len(pair["prompt_ids"])
            ]
            for place, pair in enumerate(pairs)
        )
    }
    assert len(shifts) == 1
    report = read_json(tmp_path / "tokens" / "report.json")["train"]
    assert report["mismatched_ids"]["max"] == max(len(pair["mismatched_ids"]) for pair in pairs)
    assert report["tokens"] == sum(
        len(pair[name]) for pair in pairs for name in pair if name.endswith("_ids")
    )


def test_columns_for_selectors_stay_with_their_pairs(tmp_path: Path) -> None:
    written = [
        {"prompt": f"Question {n}?", "chosen": f"Yes {n}.", "rejected": "No.", "score": n / 4}
        | {"held_out_ids": str(n), "notes": "harmless"}
        for n in range(5)
    ]
    written[2]["chosen"] = "No, no. " * 200  # longer than the limit, and kept
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in written))
    for row in written:
        del row["score"], row["held_out_ids"]
    test.write_text("".join(json.dumps(row) + "\n" for row in written))
    data = {"train": str(train), "test": str(test), "ignored_columns": ["notes"]}
    kept = {"keep_columns": ["score", "held_out_ids"]}
    prepare.main(json.dumps({"data": data | kept}), tmp_path / "data")
    for mismatched in (False, True):
        out = tmp_path / f"tokens{mismatched}"
        recipe = {"model": {**FRESH, "tokenizer": "words"}, "max_length": 64, "max_prompt_length": 32}
        tokenise.main(json.dumps(recipe | {"mismatched": mismatched}), tmp_path / "data", out)
        task = PairTask(read_columns(out / "train"))
        assert {name: values.tolist() for name, values in task.columns.items()} == {
            "score": [0.0, 0.25, 0.5, 0.75, 1.0],
            "held_out_ids": [0.0, 1.0, 2.0, 3.0, 4.0],
        }
        assert PairTask(read_columns(out / "test")).columns == {}
        assert not set(read_json(out / "report.json")["train"]) & {"kept/score", "kept/held_out_ids"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"score": "good"},
            "row 1, key 'score': expected a number, found 'good'; data.keep_columns takes numbers",
        ),
        ({"score": None}, "expected a number, found 'None'"),
        ({}, "row 1, key 'score': missing"),
    ],
)
def test_a_column_for_selectors_has_a_number_in_every_row(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "No."} | row) + "\n")
    data = {"train": str(file), "test": str(file), "keep_columns": ["score"]}
    with pytest.raises(UserError, match=message):
        prepare.main(json.dumps({"data": data}), tmp_path / "data")


def test_one_pair_cannot_be_mismatched(tmp_path: Path) -> None:
    recipe = {"model": {**FRESH, "tokenizer": "words"}, "max_length": 40, "max_prompt_length": 36}
    with pytest.raises(UserError, match="KTO needs two pairs or more"):
        tokenise.main(
            json.dumps(recipe | {"mismatched": True}),
            own_data(tmp_path, ("why", "a", "b")),
            tmp_path / "tokens",
        )


def test_rows_read_in_many_parts_give_the_same_ids(
    world_data: Path, world_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "READ_ROWS", 33)
    run(world_data, tmp_path / "tokens")
    for name in ("sft", "train", "test"):
        assert split(tmp_path / "tokens", name).to_dict() == split(world_tokens, name).to_dict()


@pytest.mark.slow
def test_processes_that_share_the_batches_write_the_same_bytes(
    world_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "READ_ROWS", 33)
    recipe = {"model": {**FRESH, "tokenizer": "words"}, "max_length": 128, "max_prompt_length": 96}
    for out, processes, least in (("one", 1, 0), ("two", 2, 0), ("few", 2, 10**6)):
        monkeypatch.setattr(tokenise, "WORTH_PROCESSES", least)
        tokenise.main(json.dumps(recipe), world_data, tmp_path / out, processes=processes)
    digests = {manifest_digest(tmp_path / out) for out in ("one", "two", "few")}
    assert len(digests) == 1


@pytest.mark.slow
def test_a_mistake_that_another_process_meets_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "strict.jinja"
    file.write_text(
        "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + PLAIN_TEMPLATE
    )
    dialogue = "\n\nHuman: why\n\nAssistant: so\n\nHuman: why\n\nAssistant:"
    data = own_data(tmp_path, ("why", "a", "b"), (dialogue, "a", "b"))
    monkeypatch.setattr(tokenise, "WORTH_PROCESSES", 0)
    recipe = {"model": {**FRESH, "tokenizer": "words", "chat_template": str(file)}}
    recipe |= {"max_length": 128, "max_prompt_length": 96}
    with pytest.raises(UserError, match=r"refuses the roles .*: too long"):
        tokenise.main(json.dumps(recipe), data, tmp_path / "tokens", processes=2)
    assert not (tmp_path / "tokens").exists()


def test_long_prompts_lose_their_beginning_and_long_responses_their_end(tmp_path: Path) -> None:
    words = " ".join(f"w{number}" for number in range(40))
    data = own_data(tmp_path, (words, "a b", "c d"), ("w0", words, "d"), ("w0 w1 w2 w3 w4 w5", words, "d"))
    report = run(data, tmp_path / "tokens", most=12, prompt=8)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokens" / "tokenizer")
    cut, long_response, both = split(tmp_path / "tokens", "train")
    # Eight tokens: BOS, then the end of `... w39 Assistant:`.
    assert tokenizer.decode(cut["prompt_ids"]) == "<bos> w34 w35 w36 w37 w38 w39 Assistant:"
    assert tokenizer.decode(cut["chosen_ids"]) == "a b <eos>"
    assert tokenizer.decode(long_response["prompt_ids"]) == "<bos> Human: w0 Assistant:"
    assert tokenizer.decode(long_response["chosen_ids"]) == "w0 w1 w2 w3 w4 w5 w6 w7"
    assert len(both["prompt_ids"]) == 8 and tokenizer.decode(both["chosen_ids"]) == "w0 w1 w2 w3"
    assert (report["train"]["prompt_cut"], report["train"]["response_cut"]) == (2, 2)
    for row in (cut, long_response, both):
        assert len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= 12


def test_pairs_that_cutting_makes_equal_are_dropped_and_counted(tmp_path: Path) -> None:
    data = own_data(tmp_path, ("why", "a b c d e f x", "a b c d e f y"), ("why", "a", "b"))
    report = run(data, tmp_path / "tokens", most=9, prompt=5)
    assert (report["train"]["read"], report["train"]["kept"], report["train"]["dropped_equal"]) == (2, 1, 1)
    assert len(split(tmp_path / "tokens", "train")) == 1


def test_responses_without_a_token_are_dropped_and_counted(tmp_path: Path) -> None:
    # A tokenizer whose normaliser takes signs away leaves nothing of `?!`.
    folder = saved(tmp_path, strips=True)
    build_model(tiny.settings(), AutoTokenizer.from_pretrained(folder), 0).save_pretrained(folder)
    data = own_data(tmp_path, ("why", "?!", "b"), ("why", "a", "?"), ("why", "a", "b"))
    report = run(data, tmp_path / "tokens", path=str(folder))
    assert (report["train"]["kept"], report["train"]["dropped_empty"]) == (1, 2)
    assert report["sft"]["dropped_empty"] == 1


def test_nothing_left_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    data = own_data(tmp_path, ("why", "a b c d e f x", "a b c d e f y"))
    with pytest.raises(
        UserError, match=r"train.parquet: no row remains after tokenising .*'dropped_equal': 1.*raise"
    ):
        run(data, tmp_path / "tokens", most=6, prompt=5)
    assert not (tmp_path / "tokens").exists()


def test_a_template_that_refuses_a_prompt_is_an_error_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "strict.jinja"
    file.write_text(
        "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + PLAIN_TEMPLATE
    )
    dialogue = "\n\nHuman: why\n\nAssistant: so\n\nHuman: why\n\nAssistant:"
    data = own_data(tmp_path, ("why", "a", "b"), (dialogue, "a", "b"))
    with pytest.raises(UserError, match=r"refuses the roles \['user', 'assistant', 'user'\]: too long"):
        run(data, tmp_path / "tokens", **FRESH, tokenizer="words", chat_template=str(file))
    assert not (tmp_path / "tokens").exists()


# --- tokenizers -----------------------------------------------------------------------------------


def test_words_are_the_templates_then_the_most_frequent() -> None:
    tokenizer = train_tokenizer(WORDS.model_copy(update={"vocab_size": 8}), PLAIN_TEMPLATE, iter(TEXTS))
    assert len(tokenizer) == 8
    assert set(tokenizer.get_vocab()) == {
        "<pad>",
        "<bos>",
        "<eos>",
        "<unk>",
        "Human:",
        "Assistant:",
        "dog",
        "hund",
    }
    ids = tokenizer("the dog <eos>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id not in ids, "a control token that somebody wrote is an unknown word"
    assert ids == [tokenizer.unk_token_id, tokenizer.get_vocab()["dog"], tokenizer.unk_token_id]


def test_a_small_byte_level_vocabulary_is_refused() -> None:
    settings = Model.model_validate({**FRESH, "tokenizer": "bpe", "vocab_size": 259})
    with pytest.raises(UserError, match=r"model.vocab_size: a byte-level tokenizer needs 260 entries"):
        train_tokenizer(settings, PLAIN_TEMPLATE, iter(TEXTS))


def saved(tmp_path: Path, *, strips: bool = False, **changes: Any) -> Path:
    """A model folder's tokenizer, without a chat template unless one is given."""
    from tokenizers import Regex, normalizers

    tokenizer: Any = train_tokenizer(WORDS, PLAIN_TEMPLATE, iter(["why a b"]))
    if strips:
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[?!]"), "")
    settings = {
        "chat_template": None,
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "pad_token": "<pad>",
    } | changes
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>", **settings
    )
    plain.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def loaded(folder: Path, **changes: Any) -> Any:
    return build_tokenizer(Model.model_validate({"path": str(folder)} | changes), iter(()))


def test_a_models_own_tokenizer_and_template(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = loaded(saved(tmp_path, chat_template="{{ messages[0].content }} own"))
    assert tokenizer.chat_template == "{{ messages[0].content }} own" and not caplog.text


def test_without_a_template_a_plain_one_is_used_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = loaded(saved(tmp_path))
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    assert "has no chat template: a plain one is used" in caplog.text


def test_a_template_file_replaces_the_models_own(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }} ours")
    folder = saved(tmp_path, chat_template="{{ messages[0].content }} theirs")
    assert loaded(folder, chat_template=str(file)).chat_template.endswith("ours")


def test_a_missing_pad_token_is_the_eos(tmp_path: Path) -> None:
    tokenizer = loaded(saved(tmp_path, pad_token=None))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chat_template": "nowhere.jinja"}, r"model.chat_template: cannot read nowhere.jinja: No such file"),
        ({"path": "./nowhere"}, r"model.path: cannot load the tokenizer of ./nowhere: .*give a folder"),
        ({"path": "some/model"}, r"model.path: cannot load the tokenizer of some/model"),
    ],
)
def test_what_cannot_be_read_is_named(changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        loaded(saved(tmp_path), **changes)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.path: the tokenizer has no EOS token; set `eos_token`"):
        loaded(saved(tmp_path, eos_token=None))


@pytest.mark.slow
def test_the_hh_sample(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "preferences"
    sources = {"train": str(folder / "hh_train_3000.jsonl.gz"), "test": str(folder / "hh_test_500.jsonl.gz")}
    prepare.main(json.dumps({"data": sources}), tmp_path / "data")
    report = run(tmp_path / "data", tmp_path / "tokens", most=384, prompt=256, **FRESH, tokenizer="bpe")
    assert report["vocabulary"] == 4096
    assert (report["train"]["kept"], report["test"]["kept"]) == (3000, 500)
    assert report["train"]["prompt_ids"]["max"] == 256
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokens" / "tokenizer")
    first = split(tmp_path / "tokens", "train")[0]
    assert tokenizer.decode(first["prompt_ids"]).startswith(
        "<bos>\n\nHuman: how do you make french onion soup?"
    )
    assert tokenizer.decode(first["chosen_ids"]).startswith(" While the soup itself")


def test_thoughts_of_an_answer_stand_in_place_of_the_empty_think_block(tmp_path: Path) -> None:
    data = own_data(tmp_path, ("q", "<think>\nso\n</think>\n\na", "b"), ("r", "c", "d"))
    template = tmp_path / "template.jinja"
    template.write_text(IN_THE_PROMPT)
    run(data, tmp_path / "out", **FRESH, tokenizer="bpe", vocab_size=300, chat_template=str(template))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    first, second = (
        [tokenizer.decode(row[name]) for name in columns] for row in split(tmp_path / "out", "train")
    )
    asked, empty, end = "<|im_start|>assistant\n", "<think>\n\n</think>\n\n", "<|im_end|><eos>"
    assert first[0].endswith(f"q<|im_end|>\n{asked}") and second[0].endswith(f"r<|im_end|>\n{asked}{empty}")
    assert first[1:] == [f"<think>\nso\n</think>\n\na{end}", f"{empty}b{end}"]
    assert second[1:] == [f"c{end}", f"d{end}"]
