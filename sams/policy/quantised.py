"""Frozen weights in 4 bits: nf4 with double quantisation (QLoRA, Dettmers et al. 2023).

bitsandbytes computes with these weights. They are rounded here, to the same values on every device, so that an export
merges adapters into exactly the base that they were trained with.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sams.policy.blocks import blocks
from sams.runtime.errors import UserError

BLOCK, OF_BLOCKS = 64, 256
"""Weights that share a scale; scales that share a scale."""


def quantise(model: PreTrainedModel, device: torch.device) -> None:
    """Replace the linear layers of a model's blocks by layers with frozen 4-bit weights on `device`.

    Raises:
        UserError: bitsandbytes is missing.
    """
    nn4 = _bitsandbytes().nn
    for parent, name, layer in list(_linear_layers(model)):
        packed, state = rounded(layer.weight.detach().to(device))
        new = nn4.Linear4bit(
            layer.in_features, layer.out_features, False, compute_dtype=layer.weight.dtype, device="meta"
        )
        new.weight = nn4.Params4bit(
            packed, quant_state=state, blocksize=BLOCK, quant_type="nf4", bnb_quantized=True, module=new
        )
        new.quant_state, new.bias = state, layer.bias
        # bitsandbytes would add the scales to checkpoints, which hold trained weights only.
        new._save_to_state_dict = partial(nn.Linear._save_to_state_dict, new)
        setattr(parent, name, new)
    model.is_loaded_in_4bit = True  # peft looks at this


def round_to_4_bits(model: PreTrainedModel) -> None:
    """Replace the weights that `quantise` would hold in 4 bits by their rounded values."""
    functional = _bitsandbytes().functional
    for _, _, layer in _linear_layers(model):
        layer.weight.data = functional.dequantize_4bit(*rounded(layer.weight.detach()))


def rounded(weight: Tensor) -> tuple[Tensor, Any]:
    """Return nf4 codes, two in a byte [N / 2, 1], and bitsandbytes' state with the scales."""
    functional = _bitsandbytes().functional
    code = functional.get_4bit_type("nf4", device="cpu")  # 16 values from -1 to 1, ascending
    groups = weight.float().view(-1, BLOCK)
    scales = groups.abs().amax(dim=1)
    bounds = ((code[1:] + code[:-1]) / 2).to(weight.device)
    codes = torch.bucketize(groups / scales.clamp(min=torch.finfo().tiny)[:, None], bounds, out_int32=True)
    packed = (codes[:, ::2] * 16 + codes[:, 1::2]).to(torch.uint8).view(-1, 1)
    # On the CPU: sums and bitsandbytes' kernels differ between devices in the last bit.
    scales = scales.cpu()
    offset = scales.double().mean().float()
    scales, of_scales = functional.quantize_blockwise(scales - offset, blocksize=OF_BLOCKS)
    state = functional.QuantState(
        scales, weight.shape, code, BLOCK, "nf4", weight.dtype, offset=offset, state2=of_scales
    )
    state.to(weight.device)
    return packed, state


def _linear_layers(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield the linear layers of the blocks, each with its parent and its name there."""
    for block in blocks(model):
        for parent in block.modules():
            for name, layer in parent.named_children():
                if isinstance(layer, nn.Linear) and layer.weight.numel() % BLOCK == 0:
                    yield parent, name, layer


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            "4-bit weights need the package bitsandbytes",
            where="lora.load_in_4bit",
            remedy="install it (extra `qlora` of this package), or set load_in_4bit: false",
        ) from error
    return bitsandbytes
