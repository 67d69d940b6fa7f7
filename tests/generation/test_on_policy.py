"""Pairs of a model's own answers, with a reward model that scores something."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sams.data.forms import read_pairs
from sams.generation.decode import Decoder
from sams.generation.facts import parts_path
from sams.generation.on_policy import best_and_worst, make_pairs
from sams.runtime.errors import UserError
from sams.scoring.inputs import meta_path
from sams.scoring.question_set import sample_label
from sams.scoring.reward import RewardModel
from sams.study.recipes import OnPolicyRecipe
from tests.generation.conftest import make_tokenizer

PROMPTS: list[Any] = [
    "sort this list",
    [
        {"role": "user", "content": "what is a"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "which word does not belong"},
    ],
    "\n\nHuman: reverse a b c\n\nAssistant: c b a\n\nHuman: a",
]


def make_reward_model(folder: Path, **settings: Any) -> Path:
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    sizes |= {"num_labels": 1, "pad_token_id": 0, "max_position_embeddings": 128, "initializer_range": 0.2}
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, **(sizes | settings)
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return path


def recipe(**decoding: Any) -> OnPolicyRecipe:
    return OnPolicyRecipe.model_validate(
        {
            "seed": 4,
            "precision": "float32",
            "decoding": {"max_new_tokens": 6} | decoding,
            "reward_batch_size": 4,
        }
    )


@torch.no_grad()
def reward_alone(folder: Path, conversation: list[dict[str, str]]) -> float:
    """Return the score of one conversation, without padding, from the last hidden state."""
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    return float(model.score(model.model(input_ids=ids).last_hidden_state[0, -1]))


def test_pairs_are_the_best_and_worst_of_five_samples(
    model: Path, reward_model: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pairs.jsonl"
    meta = make_pairs(recipe(), model, str(prompts), str(reward_model), out)
    pairs = list(read_pairs(str(out), "train"))
    assert (meta["n_prompts"], meta["n_pairs"], meta["n_answers"]) == (3, 3, 15)
    assert (meta["decoding"]["temperature"], meta["decoding"]["samples"]) == (0.8, 5)
    assert json.loads(meta_path(out).read_text()) == meta and not parts_path(out).exists()

    asked = [pair.prompt for pair in pairs]
    assert [len(prompt) for prompt in asked] == [1, 3, 3]
    assert asked[2][1] == {"role": "assistant", "content": "c b a"}
    decoder = Decoder(model, "float32", recipe().decoding, 4)
    for index, pair in enumerate(pairs):
        texts = [
            decoder.answer(asked, [0.8] * 3, sample_label("on_policy", sample))[index].text
            for sample in range(5)
        ]
        rewards = {
            text: reward_alone(reward_model, [*pair.prompt, {"role": "assistant", "content": text}])
            for text in texts
            if text
        }
        assert pair.chosen == max(rewards, key=lambda text: rewards[text])
        assert pair.rejected == min(rewards, key=lambda text: rewards[text])

    again = tmp_path / "again.jsonl"
    make_pairs(recipe(), model, str(prompts), str(reward_model), again)
    assert again.read_bytes() == out.read_bytes()


def test_best_and_worst_by_hand() -> None:
    assert best_and_worst(["a", "b", "c"], [0.1, -2.0, 0.3]) == (("c", "b"), "")
    assert best_and_worst(["a", "b", "c"], [0.3, -2.0, 0.3]) == (("a", "b"), "")
    assert best_and_worst(["a", "b", "c"], [None, 1.0, 2.0]) == (("c", "b"), "")
    assert best_and_worst(["a", "b"], [0.5, 0.5]) == (None, "tied")
    assert best_and_worst(["a", "b"], [0.5, None]) == (None, "too_long")
    assert best_and_worst(["a"], [0.5]) == (None, "alike")
    assert best_and_worst([], []) == (None, "alike")


def test_prompts_without_a_pair_are_counted(
    model: Path, reward_model: Path, prompts: Path, tmp_path: Path
) -> None:
    def problem(reward: Path, **decoding: Any) -> str:
        with pytest.raises(UserError, match="none of 3 prompts gives a pair") as found:
            make_pairs(recipe(**decoding), model, str(prompts), str(reward), tmp_path / "pairs.jsonl")
        assert not (tmp_path / "pairs.jsonl").exists()
        return str(found.value)

    assert "'alike': 3, 'too_long': 0, 'tied': 0" in problem(reward_model, temperature=1e-3)
    tied = make_reward_model(tmp_path / "tied")
    flat: Any = transformers.LlamaForSequenceClassification.from_pretrained(tied)
    flat.score.weight.data.zero_()
    flat.save_pretrained(tied)
    assert "'alike': 0, 'too_long': 0, 'tied': 3" in problem(tied)
    short = make_reward_model(tmp_path / "short", max_position_embeddings=5)
    assert "'alike': 0, 'too_long': 3, 'tied': 0" in problem(short)


def test_rewards_do_not_depend_on_the_batch_or_on_a_padding_token(reward_model: Path, tmp_path: Path) -> None:
    conversations = [
        [{"role": "user", "content": "what is a"}, {"role": "assistant", "content": text}]
        for text in ("a", "sort this list a", "which word", "reverse a b c a b c")
    ]
    together = RewardModel(str(reward_model), "float32", 4).scores(conversations)
    expected = [reward_alone(reward_model, conversation) for conversation in conversations]
    assert together == pytest.approx(expected, abs=1e-5)
    unpadded = make_reward_model(tmp_path / "unpadded", pad_token_id=None)
    assert RewardModel(str(unpadded), "float32", 4).scores(conversations) == pytest.approx(expected, abs=1e-5)


def test_what_gives_no_reward_is_refused_before_the_sampling(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    two = make_reward_model(tmp_path / "two", num_labels=2)
    mute = make_reward_model(tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    pickled = make_reward_model(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    # A language model loads as a classifier, with a head drawn at random.
    headless = shutil.copytree(model, tmp_path / "headless")
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"num_labels": 1}))
    for folder, message in (
        (headless, "is not a reward model: 1 outputs, 1 weights"),
        (two, "is not a reward model: 2 outputs, 0 weights"),
        (mute, "tokenizer has no chat template"),
        (pickled, "cannot load a reward model: .*safetensors"),
        (tmp_path / "absent", "cannot load a reward model"),
    ):
        with pytest.raises(UserError, match=message):
            make_pairs(recipe(), tmp_path / "no-model", str(prompts), str(folder), tmp_path / "pairs.jsonl")


def test_a_prompt_that_is_none_is_named(model: Path, reward_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"question": "b"}\n')
    with pytest.raises(UserError, match=r"prompts.jsonl, row 2, key 'prompt': missing"):
        make_pairs(recipe(), model, str(path), str(reward_model), tmp_path / "pairs.jsonl")
