"""Table of GPU models."""

from dataclasses import dataclass

from sams.runtime.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        memory: bytes that a process can use, a little less than the nominal size.
        bandwidth: memory bandwidth in bytes a second (vendors' data sheets).
        peak: dense bfloat16 FLOP/s (vendors' data sheets).
        use: share of the peak that training reaches, including recomputed activations. An assumption.
    """

    memory: float
    bandwidth: float
    peak: float
    use: float


GPUS = {
    "B200": Gpu(178.4 * GIB, 7.7e12, 2250e12, 0.30),
    "H200": Gpu(139.8 * GIB, 4.8e12, 989e12, 0.30),
    "H100": Gpu(79.1 * GIB, 3.35e12, 989e12, 0.30),
    "A100": Gpu(79.1 * GIB, 2.04e12, 312e12, 0.35),
    "L40S": Gpu(44.4 * GIB, 0.864e12, 362e12, 0.25),
    "L4": Gpu(22.0 * GIB, 0.3e12, 121e12, 0.25),
}


def gpu_named(name: str) -> Gpu:
    """Return a GPU by name.

    Raises:
        UserError: the name is not known; the message lists the known ones.
    """
    if name not in GPUS:
        raise UserError(f"no GPU '{name}'", where="--gpu", remedy=f"choose one of {', '.join(GPUS)}")
    return GPUS[name]


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU by the name that its driver gives; None for an unknown one."""
    return next((gpu.peak for name, gpu in GPUS.items() if name in device_name), None)
