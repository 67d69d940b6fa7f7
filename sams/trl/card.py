"""What the model card of a scheduled run says of its selection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sams.training.card import CITATION

if TYPE_CHECKING:
    from sams.trl.schedule import Schedule

BEFORE = "### Framework versions"
"""Heading of TRL's card before which the section stands."""


def add_selection(card: Path, schedule: Schedule) -> None:
    """Add a section on the selection to TRL's model card, and a citation."""
    text = card.read_text(encoding="utf-8")
    if BEFORE not in text:
        return
    before, after = text.split(BEFORE, 1)
    text = f"{before}{section(schedule)}\n{BEFORE}{after.rstrip()}\n"
    if schedule.entry.reads_scheduler:
        text += f"\nCite SamS as:\n\n{CITATION}\n"
    card.write_text(text, encoding="utf-8")


def section(schedule: Schedule) -> str:
    """Return the section, in Markdown."""
    args, n = schedule.trainer.args, schedule.candidates
    k = schedule.size(n, args.selection_warmup + 1)
    rows = {"selector": f"`{args.selector}`"}
    if args.selector_settings:
        rows["its settings"] = ", ".join(f"`{key}: {value}`" for key, value in args.selector_settings.items())
    rows["pairs of a step"] = f"{k} trained on, of {n} candidates"
    for label, value in (
        ("first steps on all candidates", args.selection_warmup),
        ("every so many steps on all candidates", args.selection_full_every),
        ("last step with a selection", args.selection_end),
    ):
        if value:
            rows[label] = str(value)
    if schedule.seen_pairs:
        rows["so far"] = f"{schedule.trained_pairs:,} pairs trained on, of {schedule.seen_pairs:,} seen"
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(
        [
            "### Sample scheduling\n",
            "A selector of the package sams chose the pairs of each optimiser step among its candidates.\n",
            "| | |",
            "|---|---|",
            *lines,
            "",
        ]
    )
