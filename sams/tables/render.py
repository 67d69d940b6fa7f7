"""Tables as files: CSV with all figures in full; Markdown, LaTeX and HTML for reading."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sams.runtime.files import whole_file
from sams.runtime.terminal import Readable
from sams.study.study import BASE_METHOD
from sams.tables.scores import score_named

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"

# Headings of other columns of the main table, with units.
HEADINGS = {"n_seeds": "seeds", "train_seconds": "training time (s)", "peak_memory_mb": "peak memory (MB)"}

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
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff;
  margin: 2rem auto; padding: 0 1rem; max-width: 80rem; }
h1 { font-size: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; border-block: 2px solid #111; }
th, td { padding: .35rem .5rem; text-align: right; vertical-align: top; white-space: nowrap; }
th.name { text-align: left; }
th.name:first-child { position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 1px solid #111; vertical-align: bottom; white-space: normal; }
tbody tr + tr > * { border-top: 1px solid #ccc; }
tbody th { font-weight: 400; }
tbody th:first-child { font-weight: 600; }
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
<thead><tr>{% for column in table.columns %}
<th scope="col"{% if loop.index <= table.names %} class="name"{% endif %}>{{ column }}</th>
{%- endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>{% for cell in row[: table.names] %}<th scope="row" class="name">{{ cell[0] }}</th>{% endfor %}
{%- for cell in row[table.names :] %}<td>{{ cell[0] }}
{%- for error in cell[1:] %}<span class="error">{{ error }}</span>{% endfor %}</td>{% endfor %}</tr>
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


def readable_main(table: "pd.DataFrame", seeds: int) -> Readable:
    """Return the main table as text, with each score's errors in its cell.

    Without columns that no method has a figure for, without the row of a start model that has none at all, and
    without the number of seeds if every row has all `seeds`.
    """
    table = table.loc[(table["method"] != BASE_METHOD) | (table["n_seeds"] > 0)]
    counted = ["n_seeds"] * bool((table["n_seeds"] != seeds).any())
    names = [name for name in table.columns[2:] if not name.endswith(("_se_items", "_se_seeds"))]
    shown = {name: decimals_of(name) for name in names if table[name].notna().any()}
    columns = ["method", *map(heading, (*counted, *shown))]
    rows = []
    for record in table.to_dict("records"):
        row: list[tuple[str, ...]] = [(str(record[key]),) for key in ("method", *counted)]
        for column, decimals in shown.items():
            items, over_seeds = (record.get(f"{column}_se_{kind}") for kind in ("items", "seeds"))
            row.append(_with_errors(record[column], items, over_seeds, decimals))
        rows.append(row)
    return Readable(columns, rows)


def readable_comparisons(table: "pd.DataFrame") -> Readable:
    """Return the comparisons as text, with each interval in one cell."""
    import pandas as pd

    columns = ["methods", "score", "difference", "95 % interval", "", "over"]
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
            f"{record['method']} − {record['base']}",
            label_of(record["benchmark"]),
            number(record["difference"], decimals),
            f"{low} to {high}",
            "*" if record["excludes_zero"] else "",
            items,
        )
        rows.append([(text,) for text in texts])
    return Readable(columns, rows, names=2)


def readable_paper(table: "pd.DataFrame") -> tuple[Readable, list[str]]:
    """The table of reported and reproduced figures as text, with a row for each method; and the reasons for gaps."""
    scores = list(dict.fromkeys(table["score"]))
    columns = ["method", "n"]
    for score in scores:
        columns += [f"{label_of(score)}: reported", "reproduced", "difference"]
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


def label_of(column: str) -> str:
    """Return the name of a score, or of the hours in the comparison with the paper."""
    return column if column == "hours" else score_named(column).label


def heading(column: str) -> str:
    """Return the heading of a column of the main table, with its unit."""
    if column in HEADINGS:
        return HEADINGS[column]
    score = score_named(column)
    return f"{score.label} ({score.unit})" if score.unit else score.label


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
