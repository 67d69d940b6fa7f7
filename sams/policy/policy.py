"""The policy: maps token ids to log-probs of completions and per-layer features."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
import transformers
from torch import Tensor, nn

from sams.policy.attention import FLEX, block_mask
from sams.policy.blocks import Checkpointing, blocks, prepare_blocks
from sams.policy.logps import LOGP_CHUNK, token_logps
from sams.policy.output import body_of, final_of, output_layer
from sams.policy.rows import Rows


@dataclass
class Scores:
    """Result of one pass over S sequences.

    Attributes:
        logps: [S] float32, log-prob of the completion, summed over its tokens.
        tokens: [S] int64, number of completion tokens.
        contexts: [S, layers, width] in the compute type, hidden states of every block averaged over the
            completion tokens; None unless requested.
    """

    logps: Tensor
    tokens: Tensor
    contexts: Tensor | None = None


@dataclass
class Own:
    """Result of the class's own forward pass over one sequence with M completion tokens.

    Attributes:
        logps: [M] float64, log-prob of each completion token.
        spread: [M] float64, standard deviation over the vocabulary of the logits that predict it.
    """

    logps: Tensor
    spread: Tensor


class Policy(nn.Module):
    """A causal language model whose forward pass returns log-probs of completions.

    The trainer computes everything by this module's `forward`, because DDP and FSDP2 act on calls of the wrapped
    module.

    Attributes:
        packed: attention of packed rows (`sams.policy.attention`); None for padded rows and the model's own.
    """

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.model.config.use_cache = False
        self._own_attention = model.config._attn_implementation
        self.packed: str | None = None
        self._compiled = False
        self._final = final_of(model)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module alone: the model stays in eval(), where nothing in it is random."""
        super().train(mode)
        self.model.eval()
        return self

    def pack(self, attention: str | None) -> None:
        """Expect packed rows and use this attention from now on; None expects padded rows."""
        self.packed = attention
        self.model.set_attn_implementation(attention or self._own_attention)

    def prepare(self, *, compiled: bool, checkpointing: Checkpointing) -> None:
        """Set whether blocks and log-probs are compiled, and what blocks recompute; see `prepare_blocks`."""
        prepare_blocks(self.model, compiled=compiled, checkpointing=checkpointing)
        self._compiled = compiled

    def forward(self, rows: Rows, with_contexts: bool = False, own: bool = False) -> Scores | Own:
        """Score completions.

        Args:
            rows: token ids, packed if `self.packed` is set, else padded.
            with_contexts: whether to return the scheduler's features too.
            own: compute the one sequence of `rows` by nothing but the forward pass of the model's class.
        """
        if own:
            return own_of(self.model, rows)
        assert (rows.branches is None) == (self.packed is None), "rows of the other layout"
        layout: dict[str, Any] = {"attention_mask": rows.attention_mask}
        if self.packed is not None:
            layout = packed_layout(rows, self.packed, self.model.config)
        watched: Any = blocks(self.model) if with_contexts else []
        with completion_means(watched, rows) as means:
            hidden = body_of(self.model)(
                input_ids=rows.input_ids, use_cache=False, **layout
            ).last_hidden_state
        contexts = torch.stack(means, dim=1) if with_contexts else None
        return Scores(self._completion_logps(hidden, rows), rows.counts, contexts)

    def _completion_logps(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Sum of log-probs per sequence. Logits are computed only at positions that predict a completion token."""
        states = hidden.flatten(0, 1).index_select(0, rows.predicts)
        targets = rows.input_ids.flatten().index_select(0, rows.answers)
        head = partial(output_layer, self.model)
        logps = token_logps(head, states, targets, final=self._final, compiled=self._compiled)
        return logps.new_zeros(len(rows.counts)).index_add(0, rows.sequence, logps)


def own_of(model: Callable[..., Any], rows: Rows) -> Own:
    """Score the one sequence of these rows by nothing but the forward pass of the model's class."""
    logits = model(input_ids=rows.input_ids).logits[0]
    targets = rows.input_ids[0, rows.answers, None]
    parts = [
        (part.log_softmax(dim=1).gather(1, target)[:, 0], part.std(dim=1))
        for chunk, target in zip(rows.predicts.split(LOGP_CHUNK), targets.split(LOGP_CHUNK), strict=True)
        for part in [logits[chunk].double()]
    ]
    return Own(*map(torch.cat, zip(*parts, strict=True)))


def packed_layout(rows: Rows, attention: str, config: transformers.PreTrainedConfig) -> dict[str, Any]:
    """Return the arguments of a model's body, besides the tokens, for a packed row with this attention."""
    branches = rows.branches
    assert branches is not None
    if attention == FLEX:
        window = getattr(config.get_text_config(), "sliding_window", None)
        masks = {size: block_mask(branches.parts, size) for size in {None, window}}
        branches = replace(branches, block_masks=masks)
    return {"position_ids": rows.position_ids, "branches": branches}


def bare(policy: nn.Module) -> Policy:
    """Return the policy without its DDP wrapper."""
    inner = getattr(policy, "module", policy)
    assert isinstance(inner, Policy)
    return inner


@contextmanager
def completion_means(watched: Any, rows: Rows) -> Iterator[list[Tensor]]:
    """Collect the mean output of each watched block over each completion: [S, width], in the type of the output.

    Hooks keep only the means, from one kernel that sums in float32; the hidden states of all layers are never in
    memory together. A completion without tokens has mean 0.
    """
    means: list[Tensor] = []
    starts = rows.counts.cumsum(0) - rows.counts

    def collect(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states = (output[0] if isinstance(output, tuple) else output).detach().flatten(0, 1)
        means.append(nn.functional.embedding_bag(rows.answers, states, starts, mode="mean"))

    handles = [block.register_forward_hook(collect) for block in watched]
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()


def weights_of(policy: nn.Module) -> tuple[int, int]:
    """Number of weights of the body and of the output layer, without an input embedding that is only looked up."""
    model = bare(policy).model
    head = model.get_output_embeddings().weight.numel()
    looked_up = model.get_input_embeddings().weight
    tied = looked_up is model.get_output_embeddings().weight
    total = 0
    for parameter in policy.parameters():
        packed = getattr(parameter, "quant_state", None)  # 4-bit weights, two in a byte
        total += parameter.numel() if packed is None else packed.shape.numel()
    return total - head - (0 if tied else looked_up.numel()), head
