"""DPO and its variants for noisy labels."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from sams.losses.base import PairLogps, PairLoss


@dataclass(frozen=True, kw_only=True)
class Sigmoid(PairLoss):
    """DPO: -log sigmoid of the reward margin. Source: Rafailov et al. 2023, Eq. 7; SamS Eq. 2."""

    def preference(self, logps: PairLogps) -> Tensor:
        return -logsigmoid(self.beta * self.difference(logps))


@dataclass(frozen=True, kw_only=True)
class CDPO(PairLoss):
    """Conservative DPO: the losses of the label and of its opposite, mixed by a flip rate, `label_smoothing`.

    Source: Mitchell 2023, "A note on DPO with noisy preferences", Eq. 3.
    """

    label_smoothing: float = 0.1

    def preference(self, logps: PairLogps) -> Tensor:
        margin = self.beta * self.difference(logps)
        return -(1 - self.label_smoothing) * logsigmoid(margin) - self.label_smoothing * logsigmoid(-margin)


@dataclass(frozen=True, kw_only=True)
class Robust(PairLoss):
    """Robust DPO: its mean over labels flipped at the rate `label_smoothing` is DPO's loss under clean ones.

    Source: Chowdhury et al. 2024, "Provably robust DPO", the unbiased loss. It may be negative.
    """

    label_smoothing: float = 0.1

    def preference(self, logps: PairLogps) -> Tensor:
        margin = self.beta * self.difference(logps)
        mixed = -(1 - self.label_smoothing) * logsigmoid(margin) + self.label_smoothing * logsigmoid(-margin)
        return mixed / (1 - 2 * self.label_smoothing)
