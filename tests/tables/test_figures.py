"""Figures from metric logs made by hand."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sams.tables import figures
from sams.tables.noise import label_noise, noise
from sams.tables.panels import save, save_as
from sams.tables.results import read_cells
from tests.tables.made import run_script, study, train, write

NAMES = ["loss", "rewards/margins", "rewards/accuracies", "logps/chosen"]


def log(slope: float, *, whole_batch: bool = False, flips: bool = False) -> list[dict[str, Any]]:
    """Forty lines whose metrics rise by `slope` a step; every tenth is an evaluation."""
    lines = []
    for step in range(1, 41):
        line: dict[str, Any] = {"step": step, "pairs_seen": 64 * step}
        line |= dict.fromkeys(NAMES, slope * step)
        if whole_batch:
            line |= dict.fromkeys([f"all/{name}" for name in NAMES], -slope * step)
        if flips:
            line |= {"selected/share": 0.5, "selected/flipped_share": 0.1, "all/flipped_share": 0.3}
            line |= {"selected/tokens": 80.0, "all/tokens": 100.0}
            if step > 1:  # the reward of a round is known in the next
                line |= {"scheduler/rank_correlation": 0.5, "scheduler/estimate_error": 0.25}
        if step in (1, 20, 40):
            # Three pairs: the hardest at first is the easiest at last.
            line |= {"followed/00": 1.0, "followed/01": 2.0, "followed/02": 3.0 if step < 40 else 0.5}
        if step % 10 == 0:
            line |= dict.fromkeys([f"eval/{name}" for name in NAMES], 7.0)
        lines.append(line)
    return lines


@pytest.fixture
def setting(tmp_path: Path) -> Path:
    files = {
        "sft/seed0/train.jsonl": [{"step": 1, "pairs_seen": 64, "loss": 2.0}],
        "dpo/seed0/train.jsonl": log(1.0),
        "dpo/seed1/train.jsonl": log(3.0),
        "dpo-sams/seed0/train.jsonl": log(1.0, whole_batch=True, flips=True),
        "sft/seed0/train_metrics.json": {"train_seconds": 100.0, "peak_memory_mb": 100.0},
        "dpo/seed0/train_metrics.json": train(60.0, 1.0, 10.0),
        "dpo/seed1/train_metrics.json": train(60.0, 1.0, 30.0),
    }
    return write(tmp_path / "R", files)


def curves(axis: Any) -> dict[tuple[str, bool], Any]:
    """Lines of a plot by method and whether they are markers."""
    named = {(line.get_label(), line.get_linestyle() == "None"): line for line in axis.lines}
    return {key: line for key, line in named.items() if not key[0].startswith("_")}


def test_learning_curves_show_what_was_logged(setting: Path) -> None:
    logs = figures.read_logs(setting, ["sft", "dpo", "dpo-sams", "kto"], [0, 1])
    assert {method: len(frames) for method, frames in logs.items()} == {"dpo": 2, "dpo-sams": 1}
    figure = figures.learning_curves(logs)
    assert len(figure.axes) == 4
    for axis in figure.axes:
        assert axis.get_xlabel() == "Preference pairs seen"
        found = curves(axis)
        assert set(found) == {(method, marked) for method in logs for marked in (False, True)}
        of_dpo = found["dpo", False]
        # Smoothed over two of forty steps: (1 + 2) / 2 for slope 1, and twice that for the mean of 1 and 3.
        assert of_dpo.get_xydata()[:2].tolist() == [[64, 2.0], [128, 3.0]]
        assert found["dpo", True].get_xydata().tolist() == [[640 * n, 7.0] for n in (1, 2, 3, 4)]
        assert (found["dpo-sams", False].get_ydata() < 0).all(), "the whole batch, not the chosen half"
    looks = [
        (line.get_color(), line.get_linestyle())
        for line in figure.axes[0].lines
        if line.get_linestyle() != "None"
    ]
    assert len({colour for colour, _ in looks}) == len({style for _, style in looks}) == 2, "readable in grey"
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dpo", "dpo-sams"]


def test_selection_shows_flips_margins_and_what_the_scheduler_knew(setting: Path) -> None:
    figure = figures.selection(figures.read_logs(setting, ["dpo", "dpo-sams"], [0, 1]))
    flips, kept, margins, lengths, order, error = found = [curves(axis) for axis in figure.axes]
    assert all(set(plot) == {("dpo-sams", False)} for plot in found)
    assert order["dpo-sams", False].get_xydata()[0].tolist() == [128, 0.5]
    assert error["dpo-sams", False].get_ydata().tolist() == pytest.approx([0.25] * 39)
    assert flips["dpo-sams", False].get_ydata().tolist() == pytest.approx([0.1] * 40)
    # Half of the pairs hold a third of the flips they would by chance: a sixth of the flipped pairs is kept.
    assert kept["dpo-sams", False].get_ydata().tolist() == pytest.approx([1 / 6 - 1 / 2] * 40)
    assert lengths["dpo-sams", False].get_ydata().tolist() == pytest.approx([-20.0] * 40)
    assert margins["dpo-sams", False].get_ydata()[-1] == pytest.approx(79.0), "40 + 40 and 39 + 39, smoothed"
    assert [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_label().startswith("_")] == [
        pytest.approx(0.3)
    ]


def test_a_batch_without_flips_keeps_none_of_them() -> None:
    frame = pd.DataFrame(log(1.0, flips=True))
    frame.loc[4, ["selected/flipped_share", "all/flipped_share"]] = 0.0
    plot = curves(figures.selection({"dpo-sams": [frame]}).axes[1])["dpo-sams", False]
    assert len(plot.get_ydata()) == 39 and plot.get_ydata().tolist() == pytest.approx([-1 / 3] * 39)


def test_difficulty_follows_the_pairs_of_the_first_seed(setting: Path) -> None:
    logs = figures.read_logs(setting, ["dpo", "dpo-sams"], [0, 1])
    of_dpo, of_sams = figures.difficulty(logs).axes
    assert [line.get_ydata().tolist() for line in of_dpo.lines] == [[1.0] * 3, [2.0] * 3, [3.0, 3.0, 0.5]]
    assert of_dpo.lines[0].get_xdata().tolist() == [64, 64 * 20, 64 * 40]
    lightness = [sum(line.get_color()[:3]) for line in of_dpo.lines]
    assert lightness == sorted(lightness), "from easy to hard at first, dark to light"
    # Ranks 1 2 3 become 2 3 1: Spearman's correlation is 1 - 6 (1 + 1 + 4) / 24.
    assert of_dpo.get_title(loc="left") == "dpo: rank correlation of first and last -0.50"
    assert of_sams.get_title(loc="left").startswith("dpo-sams")


def recipe(share: float | None = None, **changes: Any) -> dict[str, Any]:
    training = {"beta": 0.1, **changes} | ({} if share is None else {"flipped_share": share, "flip_seed": 0})
    return {"recipe": {"training": training, "scheduler": None}}


def test_noise_of_the_data_is_that_of_all_methods(setting: Path) -> None:
    files = {
        "dpo-sams/seed0/train_metrics.json": train(55.0, 1.0),
        "data/report.json": {"train": {"written": 1000, "flipped": 300}},
        "dpo/seed0/recipe.json": recipe(),
        "dpo-sams/seed0/recipe.json": recipe(selector="sams"),
    }
    write(setting, files)
    logs = figures.read_logs(setting, ["dpo", "dpo-sams"], [0, 1])
    of = label_noise(setting, ["dpo", "dpo-sams", "kto"], [0, 1])
    assert {method: noisy.share for method, noisy in of.items()} == {"dpo": 0.3, "dpo-sams": 0.3}
    curve, end = noise(logs, read_cells(setting), of).axes[:2]
    assert curve.get_title(loc="left") == "Accuracy while training on 30% flipped labels"
    assert curve.get_ylabel() == "test accuracy (%)"
    assert curves(curve)["dpo", False].get_xydata().tolist() == [[640 * n, 700.0] for n in (1, 2, 3, 4)]
    points = [container.lines[0].get_xydata()[0].tolist() for container in end.containers]
    assert points == [[pytest.approx(0.3), 60.0], [pytest.approx(0.1), 55.0]], "dpo trains on all pairs"


def test_methods_that_differ_in_noise_alone_are_one_line(setting: Path) -> None:
    names = {"dpo": 0.0, "dpo-flip20": 0.2, "dpo-flip40": 0.4, "ipo-flip20": 0.2}
    for method, share in names.items():
        own = recipe(share, loss=method.partition("-")[0])
        files = {
            "recipe.json": own,
            "train_metrics.json": train(70 - 50 * share, 1.0),
            "train.jsonl": log(1.0),
        }
        write(setting / method / "seed0", files)
    logs = figures.read_logs(setting, list(names), [0])
    of = label_noise(setting, list(names), [0])
    cells = {cell: values for cell, values in read_cells(setting).items() if cell.seed == 0}
    by_share, at20, at40, trained_on = noise(logs, cells, of).axes
    [line] = by_share.containers
    assert line.get_label() == "dpo"
    assert line.lines[0].get_xydata().tolist() == [[0.0, 70.0], [0.2, 60.0], [0.4, 50.0]]
    # Under the name of the one without noise; another loss is a method of its own.
    assert [{name for name, _ in curves(axis)} for axis in (at20, at40)] == [{"dpo", "ipo-flip20"}, {"dpo"}]
    assert {container.get_label(): len(container.lines[0].get_xdata()) for container in trained_on.containers} == {
        "dpo": 2, "ipo-flip20": 1,
    }  # fmt: skip


def test_labels_that_are_flipped_twice_are_as_they_were(setting: Path) -> None:
    files = {
        "data/report.json": {"train": {"written": 10, "flipped": 5}},
        "dpo/seed0/recipe.json": recipe(0.2),
    }
    assert label_noise(write(setting, files), ["dpo"], [0])["dpo"].share == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({}, "learning_curves selection difficulty noise cost"),
        ({"data": {"world": {"flipped_share": 0.0}}}, "learning_curves selection difficulty cost"),
        ({"methods": ["sft", "dpo"], "preference": {"followed_pairs": 0}}, "learning_curves noise cost"),
        ({"methods": ["sft"]}, "cost"),
        ({"methods": ["sft"], "sft": None, "model": {"path": "m", "tokenizer": None}}, ""),
    ],
)
def test_figures_without_content_are_not_made(changes: dict[str, Any], drawn: str) -> None:
    settings = {"data": {"world": {}}, "methods": ["sft", "dpo", "dpo-sams"]} | changes
    settings["data"] |= {"max_length": 64, "max_prompt_length": 32}
    methods = settings.pop("methods")
    own = {"dpo": {}, "dpo-sams": {"selector": "sams", "ratio": 0.5}}
    kept = {method: own[method] for method in methods if method != "sft"}
    assert figures.figures_of(study(methods, [0], method_settings=kept, **settings)) == drawn.split()


def test_losses_of_different_families_share_a_logarithmic_axis() -> None:
    frame = pd.DataFrame(log(1.0)).drop(columns="eval/loss")
    of = {name: [frame.assign(loss=level)] for name, level in (("dpo", 0.7), ("ipo", 25.0))}
    scales = [axis.get_yscale() for axis in figures.learning_curves(of).axes]
    assert scales == ["log", "linear", "linear", "linear"]
    assert figures.learning_curves({"dpo": of["dpo"]}).axes[0].get_yscale() == "linear"


def test_evaluations_on_validation_pairs_are_named(setting: Path) -> None:
    logs = figures.read_logs(setting, ["dpo"], [0])
    [legend] = figures.learning_curves(logs, "validation").legends
    assert legend.get_title().get_text().endswith("Markers: validation pairs.")
    write(setting, {"dpo/seed0/recipe.json": recipe(0.2)})
    of = label_noise(setting, ["dpo"], [0])
    [axis] = noise(logs, {}, of, "validation").axes
    assert axis.get_ylabel() == "validation accuracy (%)", "and no plot of one method's final accuracy"


def test_plots_without_content_are_not_drawn(setting: Path) -> None:
    logs = figures.read_logs(setting, ["dpo-sams"], [0])
    logs = {
        "dpo-sams": [
            logs["dpo-sams"][0].drop(columns=["selected/flipped_share", "loss", "all/loss", "eval/loss"])
        ]
    }
    assert "Loss" not in [axis.get_title(loc="left") for axis in figures.learning_curves(logs).axes]
    shown = figures.selection(logs).axes
    assert len(shown) == 4 and all(axis.lines for axis in shown)


def test_cost_shows_means_over_seeds(setting: Path) -> None:
    prepared = {**train(60.0, 1.0, 10.0), "preparation_seconds": 40.0}
    write(setting, {"dpo-sams/seed0/train_metrics.json": prepared})
    seconds, memory = figures.cost(read_cells(setting), ["sft", "dpo", "dpo-sams"], [0, 1]).axes
    assert [bar.get_width() for bar in seconds.patches] == [100.0, 20.0, 10.0, 40.0], "40 s of preparation"
    assert [bar.get_x() for bar in seconds.patches] == [0.0, 0.0, 0.0, 10.0]
    assert "10 + 40 prepared" in [text.get_text() for text in seconds.texts]
    assert [bar.get_width() for bar in memory.patches] == [100.0, 512.0, 512.0]
    assert [label.get_text() for label in seconds.get_yticklabels()] == ["sft", "dpo", "dpo-sams"]


def test_figures_without_logs_are_still_files(tmp_path: Path) -> None:
    drawn = [figures.selection({}), figures.learning_curves({}), figures.difficulty({})]
    for figure in (*drawn, noise({}, {}, {}), figures.cost({}, ["dpo"], [0])):
        save_as(figure, tmp_path / "empty.png")
        assert (tmp_path / "empty.png").stat().st_size > 1000


@pytest.mark.slow
def test_script_writes_valid_pictures(setting: Path, tmp_path: Path) -> None:
    outputs = {"cost": tmp_path / "first" / "cost.svg"}
    own = {"dpo": {}, "dpo-sams": {"selector": "sams", "ratio": 0.5}}
    run_script("figures", study(["sft", "dpo", "dpo-sams"], [0, 1], method_settings=own), setting, outputs)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    stems = ("cost", "difficulty", "learning_curves", "noise", "selection")
    assert names == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    logs = figures.read_logs(setting, ["dpo", "dpo-sams"], [0, 1])
    save(figures.learning_curves(logs), tmp_path / "second" / "learning_curves")
    for again in (tmp_path / "second").iterdir():
        assert (tmp_path / "first" / again.name).read_bytes() == again.read_bytes(), (
            "equal bytes from equal logs"
        )
    for name in names:
        first = (tmp_path / "first" / name).read_bytes()
        if name.endswith("png"):
            assert first.startswith(b"\x89PNG\r\n") and first.rstrip().endswith(b"IEND\xaeB`\x82")
        else:
            assert ET.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"


def test_twelve_methods_stay_apart() -> None:
    """As many as in the paper's first table: no two share colour and line."""
    logs = {str(n): [pd.DataFrame(log(1.0))] for n in range(12)}
    lines = [line for line in figures.learning_curves(logs).axes[0].lines if line.get_linestyle() != "None"]
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == 12
