"""Log-probs and gradients are those of the logits that the model's own class computes."""

from typing import Any

import pytest
import torch
import transformers

from benchmarks.models import model_of
from sams.policy.output import Final, final_of
from sams.policy.policy import Policy
from sams.policy.rows import Item, pad_rows
from sams.runtime.errors import UserError

ITEMS: list[Item] = [([1, 40, 7], [[9, 30, 2], [11, 2]]), ([1, 8], [[5, 6, 77, 2], [12, 13, 2]])]

FINAL = {
    "cohere": Final(99, 0.25),
    "falcon_h1": Final(99, 0.5),
    "gemma2": Final(99, 1.0, 3.0),
    "granite": Final(99, 0.25),
    "hyperclovax": Final(99, 0.25),
    "inkling_text": Final(90),
    "llama4_text": Final(99),
    "mamba": Final(99),
    "minicpm3": Final(99),  # scales states
    "modernbert-decoder": Final(99),  # has a layer before the output layer
    "nanochat": Final(99, 1.0, 3.0),
    "recurrent_gemma": Final(99, 1.0, 3.0),
}


def own_logps(model: transformers.PreTrainedModel, items: list[Item]) -> torch.Tensor:
    """Log-probs of the completions from the logits of each sequence alone."""
    logps = []
    for column in zip(*(answers for _, answers in items), strict=True):
        for (prompt, _), answer in zip(items, column, strict=True):
            ids = torch.tensor([[*prompt, *answer]])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            logps.append(logits.log_softmax(1).gather(1, ids[0, len(prompt) :, None]).sum())
    return torch.stack(logps)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow) if kind == "inkling_text" else kind
        for kind in FINAL
        if kind in transformers.CONFIG_MAPPING  # an older release of transformers has fewer
    ],
)
def test_log_probs_and_gradients_are_the_class_s_own(kind: str) -> None:
    model = model_of(kind)
    assert final_of(model) == FINAL[kind]
    policy, rows = Policy(model), pad_rows(ITEMS)
    weights = torch.tensor([1.0, -2.0, 3.0, -4.0])
    gradients = []
    for logps in (policy(rows).logps, own_logps(model, ITEMS)):
        policy.zero_grad()
        (logps * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(policy(rows).logps, own_logps(model, ITEMS), rtol=1e-6, atol=1e-4)
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


class Doubled(transformers.LlamaForCausalLM):
    """Its logits are no scaled or capped result of the output layer."""

    def forward(self, **inputs: Any) -> Any:
        outputs = super().forward(**inputs)
        outputs.logits = outputs.logits + outputs.logits.flip(-1)
        return outputs


class Learnt(transformers.LlamaForCausalLM):
    """Has a factor with a gradient, which would be lost."""

    def forward(self, **inputs: Any) -> Any:
        outputs = super().forward(**inputs)
        outputs.logits = outputs.logits * self.model.norm.weight[0]
        return outputs


@pytest.mark.parametrize("kind", [Doubled, Learnt])
def test_what_is_no_scale_or_cap_is_refused_by_name(kind: Any) -> None:
    model = kind(model_of("llama").config)
    with pytest.raises(UserError, match=f"log-probs of {kind.__name__} are not supported"):
        Policy(model)
