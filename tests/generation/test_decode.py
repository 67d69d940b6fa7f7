import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from sams.generation.decode import Decoder, completed, make_batches
from sams.generation.engines import derived_seed, vllm_sampling
from sams.generation.facts import made_with
from sams.runtime.errors import UserError
from sams.scoring.question_set import sample_label
from sams.study.settings import Decoding, ModelDecoding
from tests.generation.conftest import TEMPLATE, make_model

TEXTS = ["sort this list", "what is a", "which word does not belong", "reverse a b c a b c a b c", "a"]


def asks(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def decoder(folder: Path, *, seed: int = 0, **settings: object) -> Decoder:
    decoding = Decoding.model_validate({"max_new_tokens": 12, "batch_size": 3} | settings)
    return Decoder(folder, "float32", decoding, seed)


def test_batches_are_of_one_temperature_and_like_length() -> None:
    lengths, temperatures = [5, 9, 1, 7, 3, 8], [0.0, 0.0, 0.7, 0.0, 0.0, 0.7]
    assert make_batches(lengths, temperatures, 2) == [[1, 3], [0, 4], [5, 2]]


@torch.no_grad()
def naive(maker: Any, text: str, most: int) -> list[int]:
    """Greedy decoding of one prompt, without padding and without a cache."""
    ids = maker._encode(asks(text)[0])
    new: list[int] = []
    while len(new) < most and (not new or new[-1] not in maker.stop_ids):
        logits = maker.engine.model(input_ids=torch.tensor([ids + new])).logits[0, -1]
        new.append(int(logits.argmax()))
    return new


def test_greedy_batches_equal_one_prompt_at_a_time_without_padding_or_cache(model: Path) -> None:
    maker = decoder(model)
    answers = maker.answer(asks(*TEXTS), [0.0] * len(TEXTS), "test")
    for text, answer in zip(TEXTS, answers, strict=True):
        expected = maker._read(naive(maker, text, 12))
        assert answer == expected
    assert len({answer.text for answer in answers}) > 1


def test_sampling_repeats_by_seed_and_label(model: Path) -> None:
    def sample(seed: int, label: str) -> list[str]:
        answers = decoder(model, seed=seed).answer(asks(*TEXTS), [1.0] * len(TEXTS), label)
        return [answer.text for answer in answers]

    assert sample(0, "a") == sample(0, "a")
    assert sample(0, "a") != sample(1, "a")
    assert sample(0, "a") != sample(0, "b")
    assert derived_seed(0, "a", 1) != derived_seed(0, "a", 2)


def test_samples_come_from_the_whole_distribution(tmp_path: Path) -> None:
    """Neither transformers' top-k of 50 nor the model's generation_config.json restricts the samples."""
    flat = make_model(tmp_path, initializer_range=0.001)
    maker = decoder(flat, max_new_tokens=1, batch_size=1000)
    answers = maker.answer(asks(*["a"] * 1000), [1.0] * 1000, "test")
    assert len({answer.text for answer in answers}) > 0.9 * len(maker.tokenizer)


def test_an_answer_ends_before_the_first_stop_token(model: Path) -> None:
    free = decoder(model).answer(asks(*TEXTS), [0.0] * len(TEXTS), "test")
    assert any(answer.truncated for answer in free)
    words = free[0].text.split()
    stop = decoder(model).tokenizer.convert_tokens_to_ids(words[1])
    stopped = decoder(model, stop_token_ids=[stop]).answer(asks(*TEXTS), [0.0] * len(TEXTS), "test")[0]
    end = words.index(words[1])
    assert stopped.text == " ".join(words[:end])
    assert (stopped.tokens, stopped.truncated) == (end + 1, False)


@pytest.mark.parametrize(("given", "expected"), [(7, [2, 7]), ([2, 9, 7], [2, 7, 9]), (None, [2])])
def test_stop_ids_of_the_models_own_settings_end_an_answer(tmp_path: Path, given: Any, expected: Any) -> None:
    made = make_model(tmp_path)
    settings = json.loads((made / "generation_config.json").read_text()) | {"eos_token_id": given}
    (made / "generation_config.json").write_text(json.dumps(settings))
    assert decoder(made).stop_ids == expected
    (made / "generation_config.json").unlink()
    assert decoder(made).stop_ids == [2]


def test_an_answer_ends_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    maker = decoder(make_model(tmp_path))
    maker.tokenizer.chat_template = TEMPLATE.replace("eos_token", "'<user>'")
    maker.tokenizer.save_pretrained(tmp_path)
    ended = decoder(tmp_path, max_new_tokens=100, batch_size=20)
    assert ended.stop_ids == ended.tokenizer.convert_tokens_to_ids(["</s>", "<user>"])
    answers = ended.answer(asks(*["a"] * 20), [1.0] * 20, "test")
    assert any(not answer.truncated for answer in answers)
    assert not any("<user>" in answer.text for answer in answers)


@pytest.mark.parametrize("adds_its_own", [False, True])
def test_a_prompt_begins_with_exactly_one_bos(model: Path, adds_its_own: bool) -> None:
    """Whether the template writes none, one or two, and whether the tokenizer would add one."""
    maker = decoder(model)
    user = maker.tokenizer.convert_tokens_to_ids("<user>")
    if adds_its_own:
        maker.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        assert maker.tokenizer("sort")["input_ids"][0] == 1
    for template in (TEMPLATE, "{{ bos_token }} " + TEMPLATE, TEMPLATE.replace("{{ bos_token }}", "")):
        maker.tokenizer.chat_template = template
        ids = maker._encode(asks("a")[0])
        assert ids[:2] == [1, user] and ids.count(1) == 1


def test_a_tokenizer_without_bos_gets_none(model: Path) -> None:
    maker = decoder(model)
    maker.tokenizer.bos_token = None
    maker.tokenizer.chat_template = TEMPLATE.replace("{{ bos_token }}", "")
    assert maker._encode(asks("a")[0])[0] == maker.tokenizer.convert_tokens_to_ids("<user>")


def test_prompts_that_fill_the_context_are_refused(model: Path) -> None:
    with pytest.raises(UserError, match="the prompt has 203 tokens, the model's context 128"):
        decoder(model).answer(asks("a " * 200), [0.0], "test")


def test_answers_stay_within_the_context(model: Path) -> None:
    long = "a " * 115
    [answer] = decoder(model, max_new_tokens=500).answer(asks(long), [0.0], "test")
    assert answer.tokens <= 128 - 118


def test_the_first_sample_does_not_depend_on_how_many_there_are(model: Path) -> None:
    maker = decoder(model)
    texts = [
        [
            answer.text
            for answer in maker.answer(asks(*TEXTS), [1.0] * len(TEXTS), sample_label("test", sample))
        ]
        for sample in range(3)
    ]
    assert texts[0] == [answer.text for answer in maker.answer(asks(*TEXTS), [1.0] * len(TEXTS), "test")]
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load model and tokenizer"):
        decoder(tmp_path)


def test_vllm_gets_the_same_settings_and_a_seed_for_each_prompt() -> None:
    decoding = Decoding(engine="vllm", top_p=0.9, top_k=7, max_new_tokens=77, stop_token_ids=[5])
    given = [vllm_sampling(decoding, 0.7, 3, row, [2, 5]) for row in (0, 1)]
    assert given[0] == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 7,
        "repetition_penalty": 1.0,
        "max_tokens": 77,
        "stop_token_ids": [2, 5],
        "seed": derived_seed(3, 0),
        "detokenize": False,
    }
    assert given[1] == given[0] | {"seed": derived_seed(3, 1)} != given[0]
    greedy = vllm_sampling(decoding, 0.0, 3, 0, [2])
    assert (greedy["top_p"], greedy["top_k"]) == (1.0, 0)


@pytest.mark.parametrize("own", [{}, {"do_sample": False}, {"top_k": None, "top_p": 0.4}])
def test_a_model_decodes_as_transformers_decodes_it_with_its_own_settings(tmp_path: Path, own: Any) -> None:
    made = make_model(tmp_path)  # samples from two tokens, with a penalty of 9
    file = made / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    maker = Decoder(made, "float32", ModelDecoding(max_new_tokens=12), seed=5)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made)
    ids = torch.tensor([maker._encode(asks(TEXTS[0])[0])])
    texts = []
    for label in "abcd":
        [answer] = maker.answer(asks(TEXTS[0]), [maker.decoding.temperature], label)
        torch.manual_seed(derived_seed(5, label, 0))
        expected = theirs.generate(ids, max_new_tokens=12)[0, ids.shape[1] :].tolist()
        assert answer == maker._read(maker.engine._up_to_stop(expected))
        texts.append(answer.text)
    assert len(set(texts)) == (1 if own.get("do_sample") is False else 4)


def test_settings_replace_the_models_own_and_bad_ones_are_named(tmp_path: Path) -> None:
    made = make_model(tmp_path)
    given = completed(ModelDecoding(temperature=0.5, top_k=0), made)
    assert (given.temperature, given.top_k, given.repetition_penalty, given.max_new_tokens) == (
        0.5,
        0,
        9.0,
        256,
    )
    plain = Decoding(max_new_tokens=3)
    assert completed(plain, made) is plain
    (made / "generation_config.json").unlink()
    assert completed(ModelDecoding(), made).temperature == 0.0
    (made / "generation_config.json").write_text('{"do_sample": true, "top_p": 1.5}')
    with pytest.raises(
        UserError, match=r"generation_config\.json: top_p: .* found 1\.5; set `decoding\.top_p`"
    ):
        completed(ModelDecoding(), made)


def test_an_engine_that_is_not_installed_is_told() -> None:
    if find_spec("vllm"):
        pytest.skip("vllm is installed")
    with pytest.raises(UserError, match=r"decoding.engine: vllm is not installed; `pip install vllm`"):
        made_with(Decoding(engine="vllm"), "sams.generation.generate")
    assert "vllm" not in made_with(Decoding(), "sams.generation.generate")["versions"]
