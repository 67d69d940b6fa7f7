"""Table of the benchmarks, in the order of tables and pages.

A benchmark is a file of its name in this folder (`sams.scoring.benchmark`) and a line here.
"""

import functools
import pkgutil
from collections.abc import Iterator, Mapping

from sams.scoring.benchmark import Benchmark
from sams.study.study import Study

NAMES = (
    "alpaca_eval",
    "mt_bench",
    "own_prompts",
    "reward_model",
    "lm_eval",
)


class Table(Mapping[str, Benchmark]):
    """The benchmarks by name; the file of one is imported on access."""

    def __getitem__(self, name: str) -> Benchmark:
        if name not in NAMES:
            raise KeyError(name)
        return _load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


BENCHMARKS = Table()


@functools.cache
def _load(name: str) -> Benchmark:
    found: Benchmark = pkgutil.resolve_name(part_of(name))
    return found


def part_of(name: str) -> str:
    """Return module and name of a benchmark."""
    return f"sams.scoring.{name}:BENCHMARK"


def scored(study: Study) -> list[Benchmark]:
    """Return the benchmarks that a study scores."""
    return [BENCHMARKS[name] for name in NAMES if name in study.benchmarks.scored]


def judged(study: Study) -> list[Benchmark]:
    """Return the benchmarks that a judge scores."""
    return [benchmark for benchmark in scored(study) if benchmark.has_judge]


def parts_of(study: Study) -> list[str]:
    """Return modules and names of the benchmarks that a study scores, for the code that its tables depend on."""
    return [part_of(benchmark.name) for benchmark in scored(study)]
