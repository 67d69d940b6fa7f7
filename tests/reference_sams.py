"""SamS Algorithm 1 in one process and in plain lines: the oracle for the trainer's trajectory.

Written from the paper (arXiv 2506.17252) and sharing no code with the package: one sequence at a time without
padding, whole logits, attention and Adam by hand. It reads downwards: the policy, the nets, the rewards, the rounds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[list[int], list[int], list[int]]  # token ids: prompt, chosen, rejected
Weights = dict[str, Tensor]


class Outcome(NamedTuple):
    """What the policy says of a batch of n pairs."""

    loss: Tensor  # (n,), SamS Eq. 2
    margin: Tensor  # (n,), implicit reward of the chosen minus that of the rejected
    logp: Tensor  # (n,), of the chosen completion, in nats, summed over its tokens
    context: Tensor  # (n, layers, 2 d): chosen, and chosen minus rejected


class Arm(NamedTuple):
    """A trained pair as the nets learn from it: context, h and value as they were when it was scored."""

    context: Tensor  # (layers, 2 d)
    h: Tensor  # (input width of f_S',)
    value: Tensor  # (), f_S's
    reward: Tensor  # (), SamS Eq. 8, and until r_B is known Eq. 7


def read(model: Any, prompt: list[int], completion: list[int]) -> tuple[Tensor, Tensor]:
    """Summed log-prob (nats) of the completion, and every block's mean output over its tokens (layers, d)."""
    states: list[Tensor] = []
    # Hooks, because the last of `output_hidden_states` is taken after the final norm.
    hooks = [b.register_forward_hook(lambda *call: states.append(call[2])) for b in model.model.layers]
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    logps = logits[len(prompt) - 1 : -1].log_softmax(-1)  # the logits at a position are of the next token
    logp = logps.gather(1, torch.tensor(completion)[:, None]).sum()
    return logp, torch.stack([state[0, len(prompt) :].mean(0) for state in states])


def forward(model: Any, pairs: Sequence[Pair], reference: Tensor, batch: list[int], beta: float) -> Outcome:
    """DPO loss (SamS Eq. 2), margin, log-prob and context of the pairs with the indices `batch`."""
    rows = []
    for index in batch:
        prompt, chosen, rejected = pairs[index]
        chosen_logp, chosen_states = read(model, prompt, chosen)
        rejected_logp, rejected_states = read(model, prompt, rejected)
        margin = beta * ((chosen_logp - reference[index, 0]) - (rejected_logp - reference[index, 1]))
        context = torch.cat([chosen_states, chosen_states - rejected_states], -1)
        rows.append((-F.logsigmoid(margin), margin, chosen_logp, context))
    return Outcome(*(torch.stack(column) for column in zip(*rows, strict=True)))


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-12)


def attention(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Every layer attends to all layers; x is (n, layers, e)."""
    packed = x @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"]
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, -1))
    mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v  # (n, heads, layers, e / heads)
    return linear(w, f"{name}.out_proj", mixed.transpose(1, 2).flatten(2))


def encode(w: Weights, states: Tensor, heads: int) -> Tensor:
    """The layer encoder, BERT style: (n, layers, e) to unit vectors (n, e)."""
    x = layer_norm(w, "encoder.norm", states + w["encoder.position.weight"][: states.shape[1]])
    for i in range(sum(name.endswith(".in_proj_weight") for name in w)):
        block = f"encoder.blocks.layers.{i}"
        x = layer_norm(w, f"{block}.norm1", x + attention(w, f"{block}.self_attn", x, heads))
        inner = F.gelu(linear(w, f"{block}.linear1", x))
        x = layer_norm(w, f"{block}.norm2", x + linear(w, f"{block}.linear2", inner))
    return F.normalize(x.mean(1), dim=-1, eps=1e-12)


def residual_net(w: Weights, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """One value per row (n,), and the residual layers' activations side by side (n, depth x width)."""
    x = linear(w, "net.input", inputs).relu()
    activations = []
    for i in range(sum(name.startswith("net.layers.") and name.endswith(".weight") for name in w)):
        activations.append(linear(w, f"net.layers.{i}", x).relu())
        x = x + activations[-1]
    return linear(w, "net.output", x).squeeze(-1), torch.cat(activations, -1)


def exploit(w: Weights, context: Tensor, heads: int, block: int) -> tuple[Tensor, Tensor]:
    """f_S: the predicted rewards (n,), and h, its activations down-sampled (n, depth x width / block)."""
    states = linear(w, "connector.2", linear(w, "connector.0", context).relu()).relu()
    value, activations = residual_net(w, encode(w, states, heads))
    return value, activations.unflatten(-1, (-1, block)).mean(-1)


class Adam:
    """Adam with L2 weight decay, on all weights but those of the frozen encoder."""

    def __init__(self, weights: Weights, lr: float, decay: float) -> None:
        self.weights = [w.requires_grad_() for name, w in weights.items() if not name.startswith("encoder.")]
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self.weights]
        self.lr, self.decay, self.steps = lr, decay, 0

    def step(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.weights)
        self.steps += 1
        with torch.no_grad():
            for w, gradient, (m, v) in zip(self.weights, gradients, self.moments, strict=True):
                g = gradient + self.decay * w
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(0.999 * v + 0.001 * g * g)
                mean, square = m / (1 - 0.9**self.steps), v / (1 - 0.999**self.steps)
                w -= self.lr * mean / (square.sqrt() + 1e-8)


def batch_reward(before: float, after: float) -> float:
    """SamS Eq. 6 from the mean losses of two batches, in a form that does not overflow."""
    return math.copysign(1 - math.exp(-abs(before - after)), before - after)


def sample_reward(seen: Outcome, delta: float) -> Tensor:
    """SamS Eq. 7 for every pair of the batch (n,), fp64."""
    scaled = []
    for x in (seen.margin.double(), seen.logp.double()):
        span = x.max() - x.min()
        scaled.append((x - x.min()) / span if span > 0 else torch.full_like(x, 0.5))
    return delta * scaled[0] + (1 - delta) * (1 - scaled[1])


def run(
    model: Any,
    pairs: Sequence[Pair],
    reference: Tensor,
    batches: Sequence[list[int]],
    k: int,
    learning_rates: Sequence[float],
    settings: Mapping[str, Any],
    exploitation: Weights,
    exploration: Weights,
    seed: int,
) -> list[dict[str, Any]]:
    """Train `model` (fp32) in place, one round per batch of pair indices; `reference` (pairs, 2) is in nats.

    Settings: beta, gamma, delta, exploration (lambda), heads, block, replay_sample, max_grad_norm, and the nets'
    learning_rate and weight_decay. Each round returns `selected` (k pair indices), `gap` (of the scores, last chosen
    to first not), `loss_selected`, `loss_all`; from round 2 `r_b`, `exploitation_loss`, `exploration_loss`.
    """
    beta, gamma, shape = settings["beta"], settings["gamma"], (settings["heads"], settings["block"])
    f_s, f_x = ({name: w.detach().clone() for name, w in net.items()} for net in (exploitation, exploration))
    adam_s, adam_x = (Adam(net, settings["learning_rate"], settings["weight_decay"]) for net in (f_s, f_x))
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    uniform, replay = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    trained, pool, rounds = list[Arm](), list[Arm](), list[dict[str, Any]]()
    for batch, lr in zip(batches, learning_rates, strict=True):
        with torch.no_grad():
            seen = forward(model, pairs, reference, batch, beta)
        loss_all = seen.loss.mean().item()
        record: dict[str, Any] = {"r_b": None, "exploitation_loss": None, "exploration_loss": None}
        if rounds:  # only now is it known what the last round's arms were worth: SamS Eq. 8, 10, 11
            r_b = batch_reward(rounds[-1]["loss_all"], loss_all)
            shared = gamma / (1 + math.exp(-r_b))
            newest = [a._replace(reward=(shared + (1 - gamma) * a.reward.sigmoid()).float()) for a in trained]
            drawn = torch.randperm(len(pool), generator=replay)[: settings["replay_sample"]]
            arms = newest + [Arm(*(x.float() for x in pool[i])) for i in drawn]
            context, h, value, reward = (torch.stack(column) for column in zip(*arms, strict=True))
            loss_s = (exploit(f_s, context, *shape)[0] - reward).square().mean()
            loss_x = (residual_net(f_x, h)[0] - (reward - value)).square().mean()
            adam_s.step(loss_s)
            adam_x.step(loss_x)
            record = {"r_b": r_b, "exploitation_loss": loss_s.item(), "exploration_loss": loss_x.item()}
            pool += [Arm(*(x.half() for x in arm)) for arm in newest]
        with torch.no_grad():
            value, h = exploit(f_s, seen.context, *shape)
            score = value + settings["exploration"] * residual_net(f_x, h)[0]
        order = (-score).argsort(stable=True) if rounds else torch.randperm(len(batch), generator=uniform)
        record["gap"] = (score[order[k - 1]] - score[order[k]]).item()
        places = sorted(order[:k].tolist())
        columns = (seen.context, h, value, sample_reward(seen, settings["delta"]))
        trained = [Arm(*(column[place] for column in columns)) for place in places]
        selected = [batch[place] for place in places]
        loss = forward(model, pairs, reference, selected, beta).loss.mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"])
        optimiser.param_groups[0]["lr"] = lr
        optimiser.step()
        rounds.append(record | {"selected": selected, "loss_selected": loss.item(), "loss_all": loss_all})
    return rounds
