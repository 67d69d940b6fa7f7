"""Tables and figures of a rehearsal are marked as such, and those of other studies are not."""

from pathlib import Path

import pytest

from sams.study.study import Study
from sams.tables import captions
from sams.tables.figures import study_figures
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
    drawn = study_figures(study, tmp_path)
    assert list(drawn) == ["learning_curves", "selection", "difficulty", "noise", "cost"]
    assert all("REHEARSAL" in figure.get_suptitle() for figure in drawn.values())
    drawn = study_figures(made.study(["sft", "dpo"], [0]), tmp_path)
    assert not any(figure.get_suptitle() for figure in drawn.values())


def test_no_training_is_missing_for_a_finished_model() -> None:
    settings = made.study(["sft", "dpo", "public"], [0]).model_dump()
    settings["method_settings"]["public"] = {"model": {"path": "some/model"}}
    study = Study.model_validate(settings)
    [missing] = [note for note in captions.main_notes(study, {}) if "(train)" in note]
    assert missing == "Missing so far (train): sft seed 0, dpo seed 0."
