"""How the trainer calls models: every forward pass of the policy and of the reference, except in evaluation."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn

from sams.policy.policy import completion_means


class Forward(Protocol):
    """A way to compute a padded batch of TRL."""

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], watched: Sequence[nn.Module] = ()
    ) -> tuple[Any, Tensor | None]:
        """Return what `model(**inputs)` returns, and contexts.

        Args:
            model: the policy or the reference, wrapped for its devices and processes, with TRL's fused output layer.
            inputs: TRL's arguments of a padded batch of B pairs: input_ids and attention_mask [2B, T], the chosen
                rows first; labels, -100 except at tokens of completions; `fused_lm_head=True` and others.
            watched: blocks of the model of which contexts are required.

        Returns:
            TRL's `FusedCausalLMOutput`, with values of each token [2B, T - 1]; and, if blocks are watched, the mean
            of each block's output over each completion: [2B, blocks, width].
        """
        ...


def padded(
    model: nn.Module, inputs: Mapping[str, Any], watched: Sequence[nn.Module] = ()
) -> tuple[Any, Tensor | None]:
    """Compute a batch as TRL does, as padded rows."""
    is_completion = inputs["labels"] != -100
    is_completion[:, 0] = False  # nothing predicts it
    tokens: Any = SimpleNamespace(
        answers=is_completion.flatten().nonzero()[:, 0], counts=is_completion.sum(dim=1)
    )
    with completion_means(watched, tokens) as means:
        outputs = model(**inputs)
    return outputs, torch.stack(means, dim=1) if watched else None


def bare(model: nn.Module) -> transformers.PreTrainedModel:
    """Return the language model inside wrappers of processes, of compilation and of PEFT."""
    from accelerate.utils import extract_model_from_parallel, is_peft_model

    inner: Any = extract_model_from_parallel(model, keep_fp32_wrapper=True, keep_torch_compile=False)
    found: transformers.PreTrainedModel = inner.get_base_model() if is_peft_model(inner) else inner
    return found
