"""What a recipe can ask for besides the plain run: rounds, losses, adapters, watching, cross-fitting, gates."""

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from pyarrow import parquet
from safetensors.torch import load_file

from sams.data.records import is_flipped
from sams.losses.table import build_loss
from sams.policy.model import add_lora, build_model, load_model
from sams.policy.stored import stored_names, without_weights
from sams.runtime.errors import UserError
from sams.runtime.files import digest_of, read_json, write_manifest
from sams.study.recipes import ExportRecipe, ReferenceRecipe, SftRecipe, Watching
from sams.study.settings import Lora, Model, Preference, Scheduler, Sft
from sams.training import crossfit, export, preference, reference, sft
from sams.training.gates import TrainingFailure, refuse_foreign_reference
from sams.training.tasks.base import Items
from sams.training.tasks.preference import PreferenceTask, read_reference, read_task
from tests import tiny
from tests.training.test_runs import (
    TRAINING,
    here,
    losses,
    preference_recipe,
    run,
    shifted_reference,
    weights,
)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


def test_sams_that_selects_all_is_bitwise_plain_dpo(prepared: dict[str, Path], tmp_path: Path) -> None:
    """Neither the scoring pass nor the scheduler's random numbers touch the policy."""
    run(prepared, tmp_path / "sams", ratio=1.0, micro_batch_size=3)
    run(prepared, tmp_path / "plain", selector="all", ratio=1.0, micro_batch_size=3)
    ours, plain = weights(tmp_path / "sams"), weights(tmp_path / "plain")
    for name, value in plain.items():
        assert torch.equal(ours[name], value), name
    assert [line["loss"] for line in lines(tmp_path / "sams")] == [
        line["loss"] for line in lines(tmp_path / "plain")
    ]


def test_rounds_are_full_in_the_warm_up_now_and_then_and_after_the_end(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    rounds = {"warmup_rounds": 1, "full_every": 3, "end_after": 5}
    run(prepared, tmp_path, max_steps=7, epochs=2, **rounds)
    found = lines(tmp_path)
    assert [line["selected/share"] for line in found] == [1.0, 0.5, 1.0, 0.5, 0.5, 1.0, 1.0]
    # After the end nothing is scored: what the policy says of all pairs is not known.
    assert ["all/loss" in line for line in found] == [True] * 5 + [False] * 2
    assert read_json(tmp_path / "train_metrics.json")["pairs_trained"] == 16 * 4 + 8 * 3


def test_a_list_of_ratios_holds_for_equal_parts_of_the_run(prepared: dict[str, Path], tmp_path: Path) -> None:
    run(prepared, tmp_path, selector="low_margin", ratio=[1.0, 0.25])
    assert [line["selected/share"] for line in lines(tmp_path)] == [1.0, 1.0, 0.25, 0.25]


@pytest.mark.parametrize(
    "selector", ["top_margin", "low_margin", "top_loss", "reward", "beta_dpo_filter", "oracle"]
)
def test_every_selector_trains(prepared: dict[str, Path], tmp_path: Path, selector: str) -> None:
    recipe = preference_recipe(selector=selector, max_steps=2)
    if selector == "reward":
        recipe = recipe.model_copy(update={"scheduler": Scheduler()})
    here(preference, recipe, **prepared, out=tmp_path, checkpoints=tmp_path / "c")
    found = lines(tmp_path)
    assert [line["selected/share"] for line in found] == [0.5, 0.5]
    if selector == "oracle":
        assert [line["selected/flipped_share"] for line in found] == [0.0, 0.0]
        assert all(line["all/flipped_share"] > 0 for line in found)


@pytest.mark.parametrize("loss", ["simpo", "orpo", "cpo", "slic-hf", "rrhf"])
def test_a_loss_without_a_reference_needs_none(prepared: dict[str, Path], tmp_path: Path, loss: str) -> None:
    inputs = {name: path for name, path in prepared.items() if name != "reference"}
    run(inputs, tmp_path, loss=loss, max_steps=2)
    assert all(line["grad_norm"] > 0 for line in lines(tmp_path))
    with pytest.raises(UserError, match="--reference: loss sigmoid needs reference log-probs"):
        run(inputs, tmp_path / "sigmoid", max_steps=2)


def test_kto_takes_its_kl_term_from_mismatched_completions(tmp_path: Path) -> None:
    tokens = tiny.write_tokens(tmp_path / "tokens", mismatched=True)
    inputs = {"tokens": tokens, "model": new_model(tmp_path / "model", seed=0)}
    for name, seed in (("same", 0), ("other", 1)):
        settings = ReferenceRecipe(model=tiny.settings(), micro_batch_size=16, mismatched=True)
        model = new_model(tmp_path / name, seed=seed)
        here(reference, settings, tokens=tokens, model=model, out=tmp_path / f"{name}_reference")

    recipe = preference_recipe(loss="kto", max_steps=2, selector="all", ratio=1.0, other_reference=True)
    out = tmp_path / "out"
    here(preference, recipe, **inputs, reference=tmp_path / "same_reference", out=out, checkpoints=out / "c")
    # Policy = reference: all log-ratios and the KL term are 0, and both halves lose 1 - sigmoid(0).
    assert lines(out)[0]["loss"] == pytest.approx(0.5, abs=1e-5)

    out = tmp_path / "shifted"
    here(preference, recipe, **inputs, reference=tmp_path / "other_reference", out=out, checkpoints=out / "c")
    assert lines(out)[0]["loss"] == pytest.approx(kto_by_hand(tokens, inputs["model"], tmp_path), abs=1e-5)


def new_model(folder: Path, *, seed: int) -> Path:
    build_model(tiny.settings(), tiny.tokenizer(), seed=seed).save_pretrained(folder)
    write_manifest(folder)
    return folder


def kto_by_hand(tokens: Path, model: Path, folder: Path) -> float:
    """KTO's loss of the first batch, from the model's own logits (Ethayarajh et al. 2024, Eq. 8)."""
    import datasets
    import transformers

    from sams.training.batches import rounds

    policy = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    data = datasets.load_from_disk(str(tokens / "train"))
    cached = parquet.read_table(folder / "other_reference" / "train.parquet").to_pydict()
    ratios: dict[str, list[float]] = {"chosen": [], "rejected": [], "mismatched": []}
    for item in next(rounds(64, 16, 1, 0))[1]:
        for name, found in ratios.items():
            prompt, completion = data[item]["prompt_ids"], data[item][f"{name}_ids"]
            logps = policy(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(1)
            positions = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
            logp = sum(logps[index, token].item() for index, token in zip(positions, completion, strict=True))
            found.append(logp - cached[name][item])
    kl = max(0.0, sum(ratios["mismatched"]) / 16)
    sigmoid = torch.tensor
    chosen = [1 - sigmoid(0.1 * (ratio - kl)).sigmoid().item() for ratio in ratios["chosen"]]
    rejected = [1 - sigmoid(0.1 * (kl - ratio)).sigmoid().item() for ratio in ratios["rejected"]]
    return (sum(chosen) + sum(rejected)) / 32


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_adapters_are_trained_alone_and_merged_at_export(
    prepared: dict[str, Path], tmp_path: Path, targets: Any
) -> None:
    run(prepared, tmp_path, lora={"r": 4, "alpha": 8.0, "target_modules": targets}, learning_rate=1e-2)
    assert lines(tmp_path)[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    trained = weights(tmp_path)
    assert len(trained) == 2 * (14 if targets == "all-linear" else 4)
    assert all(".lora_" in name for name in trained), "the base is not written again"

    recipe, out = ExportRecipe(model=tiny.settings()), tmp_path / "model"
    paths = {"tokens": prepared["tokens"], "trained": tmp_path / "trained", "model": prepared["model"]}
    here(export, recipe, **paths, out=out)
    before = load_file(prepared["model"] / "model.safetensors")
    after = load_file(out / "model.safetensors")
    assert after.keys() == before.keys()
    name = "model.layers.0.self_attn.q_proj"
    a, b = (trained[f"policy.model.{name}.lora_{part}.default.weight"] for part in "AB")
    torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + 8.0 / 4 * b @ a)
    assert (b @ a).norm() > 0
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert "model.embed_tokens.weight" not in changed
    assert len(changed) == (14 if targets == "all-linear" else 4)
    assert stored_names(without_weights(out, "sdpa"), out) is not None, "not hidden by those of the adapters"

    base = transformers.AutoModelForCausalLM.from_pretrained(prepared["model"])
    adapted = peft.PeftModel.from_pretrained(base, out / "adapter")
    merged, ids = transformers.AutoModelForCausalLM.from_pretrained(out), torch.tensor([[1, 5, 6, 7]])
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits)
    here(export, recipe, **paths, out=tmp_path / "again")
    assert digest_of(tmp_path / "again") == digest_of(out)


def test_adapters_of_the_output_layer_are_exported_right_or_refused(tokens: Path, tmp_path: Path) -> None:
    """Compared with a second base to which peft gives the trained adapters."""
    lora = {"r": 4, "target_modules": ["lm_head", "embed_tokens", "q_proj"]}
    training = Sft.model_validate(TRAINING | {"max_steps": 2, "learning_rate": 1e-2, "lora": lora})
    for tied in (True, False):
        architecture = {**tiny.settings().architecture, "tie_word_embeddings": tied}  # type: ignore[dict-item]
        model = tiny.settings(architecture=architecture)
        recipe, out = SftRecipe(seed=0, model=model, training=training), tmp_path / str(tied)
        with pytest.raises(UserError, match=r"tied.*; drop lm_head and emb") if tied else nullcontext():
            here(sft, recipe, tokens=tokens, out=out, checkpoints=out / "c")
    here(export, ExportRecipe(model=model), tokens=tokens, trained=out / "trained", out=out / "model")
    ids, state = torch.tensor([[1, 5, 6, 7]]), weights(out)
    trained = peft.get_peft_model(
        build_model(model, tiny.tokenizer(), seed=0),
        peft.LoraConfig(r=4, lora_alpha=32, target_modules=lora["target_modules"]),
    )
    before = trained(ids).logits
    trained.base_model.model.load_state_dict(
        {name.removeprefix("policy.model."): value for name, value in state.items()}
    )
    exported = transformers.AutoModelForCausalLM.from_pretrained(out / "model")
    torch.testing.assert_close(exported(ids).logits, trained(ids).logits)
    assert not torch.allclose(before, trained(ids).logits, atol=1e-3)


def test_adapters_are_merged_into_no_other_base(prepared: dict[str, Path], tmp_path: Path) -> None:
    run(prepared, tmp_path, lora={"r": 4}, max_steps=1)
    paths = {"tokens": prepared["tokens"], "trained": tmp_path / "trained", "out": tmp_path / "model"}
    other = new_model(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="other: the adapters were trained on another base model"):
        here(export, ExportRecipe(model=tiny.settings()), **paths, model=other)
    with pytest.raises(UserError, match="trained: adapters without their base model"):
        here(export, ExportRecipe(model=tiny.settings()), **paths)


@pytest.mark.parametrize("fresh", [True, False])
def test_adapters_of_sft_find_their_base(tokens: Path, tmp_path: Path, fresh: bool) -> None:
    """The base is the recipe's model; a fresh one is in no file but that of the adapters."""
    path = new_model(tmp_path / "start", seed=5)
    source = {} if fresh else {"path": str(path), "architecture": None, "tokenizer": None}
    model = Model.model_validate({**tiny.settings().model_dump(), **source})
    training = Sft.model_validate(TRAINING | {"max_steps": 2, "learning_rate": 1e-2, "lora": {"r": 4}})
    recipe = SftRecipe(seed=0, model=model, training=training)
    here(sft, recipe, tokens=tokens, out=tmp_path, checkpoints=tmp_path / "c")
    paths = {"tokens": tokens, "trained": tmp_path / "trained", "out": tmp_path / "model"}
    here(export, ExportRecipe(model=model), **paths)
    after, name = load_file(tmp_path / "model" / "model.safetensors"), "model.embed_tokens.weight"
    base = build_model(tiny.settings(), tiny.tokenizer(), seed=0 if fresh else 5).state_dict()
    assert torch.equal(after[name], base[name])
    changed = [name for name in after if not torch.equal(after[name], base[name])]
    assert len(changed) == 14
    assert any(name.endswith("lora_A.default.weight") for name in weights(tmp_path))
    assert (f"policy.model.{name}" in weights(tmp_path)) == fresh
    sources = read_json(tmp_path / "model" / "manifest.json")["sources"]
    assert (str(path / "model.safetensors") in sources) != fresh


def test_adapters_are_drawn_from_the_seed(prepared: dict[str, Path], tmp_path: Path) -> None:
    drawn = []
    for noise, seed in ((0, 0), (1, 0), (2, 3)):
        torch.manual_seed(noise)
        model = load_model(prepared["model"], tiny.settings())
        add_lora(model, Lora(), seed)
        drawn.append(
            torch.cat([weight.flatten() for name, weight in model.named_parameters() if "lora" in name])
        )
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_scheduler_that_watches_learns_and_leaves_sft_bitwise_alone(tokens: Path, tmp_path: Path) -> None:
    training = Sft.model_validate(TRAINING | {"max_steps": 4})
    plain = SftRecipe(seed=0, model=tiny.settings(), training=training)
    watched = plain.model_copy(update={"watching": Watching(scheduler=Scheduler(), ratio=0.5)})
    here(sft, plain, tokens=tokens, out=tmp_path / "a", checkpoints=tmp_path / "ca")
    here(
        sft,
        watched,
        tokens=tokens,
        out=tmp_path / "b",
        checkpoints=tmp_path / "cb",
        scheduler=tmp_path / "scheduler",
    )
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name, value in ours.items():
        assert torch.equal(theirs[name], value), name
    found = lines(tmp_path / "b")
    assert "scheduler/batch_reward" not in found[0]
    assert all(line["scheduler/batch_reward"] != 0 for line in found[1:])
    assert (tmp_path / "scheduler" / "scheduler.pt").is_file()


def test_selective_trains_on_the_pairs_that_others_found_easiest(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    inputs = {name: prepared[name] for name in ("tokens", "model", "reference")}
    plain = preference_recipe(selector="all", ratio=1.0, max_steps=None)
    halves, found = [], {}
    for half in (0, 1):
        out = tmp_path / f"half{half}"
        here(crossfit, plain, **inputs, half=half, out=out, checkpoints=out / "c")
        table = parquet.read_table(out / "losses" / "losses.parquet").to_pydict()
        assert len(table["id"]) == 32
        found |= dict(zip(table["id"], table["loss"], strict=True))
        halves.append(out / "losses")
    assert len(found) == 64

    recipe = preference_recipe(selector="selective", ratio=0.5, max_steps=None)
    here(preference, recipe, **inputs, crossfit=halves, out=tmp_path / "out", checkpoints=tmp_path / "c")
    metrics = read_json(tmp_path / "out" / "train_metrics.json")
    # As many rounds, and as many pairs in each, as another selector at this ratio: 64 / 16 rounds of 8.
    assert (metrics["steps"], metrics["pairs_trained"]) == (4, 32)
    costs = [read_json(tmp_path / f"half{half}" / "train_metrics.json")["train_seconds"] for half in (0, 1)]
    assert metrics["preparation_seconds"] == pytest.approx(sum(costs))
    # SamS on top of it: of 8 easy pairs, the 6 that the scheduler chooses.
    recipe = preference_recipe(easiest=0.5, ratio=0.75, max_steps=None)
    here(preference, recipe, **inputs, crossfit=halves, out=tmp_path / "both", checkpoints=tmp_path / "e")
    metrics = read_json(tmp_path / "both" / "train_metrics.json")
    assert (metrics["steps"], metrics["pairs_seen"], metrics["pairs_trained"]) == (4, 32, 24)
    with pytest.raises(
        UserError, match=r"--crossfit: cross-fitted losses do not belong .*64 pairs, 32 losses"
    ):
        here(
            preference, recipe, **inputs, crossfit=halves[:1], out=tmp_path / "o", checkpoints=tmp_path / "d"
        )


def test_flipped_labels_are_those_of_id_and_seed_with_their_reference(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    recipe = preference_recipe(flipped_share=0.4, flip_seed=3)
    paths = (prepared["tokens"], prepared["reference"])
    clean = read_task(*paths, "train", preference_recipe().training, precision="float32")
    noisy = read_task(*paths, "train", recipe.training, precision="float32")
    assert noisy.ids == clean.ids and clean.reference is not None and noisy.reference is not None
    swapped = [is_flipped(pair, 0.4, 3) for pair in clean.ids]
    assert 10 < sum(swapped) < 40
    for index, flip in enumerate(swapped):
        ours = (noisy.chosen[index], noisy.rejected[index])
        theirs = (clean.chosen[index], clean.rejected[index])
        assert ours == (theirs[::-1] if flip else theirs)
        assert torch.equal(
            noisy.reference[index], clean.reference[index].flip(0) if flip else clean.reference[index]
        )
        # What the data knew to be flipped, and is drawn again, is clean.
        assert noisy.flipped[index] == (clean.flipped[index] != flip)
    test = read_task(*paths, "test", recipe.training, precision="float32")
    assert list(test.chosen) == list(
        read_task(*paths, "test", preference_recipe().training, precision="float32").chosen
    )

    # The first step's gate has held the policy against the swapped reference; the oracle knows the flags.
    run(prepared, tmp_path, selector="oracle", ratio=0.5, flipped_share=0.4, flip_seed=3)
    recorded = parquet.read_table(tmp_path / "pairs.parquet", filters=[("split", "==", "train")]).to_pydict()
    labels = dict(zip(noisy.ids, noisy.flipped, strict=True))
    assert len(recorded["id"]) == 64 and recorded["flipped"] == [labels[pair] for pair in recorded["id"]]
    found = lines(tmp_path)
    assert sum(line["all/flipped_share"] for line in found) / 4 == sum(map(bool, noisy.flipped)) / 64
    assert all(line["selected/flipped_share"] < line["all/flipped_share"] for line in found)


def test_a_finished_model_is_exported_with_its_own_tokenizer(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    given = shutil.copytree(prepared["model"], tmp_path / "given")
    template = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] }}{% endfor %}"
    (given / "chat_template.jinja").write_text(template)
    model = tiny.settings(path=str(given), architecture=None, tokenizer=None)
    here(export, ExportRecipe(model=model), out=tmp_path / "model")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", given))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == template
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (given / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="--tokens: a tokenizer is needed"):
        here(export, ExportRecipe(model=tiny.settings()), out=tmp_path / "fresh")
    here(export, ExportRecipe(model=tiny.settings()), tokens=prepared["tokens"], out=tmp_path / "fresh")
    assert (tmp_path / "fresh" / "model.safetensors").is_file()


def test_a_reference_that_is_not_the_policys_own_is_noticed_before_the_first_step(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    """A cache that claims to be of this model but was made with, say, another kernel or template."""
    broken = shifted_reference(prepared["reference"], tmp_path / "reference", 1e-3)
    with pytest.raises(TrainingFailure, match=r"step 1: the policy disagrees with the cached reference"):
        run({**prepared, "reference": broken}, tmp_path / "o")
    assert not (tmp_path / "o" / "trained").exists()

    # The same start again would fail again: it ends at once, and says how to try nevertheless.
    with pytest.raises(UserError, match=r"failed before.*disagrees.*delete .*FAILED") as again:
        run({**prepared, "reference": broken}, tmp_path / "o")
    assert not isinstance(again.value, TrainingFailure)
    marker = next((tmp_path / "o" / "c").glob("*/FAILED"))
    marker.unlink()
    with pytest.raises(TrainingFailure):
        run({**prepared, "reference": broken}, tmp_path / "o")


def test_reference_log_probs_of_another_model_are_refused_unless_they_are_meant(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    """Log-probs that the stage itself computed, of a fresh model, given by hand to training from the SFT model."""
    recipe = ExportRecipe(model=tiny.settings())
    here(export, recipe, tokens=prepared["tokens"], out=tmp_path / "fresh")
    other = {"tokens": prepared["tokens"], "model": tmp_path / "fresh"}
    scoring = ReferenceRecipe(model=tiny.settings(), micro_batch_size=16)
    here(reference, scoring, **other, out=tmp_path / "reference")
    given = {**prepared, "reference": tmp_path / "reference"}
    with pytest.raises(UserError, match=r"reference: these reference log-probs are not of the model.*; run"):
        run(given, tmp_path / "o")
    for name, loss in (("meant", "sigmoid"), ("no_reference", "simpo")):
        run(given, tmp_path / name, loss=loss, max_steps=1, other_reference=name == "meant")
    assert losses(tmp_path / "meant")[0] != pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_gate_bounds_the_mean_and_each_pair(precision: str) -> None:
    bias, noise = {"float32": (1e-5, 0.0), "bfloat16": (1e-3, 6 * 0.05)}[precision]
    data, items = tiny.pairs(8, seed=1), list(range(8))
    loss = build_loss("sigmoid", beta=0.1, settings={}, sft_weight=0.0)
    task = PreferenceTask(data, loss=loss, reference=dict.fromkeys(data["id"], (-2.0, -3.0)))

    chosen_tokens, rejected_tokens = (
        torch.tensor([len(ids) for ids in data[side]]) for side in ("chosen_ids", "rejected_ids")
    )

    def off(chosen: list[float], rejected: list[float]) -> Items:
        """A policy whose log-probs per token are so far from the reference's."""
        return {
            "logps/chosen": torch.tensor(chosen) * chosen_tokens - 2,
            "logps/rejected": torch.tensor(rejected) * rejected_tokens - 3,
        }

    def gate(found: Items) -> None:
        refuse_foreign_reference(task, items, found, precision=precision)

    limit = bias + noise / float(chosen_tokens.sum() + rejected_tokens.sum()) ** 0.5
    gate(off([0.0] * 8, [0.0] * 8))
    gate(off([0.9 * limit] * 8, [0.9 * limit] * 8))
    with pytest.raises(TrainingFailure, match=r"in the mean \(allowed"):
        gate(off([-1.2 * limit] * 8, [-1.2 * limit] * 8))
    # One pair out of eight, its completions off by as much either way, so that the mean is 0.
    sizes = int(chosen_tokens[3]), int(rejected_tokens[3])
    for times, refused in ((0.9, False), (1.1, True)):
        most = times * min(20 * bias * size + noise * size**0.5 for size in sizes)
        found = off([0.0] * 3 + [most / sizes[0]] + [0.0] * 4, [0.0] * 3 + [-most / sizes[1]] + [0.0] * 4)
        with pytest.raises(TrainingFailure, match=data["id"][3]) if refused else nullcontext():
            gate(found)
    with pytest.raises(TrainingFailure):
        gate(off([float("nan")] + [0.0] * 7, [0.0] * 8))


@pytest.mark.parametrize("fault", ["missing", "foreign", "twice"])
def test_a_cache_of_other_pairs_is_refused_and_its_order_does_not_matter(
    prepared: dict[str, Path], tmp_path: Path, fault: str
) -> None:
    import pyarrow as pa

    table = parquet.read_table(prepared["reference"] / "train.parquet").to_pydict()
    rows = list(zip(table["id"], table["chosen"], table["rejected"], strict=True))

    def read(rows: list[Any]) -> dict[str, tuple[float, ...]]:
        columns = dict(zip(("id", "chosen", "rejected"), zip(*rows, strict=True), strict=True))
        parquet.write_table(pa.table({name: list(column) for name, column in columns.items()}), file)
        return read_reference(tmp_path, "train", table["id"])

    file = tmp_path / "train.parquet"
    assert read(rows[::-1]) == {pair: (chosen, rejected) for pair, chosen, rejected in rows}
    wrong = {"missing": rows[1:], "foreign": [*rows, ("x", -1.0, -2.0)], "twice": [*rows, rows[0]]}[fault]
    message = {"missing": rows[0][0], "foreign": "differing at x", "twice": "one is cached twice"}[fault]
    with pytest.raises(UserError, match=f"do not belong to these pairs .*{message}"):
        read(wrong)


def test_followed_pairs_and_costs_are_logged(prepared: dict[str, Path], tmp_path: Path) -> None:
    run(prepared, tmp_path, followed_pairs=3)
    found = lines(tmp_path)
    assert all({"followed/00", "followed/01", "followed/02"} <= set(line) for line in found)
    assert found[-1]["followed/00"] != found[0]["followed/00"]
    costs = [json.loads(line) for line in (tmp_path / "costs.jsonl").read_text().splitlines()]
    assert [cost["step"] for cost in costs] == [1, 2, 3, 4]
    for cost in costs:
        assert 0 <= cost["padding_share"] < 0.5
        assert cost["tokens_per_second"] > 0
        assert cost["busiest_over_mean"] == 1.0
    assert not {"seconds", "tokens_per_second"} & set(found[0]), "times in the log would not resume bitwise"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "simpo", "loss_settings": {"gama": 1.0}}, "gama"),
        ({"loss": "robust", "loss_settings": {"label_smoothing": 0.5}}, "label_smoothing"),
        ({"selector": "all", "ratio": [0.5]}, "selector `all` has ratio 1.0"),
        ({"selector": "selective", "ratio": 0.5, "warmup_rounds": 2}, "selective"),
        ({"selector": "random", "ratio": [0.5, 0.3]}, "whole number"),
        ({"selector": "random", "ratio": []}, "ratio"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preference.model_validate({"batch_size": 16, **wrong})
