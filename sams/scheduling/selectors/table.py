"""Table of the selectors: names and needs, without torch; and how a selector of another package is found.

A new selector of this package is one file with a subclass of `sams.scheduling.selectors.base.Selector`, and one entry
here. A selector of another package needs no entry: `find` imports the class and reads its needs.
"""

import importlib
import inspect
import os
import pkgutil
import sys
import typing
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sams.runtime.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from sams.scheduling.selectors.base import Selector

GROUP = "sams.selectors"
"""Group of the entry points by which other packages give names to their selectors."""


@dataclass(frozen=True)
class Entry:
    """One selector.

    Attributes:
        path: module and class, as ``module:class``.
        needs_scores: whether the scoring pass is needed.
        needs_reference: whether log-probs under a reference are needed, whatever the loss.
        needs_settings: whether one of its own settings has no default.
        reads_scheduler: whether settings of `scheduler` belong to its recipe.
        trains_scheduler: whether it trains the networks of `scheduler`, and can start from pretrained ones.
        full_batch: whether it trains on every pair, so that `ratio` is 1.
        crossfitted: whether its pairs are chosen before the training, by cross-fitted losses, with `ratio` as their
            share of the data.
    """

    path: str
    needs_scores: bool = True
    needs_reference: bool = False
    needs_settings: bool = False
    reads_scheduler: bool = False
    trains_scheduler: bool = False
    full_batch: bool = False
    crossfitted: bool = False

    @property
    def module(self) -> str:
        """Return the name of the module."""
        return self.path.partition(":")[0]

    def load(self) -> "type[Selector]":
        """Import the class."""
        loaded: type[Selector] = pkgutil.resolve_name(self.path)
        return loaded


SELECTORS: dict[str, Entry] = {
    "all": Entry("sams.scheduling.selectors.all:All", needs_scores=False, full_batch=True),
    "random": Entry("sams.scheduling.selectors.random:Random", needs_scores=False),
    "top_margin": Entry("sams.scheduling.selectors.top_margin:TopMargin"),
    "low_margin": Entry("sams.scheduling.selectors.low_margin:LowMargin"),
    "top_loss": Entry("sams.scheduling.selectors.top_loss:TopLoss"),
    "reward": Entry("sams.scheduling.selectors.reward:Reward", reads_scheduler=True),
    "beta_dpo_filter": Entry("sams.scheduling.selectors.beta_dpo_filter:BetaDpoFilter"),
    "selective": Entry("sams.scheduling.selectors.all:All", needs_scores=False, crossfitted=True),
    "oracle": Entry("sams.scheduling.selectors.oracle:Oracle"),
    "reference_gap": Entry(
        "sams.scheduling.selectors.reference_gap:ReferenceGap", needs_scores=False, needs_reference=True
    ),
    "small_loss": Entry("sams.scheduling.selectors.small_loss:SmallLoss"),
    "uncertainty": Entry("sams.scheduling.selectors.uncertainty:Uncertainty"),
    "easy_to_hard": Entry(
        "sams.scheduling.selectors.easy_to_hard:EasyToHard", needs_scores=False, needs_settings=True
    ),
    "rho_loss": Entry("sams.scheduling.selectors.rho_loss:RhoLoss", needs_settings=True),
    "lossdiff_irm": Entry("sams.scheduling.selectors.lossdiff_irm:LossDiffIrm", needs_settings=True),
    "perplexity_difference": Entry(
        "sams.scheduling.selectors.perplexity_difference:PerplexityDifference", needs_reference=True
    ),
    "dr_dpo": Entry("sams.scheduling.selectors.dr_dpo:DrDpo", full_batch=True),
    "wpo": Entry("sams.scheduling.selectors.wpo:Wpo", full_batch=True),
    "beta_dpo": Entry("sams.scheduling.selectors.beta_dpo:BetaDpo"),
    "sams": Entry("sams.scheduling.selectors.sams:Sams", reads_scheduler=True, trains_scheduler=True),
}


def find(name: str) -> Entry:
    """Return the entry of a selector.

    Args:
        name: a name in `SELECTORS`, a name in the entry points of `GROUP`, or ``package.module:Class``.

    Raises:
        UserError: there is no such selector, or it is none.
    """
    if name in SELECTORS:
        return SELECTORS[name]
    if ":" in name:
        return _of_class(name, name)
    named = {point.name: point.value for point in entry_points(group=GROUP)}
    if name in named:
        return _of_class(name, named[name])
    known = [*SELECTORS, *named]
    raise UserError(
        f"no selector is named '{name}' (there are {', '.join(known)}){nearest(name, known)}",
        remedy="choose one of them, or give the path of a class, package.module:Class",
    )


def _of_class(name: str, path: str) -> Entry:
    """Return the entry of a class of another package, which is imported."""
    from sams.scheduling.selectors.base import Selector

    def refuse(problem: str) -> UserError:
        return UserError(
            problem,
            where=f"selector {name}",
            remedy="name a subclass of sams.scheduling.selectors.base.Selector that Python can import",
        )

    module, _, attribute = path.partition(":")
    if not {"", os.getcwd()} & set(sys.path):  # a program in bin/ does not look into the current folder
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of another project may raise any type
        raise refuse(f"{type(error).__name__}: {first_line(error)}") from error
    if not (inspect.isclass(found) and issubclass(found, Selector)):
        raise refuse(f"{path} is not a selector")
    if found.choose is Selector.choose:
        raise refuse(f"{path} has no method `choose`")
    return Entry(path, needs_scores=found.needs_scores, needs_reference=found.needs_reference)


def settings_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a selector, checked, with the defaults of those that are not given.

    They are the parameters after `setup` of the class's `build`, or of its `__init__`, with their types.

    Raises:
        UserError: naming a setting that the selector does not have, or whose value does not fit.
    """
    from pydantic import ValidationError

    model = _settings_model(find(name).load())
    try:
        return model(**given).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(map(str, first["loc"]))
        known = list(model.model_fields)
        problem = {
            "extra_forbidden": f"no setting '{setting}'{nearest(setting, known)}",
            "missing": f"setting '{setting}' is required",
        }.get(first["type"], f"setting '{setting}': {first['msg']}, found {first['input']!r}")
        raise UserError(
            problem,
            where=f"selector {name}",
            remedy=f"the selector has {', '.join(known)}" if known else "the selector has no settings",
        ) from None


def _settings_model(selector: "type[Selector]") -> "type[BaseModel]":
    from pydantic import ConfigDict, create_model

    builder = next(
        vars(base)[method]
        for base in selector.__mro__
        for method in ("build", "__init__")
        if method in vars(base)
    )
    function = inspect.unwrap(getattr(builder, "__func__", builder))
    parameters = [
        part
        for part in list(inspect.signature(function).parameters.values())[2:]
        if part.kind not in (part.VAR_KEYWORD, part.VAR_POSITIONAL)
    ]
    # Those of the settings alone: `Setup` may be imported for the type checker only.
    written = SimpleNamespace(
        __annotations__={part.name: function.__annotations__.get(part.name, Any) for part in parameters}
    )
    hints = typing.get_type_hints(written, function.__globals__, include_extras=True)
    known: dict[str, Any] = {
        part.name: (hints.get(part.name, Any), ... if part.default is part.empty else part.default)
        for part in parameters
    }
    return create_model(
        selector.__name__, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **known
    )
