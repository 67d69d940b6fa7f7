"""Results of mutation testing with mutmut (`make mutants`), and samples of its mutants.

    python -m tests.mutants                      a Markdown table by room, then the mutants that no test notices
    python -m tests.mutants sample N ROOM ...    names of N mutants of each room, the same ones at every call

Mutants that mypy refuses (`make lint`) are not run, and counted in neither share.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from scipy.stats import binomtest

ROOMS = ("losses", "scheduling", "policy", "training")
KILLED, TYPES, NOT_RUN = (
    {1, 3},
    37,
    {None, 2, 34},
)  # mutmut's exit codes; 0: alive, 5 and 33: no test calls it
TIMEOUTS = {24, -24, 36, 152, 255}


def verdicts(room: str) -> Iterator[tuple[str, int | None]]:
    """Yield name and exit code of each mutant of a room."""
    for file in sorted(Path("mutants/sams", room).rglob("*.py.meta")):
        yield from json.loads(file.read_text())["exit_code_by_key"].items()


def main() -> None:
    print("| room | mutants | refused by mypy | run | killed | alive | no test | killed of those run |")
    print("|---|---|---|---|---|---|---|---|")
    alive = []
    for room in ROOMS:
        codes = dict(verdicts(room))
        run = {name: code for name, code in codes.items() if code not in NOT_RUN and code != TYPES}
        if not run:
            continue
        killed = sum(code in KILLED | TIMEOUTS for code in run.values())
        untested = sum(code in (5, 33) for code in run.values())
        low, high = binomtest(killed, len(run)).proportion_ci(method="wilson")
        complete = all(code not in NOT_RUN for code in codes.values())
        interval = "" if complete else f" ({100 * low:.0f} to {100 * high:.0f})"
        types = sum(code == TYPES for code in codes.values())
        counts = (len(codes), types, len(run), killed, len(run) - killed - untested, untested)
        print(f"| {room} | {' | '.join(map(str, counts))} | {100 * killed / len(run):.1f} %{interval} |")
        alive += [name for name, code in run.items() if code not in KILLED | TIMEOUTS]
    print("", *alive, sep="\n")


def sample(number: int, rooms: list[str]) -> list[str]:
    """Draw mutants of each room, with a seed."""
    chosen = []
    for room in rooms:
        names = sorted(name for name, _ in verdicts(room))
        chosen += random.Random(0).sample(names, min(number, len(names)))
    return chosen


if __name__ == "__main__":
    if sys.argv[1:2] == ["sample"]:
        print(*sample(int(sys.argv[2]), sys.argv[3:]))
    else:
        main()
