"""The policy's update against transformers' and TRL's: rates, weights that decay, clipping, twenty steps of AdamW."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from sams.losses.table import build_loss
from sams.policy.model import build_model
from sams.policy.policy import Policy
from sams.runtime.costs import Costs
from sams.study.settings import Preference
from sams.training.distribution import Workers
from sams.training.passes import Passes
from sams.training.tasks.preference import PreferenceTask
from sams.training.tuning import Tuning
from sams.training.updates import AdamWStep, Step, decay_groups, learning_rate
from tests import tiny
from tests.training.test_against_trl import (
    BATCHES,
    BETA,
    CASES,
    draw_pairs,
    reference_logps,
    texts,
)

EPOCHS = 4
STEPS = EPOCHS * len(BATCHES)
TRAINING = {
    "learning_rate": 3e-3,
    "warmup_ratio": 0.21,  # of 20 steps 4.2, rounded up
    "weight_decay": 0.4,
    "max_grad_norm": 0.7,
}


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("steps", "ratio"), [(1, 0.0), (1, 1.0), (7, 0.0), (7, 1.0), (40, 0.1), (41, 0.26)])
def test_rates_are_those_of_transformers(schedule: str, steps: int, ratio: float) -> None:
    training = Preference.model_validate({"learning_rate": 0.3, "schedule": schedule, "warmup_ratio": ratio})
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    arguments = transformers.TrainingArguments(output_dir="unused", warmup_steps=ratio, use_cpu=True)
    warmup = arguments.get_warmup_steps(steps) if ratio < 1 else steps
    name = {"constant": "constant_with_warmup"}.get(schedule, schedule)
    theirs = transformers.get_scheduler(name, optimiser, warmup, steps)
    for step in range(1, steps + 1):
        assert learning_rate(step, steps, training) == pytest.approx(theirs.get_last_lr()[0], abs=1e-15)
        optimiser.step()
        theirs.step()


@pytest.mark.parametrize(
    "kind",
    ["llama", "gemma2", "gpt_neox", "gpt2", "opt", "bloom", "qwen3", "phi", "mixtral", "mamba", "cohere"],
)
def test_weights_decay_as_with_transformers(kind: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 43}
    config = transformers.AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        policy = Policy(transformers.AutoModelForCausalLM.from_config(config))
    decaying, others = ({id(weight) for weight in group["params"]} for group in decay_groups(policy, 0.1))
    trainer: Any = transformers.Trainer
    expected = trainer.get_decay_parameter_names(None, policy.model)
    for name, weight in policy.model.named_parameters():
        assert id(weight) in (decaying if name in expected else others), name
    assert decaying and others


def weights(model: nn.Module) -> torch.Tensor:
    """All weights, without biases of keys: their gradients are rounding, which AdamW scales up to the rate."""
    return torch.cat(
        [
            weight.detach().flatten()
            for name, weight in model.named_parameters()
            if "key_value.bias" not in name
        ]
    )


class TwentySteps:
    """Twenty steps of DPO on the same batches, by TRL's trainer and by ours."""

    def __init__(self, kind: str, schedule: str) -> None:
        self.kind, self.schedule = kind, schedule
        self.data = draw_pairs(CASES[0])

    def model(self) -> transformers.PreTrainedModel:
        """A model whose norms and biases are far from their initial values."""
        model = build_model(tiny.settings(self.kind), tiny.tokenizer(), seed=0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
        return model

    def theirs(self, folder: Path) -> tuple[torch.Tensor, list[float]]:
        """Weights after TRL's steps, and the norms of their gradients."""
        import datasets
        import trl

        norms: list[float] = []

        class Recorded(trl.DPOTrainer):
            def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
                norms.extend([logs["grad_norm"]] if "grad_norm" in logs else [])

            def _send_telemetry(self) -> None:
                """Nothing leaves this machine."""

        settings = TRAINING | {"warmup_steps": TRAINING["warmup_ratio"]}
        del settings["warmup_ratio"]
        arguments = trl.DPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=len(BATCHES[0]),
            num_train_epochs=EPOCHS,
            train_sampling_strategy="sequential",
            lr_scheduler_type={"constant": "constant_with_warmup"}.get(self.schedule, self.schedule),
            beta=BETA,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            **settings,
        )
        model = self.model()
        trainer = Recorded(
            model=model,
            ref_model=self.model(),
            args=arguments,
            train_dataset=datasets.Dataset.from_dict(texts(CASES[0], self.data)),
            processing_class=tiny.tokenizer(),
        )
        trainer.train()
        return weights(model), norms

    def ours(self, folder: Path) -> tuple[torch.Tensor, list[float]]:
        """Weights after our steps, and the norms of their gradients."""
        workers = Workers(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)
        loss = build_loss("sigmoid", beta=BETA, settings={}, sft_weight=0.0)
        cached = reference_logps(self.data, self.model(), workers)
        task = PreferenceTask(self.data, loss=loss, reference=cached)
        policy: nn.Module = Policy(self.model())
        training = Preference.model_validate(TRAINING | {"schedule": self.schedule})
        update = AdamWStep(policy, training, workers, STEPS)
        tuning = Tuning(packed=None, micro_batch=4, scoring_micro_batch=4, checkpointing="none")
        passes = Passes(policy, workers, tuning, Costs(folder / "costs.jsonl", workers, 1, 1))
        norms = []
        for number in range(STEPS):
            batch = BATCHES[number % len(BATCHES)]
            step = Step(number=number + 1, batch=batch, kl=None, chosen=list(range(len(batch))))
            update(passes, task, step)
            norms.append(float(step.metrics["grad_norm"]))
        return weights(policy), norms


@pytest.mark.parametrize(
    ("kind", "schedule"), [("gpt_neox", "linear"), ("llama", "cosine"), ("llama", "constant")]
)
def test_twenty_steps_are_those_of_trl(kind: str, schedule: str, tmp_path: Path) -> None:
    steps = TwentySteps(kind, schedule)
    start = weights(steps.model())
    (theirs, their_norms), (ours, our_norms) = steps.theirs(tmp_path), steps.ours(tmp_path)
    assert our_norms == pytest.approx(their_norms, rel=1e-3)
    assert min(our_norms) < TRAINING["max_grad_norm"] < max(our_norms), "some steps are clipped, some are not"
    assert float((ours - theirs).norm() / (theirs - start).norm()) < 2e-5
