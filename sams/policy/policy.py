"""The policy as the trainer sees it: token ids in, log-probs of completions and per-layer features out."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sams.policy.model import blocks

# Completion tokens whose logits are alive at once. A chunk of 512 tokens and a vocabulary of 128,256
# takes 263 MB in float32.
LOGP_CHUNK = 512


@dataclass
class Scores:
    """What one pass over B sequences gives.

    Attributes:
        logps: [B] float32, log-prob of the completion, summed over its tokens.
        tokens: [B] int64, number of completion tokens.
        contexts: [B, layers, width] float32, hidden states of every block averaged over the completion
            tokens; None unless asked for.
    """

    logps: Tensor
    tokens: Tensor
    contexts: Tensor | None = None


class Policy(nn.Module):
    """A causal language model whose forward pass returns log-probs of completions.

    Everything the trainer computes goes through this module's `forward`, so that DDP and FSDP2, which
    act on calls of the wrapped module, see each of them.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, *, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.model.config.use_cache = False
        if activation_checkpointing:
            with warnings.catch_warnings():
                # Newer releases call it activation_checkpointing_enable; the oldest supported has only this name.
                warnings.simplefilter("ignore", FutureWarning)
                model.gradient_checkpointing_enable({"use_reentrant": False})
        # Recomputation is tied to train(); without dropout the two modes are otherwise the same.
        model.train()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, with_contexts: bool = False
    ) -> Scores:
        """Score completions.

        Args:
            input_ids: [B, T] token ids, padded on the right.
            attention_mask: [B, T], 1 for tokens and 0 for padding.
            completion_mask: [B, T], 1 for the completion's tokens.
            with_contexts: whether to return the scheduler's features too.
        """
        watched: Any = blocks(self.model) if with_contexts else []
        with masked_means(watched, completion_mask) as means:
            hidden = self.model.base_model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            ).last_hidden_state
        logps = self._completion_logps(hidden, input_ids, completion_mask)
        contexts = torch.stack(means, dim=1) if with_contexts else None
        return Scores(logps, completion_mask.sum(dim=1), contexts)

    def _completion_logps(self, hidden: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
        """Sum of log-probs per row. Only the positions that predict a completion token meet the vocabulary."""
        predicts = completion_mask[:, 1:].bool()
        rows = predicts.nonzero()[:, 0]
        states = hidden[:, :-1][predicts]
        targets = input_ids[:, 1:][predicts]
        sums = torch.zeros(len(input_ids), dtype=torch.float32, device=hidden.device)
        for part, target, row in zip(
            states.split(LOGP_CHUNK), targets.split(LOGP_CHUNK), rows.split(LOGP_CHUNK), strict=True
        ):
            # One chunk is small enough to keep; of several, each is computed again in the backward pass.
            if torch.is_grad_enabled() and len(targets) > LOGP_CHUNK:
                logps = checkpoint(self._token_logps, part, target, use_reentrant=False)
            else:
                logps = self._token_logps(part, target)
            sums = sums.index_add(0, row, logps)
        return sums

    def _token_logps(self, states: Tensor, targets: Tensor) -> Tensor:
        """Log-prob of each target: [M, width], [M] -> [M] float32."""
        logits = self.model.get_output_embeddings()(states).float()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)


@contextmanager
def masked_means(watched: Any, mask: Tensor) -> Iterator[list[Tensor]]:
    """Collect, for each watched block, the mean of its output over the masked tokens: [B, width] float32.

    Hooks keep only the means; the full stack of hidden states never exists.
    """
    means: list[Tensor] = []
    weights = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)

    def collect(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        means.append(torch.einsum("btd,bt->bd", states.detach().float(), weights.float()))

    handles = [block.register_forward_hook(collect) for block in watched]
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()
