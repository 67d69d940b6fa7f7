"""Tables as files and in the terminal: CSV with all figures in full; Markdown, LaTeX and HTML for reading."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from sams.runtime.files import whole_file
from sams.study.study import BASE_METHOD
from sams.tables.benchmarks import SCORES, score_named

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"

LABELS = {score.column: score.label for score in SCORES} | {"hours": "hours"}

# Names that are too long for a terminal of 80 characters.
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
    "[": "{[}",  # after \\ it would start an argument
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
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff;
  margin: 2rem auto; padding: 0 1rem; max-width: 96rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; border-block: 2px solid #111; }
th, td { padding: .4rem .6rem; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1px solid #111; vertical-align: bottom; white-space: normal; }
tbody tr + tr > * { border-top: 1px solid #ccc; }
tbody th { font-weight: 600; }
.error { display: block; color: #444; font-size: .8rem; }
ul { color: #333; font-size: .9rem; padding-left: 1.2rem; max-width: 60rem; }
@page { size: landscape; }
@media print { body { margin: 0; font-size: 10pt; } .scroll { overflow: visible; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<div class="scroll">
<table>
<thead><tr>{% for column in table.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr><th scope="row">{{ row[0][0] }}</th>
{%- for cell in row[1:] %}<td>{{ cell[0] }}{% for error in cell[1:] %}<span class="error">{{ error }}</span>
{%- endfor %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
<ul>
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
</body>
</html>
"""


class Readable(NamedTuple):
    """A table of text: each cell is a number, followed by its errors if it has any."""

    columns: list[str]
    rows: list[list[tuple[str, ...]]]


def write(
    outputs: Mapping[str, str], table: "pd.DataFrame", title: str, readable: Readable, notes: Sequence[str]
) -> None:
    """Write a table in the forms named by `outputs`: csv, md, tex, html.

    Args:
        outputs: path of each form.
        table: all figures, for the CSV file.
        title: heading of the other forms.
        readable: cells of the other forms.
        notes: notes below the table.
    """
    forms = {"md": markdown, "tex": latex, "html": html}
    for form, path in outputs.items():
        with whole_file(Path(path)) as part:
            if form == "csv":
                table.to_csv(part, index=False)
            else:
                part.write_text(forms[form](title, readable, notes), encoding="utf-8")


def readable_main(table: "pd.DataFrame") -> Readable:
    """Return the main table as text, with each score's errors in its cell.

    Without columns that no method has a figure for, and without the row of a start model that has none at all.
    """
    names = [name for name in table.columns[2:] if not name.endswith(("_se_items", "_se_seeds"))]
    shown = {name: decimals_of(name) for name in names if table[name].notna().any()}
    columns = ["method", "n_seeds", *shown]
    rows = []
    for record in table.to_dict("records"):
        if record["method"] == BASE_METHOD and not record["n_seeds"]:
            continue
        row: list[tuple[str, ...]] = [(str(record["method"]),), (str(record["n_seeds"]),)]
        for column, decimals in shown.items():
            items, seeds = (record.get(f"{column}_se_{kind}") for kind in ("items", "seeds"))
            row.append(_with_errors(record[column], items, seeds, decimals))
        rows.append(row)
    return Readable(columns, rows)


def readable_comparisons(table: "pd.DataFrame") -> Readable:
    """Return the comparisons as text, with each interval in one cell."""
    import pandas as pd

    columns = ["benchmark", "methods", "difference", "95 % interval", "excludes 0", "items"]
    rows: list[list[tuple[str, ...]]] = []
    for record in table.to_dict("records"):
        decimals = decimals_of(record["benchmark"]) + 1
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
    """The table of reported and reproduced figures as text, with a row for each method; and the reasons for gaps."""
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
            decimals = decimals_of(record["score"])
            for key, items, seeds in (
                ("reported", None, None),
                ("reproduced", record["se_items"], record["se_seeds"]),
                ("difference", None, None),
            ):
                shown = _with_errors(record[key], items, seeds, decimals)
                cells.append(gap(record[f"{key}_missing"]) if shown[0] == MISSING else shown)
        rows.append(cells)
    return Readable(columns, rows), [f"[{index}] {reason}." for reason, index in reasons.items()]


def decimals_of(column: str) -> int:
    """Return the number of decimals shown in a column."""
    other = {"train_seconds": 0, "peak_memory_mb": 0, "hours": 2}
    return other[column] if column in other else score_named(column).decimals


def _with_errors(value: object, items: object, seeds: object, decimals: int) -> tuple[str, ...]:
    """A number, then its standard errors over items (after ±) and over seeds (in brackets), if known."""
    over_items, over_seeds = number(items, decimals), number(seeds, decimals)
    errors = [f"±{over_items}"] * (over_items != MISSING) + [f"({over_seeds})"] * (over_seeds != MISSING)
    return (number(value, decimals), *errors)


def number(value: object, decimals: int) -> str:
    """A number with `decimals` decimals; a dash for None and NaN."""
    if not isinstance(value, int | float) or math.isnan(value):
        return MISSING
    return f"{value:,.{decimals}f}".replace(",", " ").replace("-", "−")


def markdown(title: str, table: Readable, notes: Sequence[str]) -> str:
    """Return the table as GitHub Markdown, followed by its notes."""
    lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)]]
    lines += [[" ".join(cell) for cell in row] for row in table.rows]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([f"# {title}", "", *rows, "", *(f"- {note}" for note in notes), ""])


def html(title: str, table: Readable, notes: Sequence[str]) -> str:
    """Return the table as a self-contained page for screen and paper; all text is escaped."""
    from jinja2 import Environment

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(PAGE).render(title=title, table=table, notes=notes)


def latex(title: str, table: Readable, notes: Sequence[str]) -> str:
    """Return the table for LaTeX with booktabs, followed by its notes in small print."""
    import pandas as pd

    cells = [[_tex(" ".join(cell)) for cell in row] for row in table.rows]
    frame = pd.DataFrame(cells, columns=[_tex(column) for column in table.columns])
    text = frame.style.hide(axis="index").to_latex(
        caption=_tex(title),
        column_format=f"l{'r' * (len(table.columns) - 1)}",
        hrules=True,
        position_float="centering",
    )
    end = r"\end{table}"
    small_print = [r"\par\smallskip\raggedright\footnotesize", *(f"{_tex(note)}\\par" for note in notes), end]
    return r"% Needs \usepackage{booktabs}." + "\n" + text.replace(end, "\n".join(small_print))


def _tex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(TEX.get(letter, letter) for letter in text)


def terminal(title: str, table: Readable, notes: Sequence[str]) -> None:
    """Print the table, followed by its notes."""
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for index, column in enumerate(table.columns):
        head = SHORT.get(column, column.replace("_", "\n"))
        justify: Literal["right", "left"] = "right" if index else "left"
        # Names of runs are folded, so that numbers are not cut off.
        shown.add_column(
            Text(head), justify=justify, no_wrap=column != "methods", overflow="fold", vertical="top"
        )
    for first, *others in table.rows:
        name = SHORT.get(first[0], first[0]).replace("\n", " ")
        shown.add_row(Text(name), *(Text("\n".join(cell)) for cell in others))
    console = Console()
    console.print(shown)
    for note in notes:
        console.print(Padding(Text(f"- {note}"), (0, 0, 0, 1)))
