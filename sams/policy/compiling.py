"""torch.compile for functions of packed rows, whose lengths change with every batch."""

from collections.abc import Callable
from typing import Any

import torch

VARIANTS = 64
"""Most compiled variants of a function: kinds of layers, with and without gradients, checkpointing, frozen inputs."""


def compiled(function: Callable[..., Any], *, fullgraph: bool = False, backend: Any = "inductor") -> Any:
    """Compile a function for any number of tokens; its float arguments become constants.

    Args:
        function: the function.
        fullgraph: raise an error where it cannot be compiled as a whole.
        backend: backend of torch.compile.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # FlexAttention cannot be traced with a scale or cap that is a variable.
    torch._dynamo.config.specialize_float = True
    return torch.compile(function, dynamic=True, fullgraph=fullgraph, backend=backend)
