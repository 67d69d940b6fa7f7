"""The pairs that a policy trusts most and least: a page for the report, and tables on a terminal.

The text of the data is escaped, and the page's content security policy forbids scripts and loading.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sams.runtime.errors import UserError
from sams.runtime.files import whole_file
from sams.runtime.terminal import Readable, print_table
from sams.study.study import Study
from sams.tables import captions
from sams.tables.pages import templates
from sams.tables.pairs import by_pair, read_pairs, texts
from sams.tables.render import number

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

SHOWN = 25
"""Pairs shown of each end."""
COLUMNS = ["split", "id", "margin", "selected", "flipped", "chosen_tokens", "rejected_tokens"]


class Shown(NamedTuple):
    """A pair on the page."""

    id: str
    last: str
    first: str
    seen: int
    selected: int
    flipped: bool
    prompt: Sequence[dict[str, str]]
    chosen: str
    rejected: str


def page(study: Study, results: Path, method: str) -> str:
    """Return the page of a method's pairs, over all seeds of the study.

    Args:
        study: the study.
        results: folder of its setting.
        method: a preference method.
    """
    runs = [results / method / f"seed{seed}" for seed in study.seeds]
    pairs = by_pair([read_pairs(run, COLUMNS, split="train") for run in runs])
    least, most = ends(pairs, SHOWN)
    both = pairs.loc[[*least, *most]]
    found: dict[str, Any] = {}
    for run in runs:
        found |= texts(run, both)
    return (
        templates()
        .get_template("pairs.html")
        .render(
            study=study,
            method=method,
            sections=[
                (key, f"{key} trusted".capitalize(), [_shown(pairs, found, pair) for pair in ids])
                for key, ids in (("least", least), ("most", most))
            ],
            summary=summary(pairs),
            reference=study.preference_of(method).needs_reference,
            rehearsal_note=captions.rehearsal_note(study),
        )
    )


def ends(pairs: "pd.DataFrame", count: int) -> tuple[list[str], list[str]]:
    """Return the ids of the pairs with the smallest margins and with the largest, those at the end first."""
    count = min(count, len(pairs) // 2)
    return list(pairs.index[:count]), list(pairs.index[::-1][:count])


def summary(pairs: "pd.DataFrame") -> list[list[str]]:
    """Return a table of all pairs and of the tenths with the smallest and the largest margins, with its heading."""
    tenth = max(1, len(pairs) // 10)
    parts = {"all": pairs, "least trusted tenth": pairs[:tenth], "most trusted tenth": pairs[-tenth:]}
    rows = [["", "pairs", "margin", "rejected preferred", "trained on", "tokens"]]
    known = bool(pairs["flipped"].notna().all())
    if known:
        rows[0].append("labels swapped")
    for name, part in parts.items():
        preferred = 100 * (part["last"] < 0).mean()
        trained = 100 * part["selected"].sum() / part["seen"].sum()
        row = [name, number(len(part), 0), number(float(part["last"].mean()), 3), f"{number(preferred, 1)} %"]
        row += [f"{number(trained, 1)} %", number(part["tokens"].mean(), 0)]
        rows.append(row + ([f"{number(100 * part['flipped'].mean(), 1)} %"] if known else []))
    return rows


def _shown(pairs: "pd.DataFrame", found: dict[str, Any], pair: str) -> Shown:
    import pandas as pd

    row = pairs.loc[[pair]].to_dict("records")[0]
    text = found[pair]
    return Shown(
        id=pair,
        last=number(float(row["last"]), 3),
        first=number(float(row["first"]), 3),
        seen=int(row["seen"]),
        selected=int(row["selected"]),
        flipped=not pd.isna(row["flipped"]) and bool(row["flipped"]),
        prompt=text["prompt"],
        chosen=text["chosen"],
        rejected=text["rejected"],
    )


def show(run: Path, console: "Console", *, count: int, out: Path | None = None) -> None:
    """Print the pairs that a run trusts least and most; with `out` write all pairs, with their texts.

    Args:
        run: folder of the run.
        console: where to print.
        count: number of pairs of each end.
        out: file to write, .csv or .parquet.

    Raises:
        UserError: there is no record, or `out` has another suffix.
    """
    from rich.text import Text

    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise UserError("expected a name that ends in .csv or .parquet", where=str(out))
    pairs = by_pair([read_pairs(run, COLUMNS, split="train")])
    heads, *rows = summary(pairs)
    print_table("", Readable(heads, [[(cell,) for cell in row] for row in rows]), console=console)
    least, most = ends(pairs, count)
    found = texts(run, pairs.loc[[*least, *most]])
    for title, ids in (("Least trusted", least), ("Most trusted", most)):
        console.print(Text(f"\n{title}", style="bold"))
        for pair in ids:
            row = _shown(pairs, found, pair)
            mark = "  label swapped" if row.flipped else ""
            console.print(
                Text(f"{row.last:>8}  trained {row.selected}/{row.seen}  {row.id}{mark}", style="bold")
            )
            lines = {"  ": row.prompt[-1]["content"], "+ ": row.chosen, "- ": row.rejected}
            for sign, said in lines.items():
                line = Text(f"  {sign}{_plain(said)}", no_wrap=True)
                line.truncate(console.width, overflow="ellipsis")
                console.print(line)
    console.print(
        "\nFirst the margin: implicit reward of the chosen response (+) minus that of the rejected one (-) when the "
        "policy last saw the pair. trained: in how many of the rounds that saw it.",
        style="dim",
        highlight=False,
    )
    if out is not None:
        _write(run, pairs, out)
        console.print(f"{out}: {len(pairs)} pairs", markup=False, highlight=False)


def _plain(text: str) -> str:
    """Return a text as one line without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:500])


def _write(run: Path, pairs: "pd.DataFrame", out: Path) -> None:
    """Write all pairs with their texts."""
    import json

    found = texts(run, pairs)
    written = pairs.copy()
    written["prompt"] = [json.dumps(found[pair]["prompt"], ensure_ascii=False) for pair in pairs.index]
    for name in ("chosen", "rejected"):
        written[name] = [found[pair][name] for pair in pairs.index]
    with whole_file(out) as part:
        if out.suffix == ".csv":
            written.to_csv(part)
        else:
            written.to_parquet(part)
