"""A benchmark's file, its line in the table and its settings belong together."""

from sams.scoring.question_set import question_set
from sams.scoring.table import BENCHMARKS
from sams.study.settings import benchmark_settings

INPUTS = {"answers", "questions", "data", "model", "start", "difficulty"}


def test_every_benchmark_has_its_settings_files_and_parts() -> None:
    kinds = benchmark_settings()
    assert {*BENCHMARKS} == {*kinds}
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name and benchmark.has_judge == kinds[name].has_judge
        files = [benchmark.judged, benchmark.metrics, *benchmark.outputs.values(), benchmark.answers]
        assert all(file.startswith(f"{name}/") for file in files if file)
        assert {*benchmark.given} <= {*benchmark.inputs} <= INPUTS
        assert bool(benchmark.start) == ("start" in benchmark.inputs)
        if benchmark.answers:
            assert question_set(name) is not None and "decoding" in kinds[name].model_fields
        for score in benchmark.scores:
            assert score.benchmark == name and benchmark.score_of(score.column) == score
