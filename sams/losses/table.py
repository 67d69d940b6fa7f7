"""Table of the losses: names, needs and settings, without torch.

A new loss is one file with a subclass of `sams.losses.base.PairLoss` and one entry here.
"""

import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sams.runtime.errors import nearest

if TYPE_CHECKING:
    from sams.losses.base import Loss, PairLoss


@dataclass(frozen=True)
class Range:
    """Range of a setting: its description, and a function that checks a value."""

    text: str
    holds: Callable[[float], bool]


POSITIVE = Range("above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Range("at least 0", lambda value: 0 <= value < math.inf)
FLIP_RATE = Range("in [0, 0.5)", lambda value: 0 <= value < 0.5)


@dataclass(frozen=True)
class Entry:
    """One loss.

    Attributes:
        path: module and class, as ``module:class``.
        needs_reference: whether log-probs under a reference model are needed.
        needs_kl: whether log-probs of mismatched completions are needed.
        settings: default and range of each key of `loss_settings`.
    """

    path: str
    needs_reference: bool = True
    needs_kl: bool = False
    settings: dict[str, tuple[float, Range]] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Return the name of the module."""
        return self.path.partition(":")[0]

    def load(self) -> "type[PairLoss]":
        """Import the class."""
        loaded: type[PairLoss] = pkgutil.resolve_name(self.path)
        return loaded


LOSSES: dict[str, Entry] = {
    "sigmoid": Entry("sams.losses.dpo:Sigmoid"),
    "cdpo": Entry("sams.losses.dpo:CDPO", settings={"label_smoothing": (0.1, FLIP_RATE)}),
    "robust": Entry("sams.losses.dpo:Robust", settings={"label_smoothing": (0.1, FLIP_RATE)}),
    "ipo": Entry("sams.losses.ipo:IPO"),
    "ipo_sum": Entry("sams.losses.ipo:IPOSum"),
    "hinge": Entry("sams.losses.hinge:Hinge"),
    "slic-hf": Entry(
        "sams.losses.slic:SLiCHF",
        needs_reference=False,
        settings={"delta": (1.0, NOT_NEGATIVE), "nll_weight": (0.1, NOT_NEGATIVE)},
    ),
    "simpo": Entry(
        "sams.losses.simpo:SimPO", needs_reference=False, settings={"gamma_beta_ratio": (0.5, NOT_NEGATIVE)}
    ),
    "kto": Entry(
        "sams.losses.kto:KTO",
        needs_kl=True,
        settings={"desirable_weight": (1.0, POSITIVE), "undesirable_weight": (1.0, POSITIVE)},
    ),
    "orpo": Entry("sams.losses.orpo:ORPO", needs_reference=False),
    "cpo": Entry("sams.losses.cpo:CPO", needs_reference=False, settings={"nll_weight": (1.0, NOT_NEGATIVE)}),
    "r-dpo": Entry("sams.losses.rdpo:RDPO", settings={"alpha": (0.05, NOT_NEGATIVE)}),
    "rrhf": Entry(
        "sams.losses.rrhf:RRHF", needs_reference=False, settings={"nll_weight": (1.0, NOT_NEGATIVE)}
    ),
}


def check_loss_name(name: str) -> None:
    """Check the name of a loss.

    Raises:
        ValueError: naming an unknown loss.
    """
    if name not in LOSSES:
        raise ValueError(
            f"no loss is named '{name}' (there are {', '.join(LOSSES)}){nearest(name, list(LOSSES))}"
        )


def check_loss(name: str, *, beta: float, settings: dict[str, float], sft_weight: float) -> None:
    """Check the name and the settings of a loss.

    Raises:
        ValueError: naming an unknown loss, a setting that the loss does not have, or one out of its range.
    """
    check_loss_name(name)
    known = LOSSES[name].settings
    for setting in settings:
        if setting not in known:
            raise ValueError(f"loss '{name}' has no setting '{setting}'; it has {', '.join(known) or 'none'}")
    ranges = {"beta": POSITIVE, "sft_weight": NOT_NEGATIVE} | {key: span for key, (_, span) in known.items()}
    for setting, value in {"beta": beta, "sft_weight": sft_weight, **settings}.items():
        if not ranges[setting].holds(value):
            raise ValueError(f"`{setting}` must be {ranges[setting].text}, not {value}")


def build_loss(name: str, *, beta: float, settings: dict[str, float], sft_weight: float) -> "Loss":
    """Build a loss.

    Args:
        name: name of the loss in `LOSSES`.
        beta: inverse temperature of the implicit reward.
        settings: the loss's other hyper-parameters, by name; those not given have their defaults.
        sft_weight: weight of an added SFT term.

    Raises:
        ValueError: as `check_loss`.
    """
    check_loss(name, beta=beta, settings=settings, sft_weight=sft_weight)
    more: dict[str, Any] = settings
    return LOSSES[name].load()(beta=beta, sft_weight=sft_weight, **more)
