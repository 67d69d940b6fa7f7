"""Five whole training steps against TRL's own trainers, for every loss that TRL can be made to compute.

The same token ids, policy and reference go through TRL's trainer, from text to optimiser, and through our
scoring, task and gradient. `python -m tests.training.test_against_trl` prints how far the two are apart.
"""

import random
import tempfile
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from sams.losses.table import build_loss
from sams.policy.attention import SEGMENTS
from sams.policy.model import build_model
from sams.policy.policy import Policy
from sams.policy.rows import Item, pad_rows
from sams.training.distribution import Workers
from sams.training.passes import accumulate_gradient, kl_term, score
from sams.training.tasks.base import Items, Scored
from sams.training.tasks.pairs import MismatchedTask, PairTask
from sams.training.tasks.preference import PreferenceTask
from tests import tiny

BETA = 0.3
RATE = 0.3
COUNT = 30
BATCHES = [list(range(start, start + 6)) for start in range(0, COUNT, 6)]
SAME = 4
"""Tokens of each chosen response, where its likelihood counts: TRL takes the mean over the tokens of a batch,
we that over its pairs."""

Columns = dict[str, list[Any]]
Sequence = tuple[list[int], list[int]]
"""Token ids of a prompt and of a completion."""


@dataclass(frozen=True)
class Case:
    """A loss of ours, and the trainer of TRL with the settings that make it compute the same."""

    loss: str
    trainer: str
    trl: dict[str, Any]
    ours: dict[str, float] = field(default_factory=dict)
    sft_weight: float = 0.0
    same_length: bool = False
    bare_prompts: bool = False

    @property
    def name(self) -> str:
        return self.loss + (" + SFT term" if self.sft_weight else "")


FLIPS = {"label_smoothing": 0.2}
WEIGHTS = {"desirable_weight": 1.3, "undesirable_weight": 0.6}
CASES = [
    Case("sigmoid", "DPOTrainer", {"loss_type": ["sigmoid"]}),
    Case("robust", "DPOTrainer", {"loss_type": ["robust"], **FLIPS}, FLIPS),
    # TRL has no cDPO. With a flip rate of e it is 2 (1 - e) times sigmoid - (1 - 2 e) times robust.
    Case(
        "cdpo",
        "DPOTrainer",
        {"loss_type": ["sigmoid", "robust"], "loss_weights": [1.6, -0.6], **FLIPS},
        FLIPS,
    ),
    Case("hinge", "DPOTrainer", {"loss_type": ["hinge"]}),
    Case("ipo", "DPOTrainer", {"loss_type": ["ipo"]}),
    Case(
        "sigmoid",
        "DPOTrainer",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]},
        sft_weight=0.4,
        same_length=True,
    ),
    Case("kto", "KTOTrainer", WEIGHTS, WEIGHTS),
    Case(
        "simpo",
        "CPOTrainer",
        {"loss_type": "simpo", "simpo_gamma": 1.4 * BETA, "cpo_alpha": 0.0},
        {"gamma_beta_ratio": 1.4},
    ),
    Case("cpo", "CPOTrainer", {"cpo_alpha": 0.7}, {"nll_weight": 0.7}, same_length=True),
    # CPO's hinge: its beta is 1 / delta, and its likelihood term is per token where SLiC-HF's is a sum.
    Case(
        "slic-hf",
        "CPOTrainer",
        {"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0.1 * SAME},
        {"delta": 1.0, "nll_weight": 0.1},
        same_length=True,
    ),
    # TRL's likelihood term takes in the prompt: of one that is <bos> alone no token is predicted.
    Case("orpo", "ORPOTrainer", {}, same_length=True, bare_prompts=True),
]


@dataclass
class Steps:
    """What one side did: in each step the sequences, the loss, the gradient and the reward accuracy where TRL has
    it; the update of all of them."""

    sequences: list[list[Sequence]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    update: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Differences:
    """How far two sides are apart: the largest difference of the loss in five steps, the largest of the gradient
    over its largest entry, the L2 norm of the updates' difference over that of TRL's update, which is `moved`."""

    loss: float
    gradient: float
    update: float
    moved: float


def draw_pairs(case: Case) -> Columns:
    """Tokenised pairs of random words."""
    draw = random.Random(0)

    def words(least: int, most: int) -> list[int]:
        return [draw.randrange(3, 43) for _ in range(draw.randint(least, most))]

    shortest, longest = (SAME - 1, SAME - 1) if case.same_length else (1, 7)
    return {
        "id": [str(pair) for pair in range(COUNT)],
        "prompt_ids": [[1] if case.bare_prompts else [1, *words(3, 9)] for _ in range(COUNT)],
        "chosen_ids": [[*words(shortest, longest), 2] for _ in range(COUNT)],
        "rejected_ids": [[*words(1, 7), 2] for _ in range(COUNT)],
        "flipped": [None] * COUNT,
    }


def models() -> tuple[transformers.PreTrainedModel, transformers.PreTrainedModel]:
    """A policy and a reference that is another model, and the more decided one.

    Random words are then less likely under the reference than under the policy, and KTO's KL term is not 0.
    """
    policy, reference = (build_model(tiny.settings(), tiny.tokenizer(), seed=0) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for model, noise in ((policy, 0.05), (reference, 0.15)):
        for parameter in model.parameters():
            parameter.data += noise * torch.randn(parameter.shape, generator=generator)
    return policy, reference


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def gradient(model: nn.Module) -> Tensor:
    gradients = [parameter.grad for parameter in model.parameters()]
    return torch.cat([part.flatten() for part in gradients if part is not None])


def sequences(ids: Tensor, attended: Tensor, completion: Tensor) -> list[Sequence]:
    """Padded rows as prompts and completions."""
    found = []
    for row, length, learnt in zip(ids, attended.sum(dim=1).tolist(), completion.bool(), strict=True):
        start = length - int(learnt.sum())
        assert learnt[start:length].all(), "a completion is the end of its sequence"
        found.append((row[:start].tolist(), row[start:length].tolist()))
    return found


# TRL's side.


def texts(case: Case, data: Columns) -> Columns:
    """The pairs as text, which TRL tokenises and ends with <eos>; for KTO the halves of each batch one by one."""
    convert = tiny.tokenizer().convert_ids_to_tokens
    prompts = [" ".join(convert(ids)) for ids in data["prompt_ids"]]
    completions = {
        side: ["".join(f" {word}" for word in convert(ids[:-1])) for ids in data[f"{side}_ids"]]
        for side in ("chosen", "rejected")
    }
    if case.trainer != "KTOTrainer":
        return {"prompt": prompts, **completions}
    halves = [(side, pair) for batch in BATCHES for side in completions for pair in batch]
    return {
        "prompt": [prompts[pair] for _, pair in halves],
        "completion": [completions[side][pair] for side, pair in halves],
        "label": [side == "chosen" for side, _ in halves],
    }


def trl_steps(case: Case, data: Columns) -> Steps:
    """Let TRL's trainer take the steps."""
    import datasets
    import trl
    from transformers.trainer_callback import PrinterCallback
    from trl.experimental import cpo, orpo

    home: Any = {"CPOTrainer": cpo, "ORPOTrainer": orpo}.get(case.trainer, trl)
    trainer_class: Any = getattr(home, case.trainer)
    config_class: Any = getattr(home, case.trainer.replace("Trainer", "Config"))
    done = Steps()

    class Recorded(trainer_class):
        def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any) -> Tensor:
            loss: Tensor = super().training_step(model, inputs, *args)
            done.sequences.append(trl_sequences(inputs))
            done.losses.append(loss.item())
            done.gradients.append(gradient(model))
            if case.trainer == "DPOTrainer":
                done.accuracies.append(self._metrics["train"]["rewards/accuracies"][-1])
            return loss

        def _send_telemetry(self) -> None:
            """Nothing leaves this machine."""

    policy, reference = models()
    before = weights(policy)
    optimiser = torch.optim.SGD(policy.parameters(), lr=RATE)
    constant = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
    halves = 2 if case.trainer == "KTOTrainer" else 1
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "per_device_train_batch_size": halves * len(BATCHES[0]),
            "num_train_epochs": 1,
            "train_sampling_strategy": "sequential",
            "max_grad_norm": 0.0,  # no clipping
            "beta": BETA,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        trainer = Recorded(
            model=policy,
            args=config_class(**settings | case.trl),
            train_dataset=datasets.Dataset.from_dict(texts(case, data)),
            processing_class=tiny.tokenizer(),
            optimizers=(optimiser, constant),
            **({"ref_model": reference} if home is trl else {}),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    done.update = weights(policy) - before
    return done


def trl_sequences(inputs: dict[str, Tensor]) -> list[Sequence]:
    """What a batch of TRL's holds: chosen, rejected and then KTO's mismatched sequences."""
    found = []
    for prefix in ("", "KL_", "chosen_", "rejected_"):
        if f"{prefix}input_ids" in inputs:
            completion = inputs.get(f"{prefix}completion_mask")
            if completion is None:  # CPO and ORPO
                completion = inputs[f"{prefix}labels"] != -100
            found += sequences(inputs[f"{prefix}input_ids"], inputs[f"{prefix}attention_mask"], completion)
    return found


# Our side.


def our_steps(case: Case, data: Columns, packed: str | None) -> Steps:
    """Take the steps with the pieces that the training loop is made of, with rows packed or padded."""
    workers = Workers(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)
    loss = build_loss(case.loss, beta=BETA, settings=case.ours, sft_weight=case.sft_weight)
    model, reference = models()
    if loss.needs_kl:
        data = with_mismatched(data)
    cached = reference_logps(data, reference, workers) if loss.needs_reference else None
    task = PreferenceTask(data, loss=loss, reference=cached)
    policy = Policy(model)
    policy.pack(packed)
    before = weights(policy)
    optimiser = torch.optim.SGD(policy.parameters(), lr=RATE)
    done = Steps()

    for batch in BATCHES:
        optimiser.zero_grad()
        items, kl = [task.sequences(batch)], None
        if task.kl_task is not None:
            both = [*batch, *(COUNT + pair for pair in batch)]
            kl = kl_term(policy, task, both, workers, 5)
            assert kl is not None and kl > 0.01, "where it is clamped to 0 it proves nothing"
            items.append(task.kl_task.sequences(both))
        found = accumulate_gradient(policy, task, batch, workers, 4, kl=kl)
        done.sequences.append([sequence for part in items for sequence in our_sequences(part)])
        done.losses.append(found["loss"].mean().item())
        done.gradients.append(gradient(policy))
        if case.trainer == "DPOTrainer":
            done.accuracies.append(found["rewards/accuracies"].mean().item())
        optimiser.step()
    done.update = weights(policy) - before
    return done


def our_sequences(items: list[Item]) -> list[Sequence]:
    """What the rows of these items hold."""
    rows = pad_rows(items)
    learnt = torch.zeros(rows.input_ids.numel())
    learnt[rows.answers] = 1
    assert rows.attention_mask is not None
    return sequences(rows.input_ids, rows.attention_mask, learnt.view(rows.input_ids.shape))


def with_mismatched(data: Columns) -> Columns:
    """Give the pairs the mismatched completions that TRL makes: those of a batch's halves, shifted by one.

    TRL has one for each half, we have one for each pair. So each pair is there twice, its second copy COUNT
    indices later: KL is estimated on both copies, the gradient is taken of the first.
    """
    mismatched: dict[int, list[int]] = {}
    for batch in BATCHES:
        both = [*batch, *(COUNT + pair for pair in batch)]
        completions = [data[side][pair] for side in ("chosen_ids", "rejected_ids") for pair in batch]
        mismatched |= zip(both, [completions[-1], *completions[:-1]], strict=True)
    return {
        **{name: values * 2 for name, values in data.items()},
        "id": [str(copy) for copy in range(2 * COUNT)],
        "mismatched_ids": [mismatched[copy] for copy in range(2 * COUNT)],
    }


def reference_logps(
    data: Columns, reference: transformers.PreTrainedModel, workers: Workers
) -> dict[str, tuple[float, ...]]:
    """Log-probs under the reference by pair id, as the reference stage computes them."""
    tasks: list[Scored] = [PairTask(data)]
    if "mismatched_ids" in data:
        tasks.append(MismatchedTask(data))
    found: Items = {}
    for task in tasks:
        found |= score(Policy(reference), task, list(range(len(task.ids))), workers, 8)[0]
    return dict(
        zip(data["id"], zip(*(values.tolist() for values in found.values()), strict=True), strict=True)
    )


def compare(case: Case, packed: str | None = SEGMENTS) -> Differences:
    """Take the steps on both sides."""
    data = draw_pairs(case)
    theirs, ours = trl_steps(case, data), our_steps(case, data, packed)
    assert theirs.sequences == ours.sequences, "both sides are to see the same token ids"
    if case.loss != "ipo":  # TRL's rewards of it are sums over tokens, ours are means, as its loss
        assert theirs.accuracies == pytest.approx(ours.accuracies, abs=1e-6), "no rewards are tied here"
    gradients = zip(ours.gradients, theirs.gradients, strict=True)
    moved = theirs.update.norm()
    return Differences(
        loss=max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)),
        gradient=max(((a - b).abs().max() / b.abs().max()).item() for a, b in gradients),
        update=((ours.update - theirs.update).norm() / moved).item(),
        moved=moved.item(),
    )


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loss_gradient_and_update_equal_those_of_trl(case: Case) -> None:
    assert_equal(compare(case))


@pytest.mark.parametrize("case", CASES[:1], ids=lambda case: case.name)
def test_padded_rows_equal_those_of_trl_too(case: Case) -> None:
    assert_equal(compare(case, packed=None))


def assert_equal(found: Differences) -> None:
    assert found.loss <= 1e-5
    assert found.gradient <= 1e-5
    assert found.update <= 1e-4
    assert found.moved > 0.1


def table() -> str:
    """The differences of all losses, in Markdown."""
    lines = [
        "| loss | TRL's trainer | loss difference | gradient difference | update difference | update |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        found = compare(case)
        differences = " | ".join(f"{value:.1e}" for value in (found.loss, found.gradient, found.update))
        lines.append(f"| {case.name} | {case.trainer} | {differences} | {found.moved:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
