"""GPUs that a study can be planned for."""

from dataclasses import dataclass

from sams.runtime.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        memory: bytes that a process finds, a little less than the name says.
        bandwidth: of its memory, bytes per second (vendors' data sheets).
        use: share of its dense bfloat16 peak that training reaches, recomputed activations counted. An assumption.
    """

    memory: float
    bandwidth: float
    use: float


GPUS = {
    "B200": Gpu(178.4 * GIB, 7.7e12, 0.30),
    "H200": Gpu(139.8 * GIB, 4.8e12, 0.30),
    "H100": Gpu(79.1 * GIB, 3.35e12, 0.30),
    "A100": Gpu(79.1 * GIB, 2.04e12, 0.35),
    "L40S": Gpu(44.4 * GIB, 0.864e12, 0.25),
    "L4": Gpu(22.0 * GIB, 0.3e12, 0.25),
}


def gpu_named(name: str) -> Gpu:
    """A GPU by its name.

    Raises:
        UserError: naming those that are known.
    """
    if name not in GPUS:
        raise UserError(f"no GPU '{name}'", where="--gpu", remedy=f"choose one of {', '.join(GPUS)}")
    return GPUS[name]
