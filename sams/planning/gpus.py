"""GPUs that a study can be planned for."""

from dataclasses import dataclass

from sams.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One GPU (vendors' data sheets).

    Attributes:
        memory: bytes.
        bandwidth: of its memory, bytes per second.
        use: share of its dense bfloat16 peak that training reaches, recomputed activations counted. An assumption.
    """

    memory: float
    bandwidth: float
    use: float


GPUS = {
    "B200": Gpu(180e9, 7.7e12, 0.30),
    "H200": Gpu(141e9, 4.8e12, 0.30),
    "H100": Gpu(80e9, 3.35e12, 0.30),
    "A100": Gpu(80e9, 2.04e12, 0.35),
    "L40S": Gpu(48e9, 0.864e12, 0.25),
    "L4": Gpu(24e9, 0.3e12, 0.25),
}


def gpu_named(name: str) -> Gpu:
    """A GPU by its name.

    Raises:
        UserError: naming those that are known.
    """
    if name not in GPUS:
        raise UserError(f"no GPU '{name}'", where="--gpu", remedy=f"choose one of {', '.join(GPUS)}")
    return GPUS[name]
