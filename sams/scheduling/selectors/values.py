"""Values that selectors read from a view, or an error of one line that says what is missing; and their weights."""

import torch
from torch import Tensor

from sams.runtime.errors import UserError
from sams.scheduling.selectors.base import View


def column(view: View, name: str) -> Tensor:
    """Return the values of a column of the data: [n] float64 on the CPU.

    Raises:
        UserError: the data has no such column, or its values are not finite numbers.
    """
    values = view.columns.get(name)
    where = f"column '{name}'"
    if values is None:
        raise UserError(
            "the selector reads it, and the data does not have it",
            where=where,
            remedy="add it to the data, or name another in the selector's settings",
        )
    remedy = "give a number for each pair"
    try:
        numbers = torch.as_tensor(values).double().cpu()
    except (TypeError, ValueError, RuntimeError):
        wrong = next((value for value in values if not isinstance(value, int | float)), values)
        raise UserError(f"{wrong!r} is not a number", where=where, remedy=remedy) from None
    finite = numbers.isfinite()
    if not bool(finite.all()):
        row = int(finite.int().argmin())
        pair = f" for pair {view.ids[row]}" if len(view.ids) else ""
        raise UserError(f"the value is {numbers[row].item()}{pair}", where=where, remedy=remedy)
    return numbers


def policy(view: View) -> tuple[Tensor, Tensor]:
    """Return the log-probs of the chosen and of the rejected responses under the policy: [n], [n] float64."""
    return view.chosen_logps.cpu().double(), view.rejected_logps.cpu().double()


def reference(view: View) -> tuple[Tensor, Tensor]:
    """Return the log-probs of the chosen and of the rejected responses under the reference: [n], [n] float64.

    Raises:
        UserError: there is no reference.
    """
    if view.reference_chosen is None or view.reference_rejected is None:
        raise UserError(
            "the selector reads log-probs under the reference, and there is none",
            where="selector",
            remedy="train with a reference, or choose another selector",
        )
    return view.reference_chosen.cpu().double(), view.reference_rejected.cpu().double()


def per_token(view: View, logps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Divide the log-probs of the chosen and of the rejected responses by their numbers of tokens: [n], [n].

    Raises:
        UserError: the numbers of tokens are not known.
    """
    if view.chosen_tokens is None or view.rejected_tokens is None:
        raise UserError(
            "the selector reads log-probs per token, and this loss has sums only",
            where="selector",
            remedy="choose another loss or selector",
        )
    chosen, rejected = logps
    return chosen / view.chosen_tokens.cpu(), rejected / view.rejected_tokens.cpu()


def positive(weights: Tensor) -> Tensor:
    """Return weights as float32, at least 1e-30: a weight of 0 would leave a pair out of the mean."""
    return weights.float().clamp(min=1e-30)


def mean_one(log_weights: Tensor) -> Tensor:
    """Return weights of these logarithms, scaled to a mean of 1: [k] float32, above 0."""
    return positive(len(log_weights) * log_weights.softmax(0))
