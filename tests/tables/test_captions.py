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
    assert list(drawn) == ["learning_curves", "difficulty", "noise", "cost"]
    assert all("REHEARSAL" in figure.get_suptitle() for figure in drawn.values())
    drawn = study_figures(made.study(["sft", "dpo"], [0]), tmp_path)
    assert not any(figure.get_suptitle() for figure in drawn.values())


def test_no_training_is_missing_for_a_finished_model() -> None:
    settings = made.study(["sft", "dpo", "public"], [0]).model_dump()
    settings["method_settings"]["public"] = {"model": {"path": "some/model"}}
    study = Study.model_validate(settings)
    [missing] = [note for note in captions.main_notes(study, {}) if "(train)" in note]
    assert missing == "Missing so far (train): sft seed 0, dpo seed 0."


def test_fallbacks_of_training_jobs_are_below_the_main_table(tmp_path: Path) -> None:
    study = made.study(["sft", "dpo", "kto"], [0, 1])
    padded, slow = (
        "rows are padded: a_model has positions of its own",
        "attention is segment by segment: no kernel",
    )
    for run, fallbacks in {
        "sft/seed0": [],
        "dpo/seed0": [padded, slow],
        "dpo/seed1": [padded],
        "kto/seed1": [padded],
        "kto/seed1/crossfit/half0": [padded],
        "kto/seed2": [slow],  # not a seed of the table
    }.items():
        made.write(tmp_path, {f"{run}/recipe.json": {"tuning": {"fallbacks": fallbacks}}})
    made.write(tmp_path, {"sft/seed1/recipe.json": {"tuning": None}})
    made.write(tmp_path, {"dpo/seed0/train_metrics.json": made.train(60.0, 1.0)})
    notes = [f"dpo, 2 seeds; kto, 1 seed: {padded}", f"dpo, 1 seed: {slow}"]
    assert captions.fallback_notes(tmp_path, study) == notes
    outputs = {form: tmp_path / f"main.{form}" for form in ("csv", "md", "tex", "html")}
    made.run_script("main_table", study, tmp_path, outputs)
    assert all(f"- {note}\n" in outputs["md"].read_text() for note in notes)
    assert all(f"<li>{note}</li>" in outputs["html"].read_text() for note in notes)


def test_what_is_wrong_with_the_data_is_below_the_main_table(tmp_path: Path) -> None:
    study = made.study(["sft", "dpo"], [0])
    made.write(
        tmp_path,
        {
            "dpo/seed0/train_metrics.json": made.train(60.0, 1.0),
            "data/report.json": {
                "train": {"written": 50, "contradictions": 3},
                "test": {"written": 9, "contradictions": 0},
                "leak": {"prompts": 0, "test_pairs": 0},
            },
            "tokens/report.json": {
                "sft": {"read": 100, "response_cut": 9},
                "train": {"read": 50, "response_cut": 10},
                "test": {"read": 9, "response_cut": 0},
            },
        },
    )
    notes = captions.data_notes(tmp_path)
    assert [note.split(":")[0] for note in notes] == ["Leaks", "Contradictions", "Cut responses"]
    assert "3 of 50 pairs of train" in notes[1] and "10% of 100 responses of train" in notes[2]
    outputs = {"md": tmp_path / "main.md"}
    made.run_script("main_table", study, tmp_path, outputs)
    assert all(f"- {note}\n" in outputs["md"].read_text() for note in notes)
