"""Selectors: all, random and sams behind one small interface (`base.Selector`)."""

from sams.scheduling.selectors.all import All
from sams.scheduling.selectors.base import Selector, View
from sams.scheduling.selectors.random import Random
from sams.scheduling.selectors.sams import Sams

__all__ = ["All", "Random", "Sams", "Selector", "View"]
