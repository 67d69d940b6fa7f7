"""Log-probs of tokens from hidden states, without a float32 copy of all logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sams.policy import compiling
from sams.policy.output import Final

# Tokens whose float32 logits are in memory at once. A chunk of 512 tokens with a vocabulary of 128,256 takes 263 MB.
LOGP_CHUNK = 512

# Bytes of logits, in the compute type, that are kept for the backward pass. Beyond, they are computed again.
LOGITS_BYTES = 2**30


def token_logps(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    targets: Tensor,
    *,
    final: Final,
    compiled: bool = False,
) -> Tensor:
    """Return the log-prob of each target: [M, width], [M] -> [M] float32.

    Args:
        head: output layer, from states to logits.
        states: hidden states that predict the targets.
        targets: token ids.
        final: what the model makes of the output layer's result.
        compiled: compile what is computed from the logits.
    """
    chunk_logps = _compiled_chunk_logps() if compiled else _chunk_logps
    size = max(1, LOGITS_BYTES // (final.width * states.element_size()))

    def score(part: Tensor, target: Tensor) -> Tensor:
        logps: Tensor = _TokenLogps.apply(head(part), target, final, chunk_logps)
        return logps

    groups = list(zip(states.split(size), targets.split(size), strict=True))
    recomputed = groups[:-1] if torch.is_grad_enabled() else []
    logps = [checkpoint(score, *group, use_reentrant=False, preserve_rng_state=False) for group in recomputed]
    # The backward pass begins with the last group, whose logits are gone when those of another are computed again.
    logps += [score(*group) for group in groups[len(recomputed) :]]
    return torch.cat(logps)


class _TokenLogps(torch.autograd.Function):
    """Log-probs of targets, in chunks: [M, vocabulary], [M] -> [M] float32. Saves the logits in their own type."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, final: Final, chunk_logps: Callable[..., Tensor]
    ) -> Tensor:
        ctx.save_for_backward(logits, targets)
        ctx.final, ctx.chunk_logps = final, chunk_logps
        chunks = zip(logits.split(LOGP_CHUNK), targets.split(LOGP_CHUNK), strict=True)
        # Detached, a chunk is no view: torch.compile would compile again for another size of the base of a view.
        return torch.cat([chunk_logps(chunk.detach(), target.detach(), final) for chunk, target in chunks])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets = ctx.saved_tensors
        parts = (part.split(LOGP_CHUNK) for part in (logits, targets, gradients[0]))
        found = torch.empty_like(logits)
        for out, chunk, target, gradient in zip(found.split(LOGP_CHUNK), *parts, strict=True):
            with torch.enable_grad():
                own = chunk.detach().requires_grad_()
                logps = ctx.chunk_logps(own, target.detach(), ctx.final)
            out.copy_(torch.autograd.grad(logps, own, gradient)[0])
        return found, None, None, None


def _chunk_logps(logits: Tensor, targets: Tensor, final: Final) -> Tensor:
    logits = final(logits.float())
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)


@cache
def _compiled_chunk_logps() -> Callable[..., Tensor]:
    return compiling.compiled(_chunk_logps)
