"""A rehearsal is said to be one wherever its figures are shown; no other study is."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from sams.study.study import Study
from sams.tables import captions, figures
from tests.tables import made


@pytest.mark.parametrize("rehearse", [True, False])
def test_tables_and_comparisons_are_marked(rehearse: bool) -> None:
    study = made.study(["sft", "dpo"], [0], rehearse=rehearse)
    for title, notes in (
        (captions.main_title(study), captions.main_notes(study, {})),
        (captions.comparison_title(study), captions.comparison_notes(study, 10)),
    ):
        assert title.startswith("REHEARSAL: ") == rehearse
        assert notes[0].startswith("Rehearsal: a tiny fresh model") == rehearse


def test_figures_are_marked(tmp_path: Path) -> None:
    study = made.study(["sft", "dpo"], [0], rehearse=True)
    made.write(tmp_path, {"dpo/seed0/train_metrics.json": made.train(60.0, 1.0)})
    figures.main(study.model_dump_json(), tmp_path, tmp_path / "out")
    for name in ("learning_curves", "selection", "cost"):
        assert "REHEARSAL" in (tmp_path / "out" / f"{name}.svg").read_text(encoding="utf-8")
        ElementTree.parse(tmp_path / "out" / f"{name}.svg")


def test_what_is_scored_and_not_trained_lacks_no_training() -> None:
    settings = made.study(["sft", "dpo", "public"], [0]).model_dump()
    settings["method_settings"]["public"] = {"model": {"path": "some/model"}}
    study = Study.model_validate(settings)
    [missing] = [note for note in captions.main_notes(study, {}) if "(train)" in note]
    assert missing == "Not there yet (train): sft seed 0, dpo seed 0."
