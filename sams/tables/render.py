"""Tables for reading: Markdown, a page of its own, the terminal. One number and its errors to a cell."""

import html as escaping
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"

# Decimals of each column: no more than its standard error deserves.
DECIMALS = {
    "length_controlled_winrate": 1,
    "win_rate": 1,
    "mt_bench": 2,
    "test_accuracy": 1,
    "chosen_reward": 3,
    "chosen_logp": 1,
    "train_seconds": 0,
    "peak_memory_mb": 0,
}

# What a paper calls a column.
LABELS = {
    "length_controlled_winrate": "LC win rate",
    "win_rate": "win rate",
    "mt_bench": "MT-Bench",
    "test_accuracy": "test accuracy",
    "chosen_reward": "chosen reward",
    "chosen_logp": "chosen log-prob",
    "hours": "hours",
}

# Names that a terminal of 80 characters has no room for.
SHORT = {
    "length_controlled_winrate": "LC win\nrate",
    "test_accuracy": "test\nacc.",
    "train_seconds": "train\ns",
    "peak_memory_mb": "peak\nMB",
    "difference": "diff.",
    "excludes 0": "excl.\n0",
}

TEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after \\ it would begin an argument
    "−": "$-$",
    "±": r"$\pm$",
    "√": r"$\surd$",
    "×": r"$\times$",
    "–": "--",
}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff;
  margin: 2rem auto; padding: 0 1rem; max-width: 96rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; border-block: 2px solid #111; }}
th, td {{ padding: .4rem .6rem; text-align: right; vertical-align: top; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
thead th {{ border-bottom: 1px solid #111; vertical-align: bottom; white-space: normal; }}
tbody tr + tr > * {{ border-top: 1px solid #ccc; }}
tbody th {{ font-weight: 600; }}
.error {{ display: block; color: #444; font-size: .8rem; }}
ul {{ color: #333; font-size: .9rem; padding-left: 1.2rem; max-width: 60rem; }}
@page {{ size: landscape; }}
@media print {{ body {{ margin: 0; font-size: 10pt; }} .scroll {{ overflow: visible; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
<div class="scroll">
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
<ul>
{notes}
</ul>
</body>
</html>
"""


class Readable(NamedTuple):
    """A table of text: each cell is a number and, after it, its errors, if any."""

    columns: list[str]
    rows: list[list[tuple[str, ...]]]


def readable_main(table: "pd.DataFrame") -> Readable:
    """The main table with each score's errors in the score's cell."""
    columns = ["method", "n_seeds", *DECIMALS]
    rows = []
    for record in table.to_dict("records"):
        row: list[tuple[str, ...]] = [(str(record["method"]),), (str(record["n_seeds"]),)]
        for column, decimals in DECIMALS.items():
            value = number(record[column], decimals)
            items = number(record.get(f"{column}_se_items"), decimals)
            seeds = number(record.get(f"{column}_se_seeds"), decimals)
            errors = [f"±{items}"] * (items != MISSING) + [f"({seeds})"] * (seeds != MISSING)
            row.append((value, *errors))
        rows.append(row)
    return Readable(columns, rows)


def readable_comparisons(table: "pd.DataFrame") -> Readable:
    """The comparisons with each interval in one cell."""
    import pandas as pd

    columns = ["benchmark", "methods", "difference", "95 % interval", "excludes 0", "items"]
    rows: list[list[tuple[str, ...]]] = []
    for record in table.to_dict("records"):
        decimals = DECIMALS[record["benchmark"]] + 1
        low, high = number(record["ci_low"], decimals), number(record["ci_high"], decimals)
        items = (
            record["interval"] if pd.isna(record["n_items"]) else f"{record['n_items']}, {record['interval']}"
        )
        if not pd.isna(record["p_t"]):
            items = (
                f"{record['n_seeds']} seeds, p {record['p_t']:.2g} (t), {record['p_sign_flip']:.2g} (flips)"
            )
        texts = (
            record["benchmark"],
            f"{record['method']} − {record['base']}",
            number(record["difference"], decimals),
            f"{low} to {high}",
            "yes" if record["excludes_zero"] else "no",
            items,
        )
        rows.append([(text,) for text in texts])
    return Readable(columns, rows)


def readable_paper(table: "pd.DataFrame") -> tuple[Readable, list[str]]:
    """The paper's figures beside ours, a row for each method; and the reasons of the gaps, as numbered notes."""
    scores = list(dict.fromkeys(table["score"]))
    columns = ["method", "n"]
    for score in scores:
        columns += [f"{LABELS[score]}: reported", "reproduced", "difference"]
    reasons: dict[str, int] = {}

    def gap(reason: str) -> tuple[str, ...]:
        return (MISSING, f"[{reasons.setdefault(reason, len(reasons) + 1)}]") if reason else (MISSING,)

    rows = []
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    for first in range(0, len(records), len(scores)):
        together = records[first : first + len(scores)]
        method, row = together[0]["method"], together[0]["row"]
        cells: list[tuple[str, ...]] = [
            (row if method in (None, row) else f"{method} ({row})",),
            (str(max(record["n_seeds"] for record in together)),),
        ]
        for record in together:
            decimals = DECIMALS.get(record["score"], 2)
            value, items, seeds = (
                number(record[key], decimals) for key in ("reproduced", "se_items", "se_seeds")
            )
            errors = [f"±{items}"] * (items != MISSING) + [f"({seeds})"] * (seeds != MISSING)
            reported, difference = (number(record[key], decimals) for key in ("reported", "difference"))
            cells += [
                gap(record["reported_missing"]) if reported == MISSING else (reported,),
                gap(record["reproduced_missing"]) if value == MISSING else (value, *errors),
                gap(record["difference_missing"]) if difference == MISSING else (difference,),
            ]
        rows.append(cells)
    return Readable(columns, rows), [f"[{place}] {reason}." for reason, place in reasons.items()]


def number(value: object, decimals: int) -> str:
    """A number with so many decimals; a dash for None and NaN."""
    if not isinstance(value, int | float) or math.isnan(value):
        return MISSING
    return f"{value:,.{decimals}f}".replace(",", " ").replace("-", "−")


def markdown(title: str, table: Readable, notes: Sequence[str]) -> str:
    """The table as GitHub Markdown, its notes below."""
    lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)]]
    lines += [[" ".join(cell) for cell in row] for row in table.rows]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([f"# {title}", "", *rows, "", *(f"- {note}" for note in notes), ""])


def html(title: str, table: Readable, notes: Sequence[str]) -> str:
    """The table as a page that needs no other file, for screen and paper; every text is escaped."""
    text = escaping.escape
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in table.columns)
    body = []
    for row in table.rows:
        cells = [f'<th scope="row">{text(row[0][0])}</th>']
        for value, *errors in row[1:]:
            below = "".join(f'<span class="error">{text(error)}</span>' for error in errors)
            cells.append(f"<td>{text(value)}{below}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    listed = "\n".join(f"<li>{text(note)}</li>" for note in notes)
    return PAGE.format(title=text(title), head=head, body="\n".join(body), notes=listed)


def latex(title: str, table: Readable, notes: Sequence[str]) -> str:
    """The table for LaTeX: booktabs, its notes as small print below."""
    lines = [[_tex(column) for column in table.columns]]
    lines += [[_tex(" ".join(cell)) for cell in row] for row in table.rows]
    head, *body = (" & ".join(line) + r" \\" for line in lines)
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs}.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\par\smallskip\raggedright\footnotesize",
            *(f"{_tex(note)}\\par" for note in notes),
            r"\end{table}",
            "",
        ]
    )


def _tex(text: str) -> str:
    """Text with what LaTeX would take for a command, or has no letter for, spelled out."""
    return "".join(TEX.get(letter, letter) for letter in text)


def terminal(title: str, table: Readable, notes: Sequence[str]) -> None:
    """Print the table, its notes below."""
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for place, column in enumerate(table.columns):
        head = SHORT.get(column, column.replace("_", "\n"))
        shown.add_column(Text(head), justify="right" if place else "left", no_wrap=True, vertical="top")
    for first, *others in table.rows:
        name = SHORT.get(first[0], first[0]).replace("\n", " ")
        shown.add_row(Text(name), *(Text("\n".join(cell)) for cell in others))
    console = Console()
    console.print(shown)
    for note in notes:
        console.print(Padding(Text(f"- {note}"), (0, 0, 0, 1)))
