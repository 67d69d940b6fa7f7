"""What a scheduled trainer shows its selectors, and what stays TRL's."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import transformers
import yaml
from transformers import HfArgumentParser

from sams.policy.policy import Policy
from sams.policy.rows import pad_rows
from sams.runtime.errors import UserError
from sams.scheduling.selectors.base import Choice, Selector, Setup, View
from sams.scheduling.selectors.table import SELECTORS
from sams.tables.pairs import by_pair, read_pairs, texts
from sams.trl import ScheduledDPOConfig
from sams.trl.__main__ import main, parser
from sams.trl.refusals import refuse
from tests.trl import small
from tests.trl.runs import Noted, run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
NEEDED: dict[str, dict[str, Any]] = {
    name: {"column": "score"} for name in ("easy_to_hard", "rho_loss", "lossdiff_irm")
}

"""Settings without which a selector cannot be built."""


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    datasets.disable_progress_bars()
    return small.pairs(24)


class Shown(Selector):
    """Notes its views, and answers with weights, labels and betas; state of each pair is in its checkpoint."""

    views: list[View] = []  # noqa: RUF012
    needs_contexts = needs_counts = True

    def __init__(self, setup: Setup, column: str) -> None:
        super().__init__(setup)
        self.columns = [column]

    def choose(self, view: View, k: int) -> Choice:
        Shown.views.append(view)
        ones = torch.ones(k - 1)
        return Choice(torch.arange(k - 1), weights=0.5 * ones, labels=0.9 * ones, beta_scales=2 * ones)


@pytest.fixture(scope="module")
def shown(data: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Noted, list[View]]:
    """A run of a selector by its path, that needs everything, over two epochs."""
    Shown.views.clear()
    trainer = run(
        tmp_path_factory.mktemp("shown"),
        data,
        selector="tests.trl.test_features:Shown",
        selector_kwargs={"column": "score"},
        record_pairs=True,
        packing="false",
        num_train_epochs=2,
        learning_rate=0.0,
    )
    return trainer, [*Shown.views]


def test_what_a_selector_is_shown(shown: tuple[Noted, list[View]], data: datasets.Dataset) -> None:
    trainer, views = shown
    assert [(view.round, view.epoch, view.n) for view in views] == [
        (round, 1 + (round > 3), 8) for round in range(1, 7)
    ]
    assert sorted(number for view in views[:3] for number in view.numbers.tolist()) == [*range(24)]
    trained: list[int] = []
    for view, rows in zip(views, trainer.rows, strict=True):
        numbers = view.numbers.tolist()
        assert view.ids == [data["id"][number] for number in numbers]
        assert view.columns["score"].tolist() == [data["score"][number] for number in numbers]
        assert view.flipped is not None and view.flipped.tolist() == [data["flipped"][n] for n in numbers]
        assert view.seen is not None and view.seen.tolist() == [view.epoch - 1] * 8
        assert view.trained is not None and view.trained.tolist() == [trained.count(n) for n in numbers]
        trained += rows
        assert view.chosen_tokens is not None and view.rejected_tokens is not None
        known = trainer.train_dataset
        assert view.chosen_tokens.tolist() == [len(known[number]["chosen_ids"]) for number in numbers]
        assert view.rejected_tokens.tolist() == [len(known[number]["rejected_ids"]) for number in numbers]
        gap = (view.chosen_logps - view.reference_chosen) - (view.rejected_logps - view.reference_rejected)
        torch.testing.assert_close(view.margins, 0.3 * gap)
        torch.testing.assert_close(view.losses, -torch.nn.functional.logsigmoid(view.margins))


def test_contexts_are_those_of_the_study(shown: tuple[Noted, list[View]]) -> None:
    """Hidden states averaged over each response, of padded rows of TRL and of the policy of a study."""
    trainer, views = shown
    rows = [trainer.train_dataset[number] for number in views[0].numbers.tolist()]
    policy = Policy(small.models()[0])
    with torch.no_grad():
        scores = policy(
            pad_rows([(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in rows]),
            with_contexts=True,
        )
    expected = torch.stack(scores.contexts.chunk(2), dim=1)
    assert views[0].contexts is not None and views[0].contexts.shape == expected.shape
    assert (views[0].contexts - expected).abs().max() < 1e-5
    torch.testing.assert_close(views[0].chosen_logps, scores.logps.chunk(2)[0])


def test_the_record_of_the_pairs(shown: tuple[Noted, list[View]]) -> None:
    trainer, views = shown
    found = read_pairs(trainer.args.output_dir)
    assert found["id"].tolist() == [name for view in views for name in view.ids]
    torch.testing.assert_close(torch.tensor(found["margin"]), torch.cat([view.margins for view in views]))
    assert found["selected"].sum() == 18
    assert found["epoch"].tolist() == [1] * 24 + [2] * 24
    pairs = by_pair([found])
    assert pairs["seen"].tolist() == [2] * 24
    said = texts(Path(trainer.args.output_dir), pairs[:1])[pairs.index[0]]
    [row] = [row for row in trainer.train_dataset if row["id"] == pairs.index[0]]
    assert said["prompt"] == [{"role": "user", "content": row["prompt"]}]
    assert (said["chosen"], said["rejected"]) == (row["chosen"], row["rejected"])


def test_the_log_and_the_card(shown: tuple[Noted, list[View]]) -> None:
    trainer, views = shown
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, view in zip(logs, views, strict=True):
        assert entry["selected/share"] == 3 / 8
        assert entry["all/loss"] == pytest.approx(view.losses.mean().item())
        assert entry["all/rewards/margins"] == pytest.approx(view.margins.mean().item())
        assert entry["rewards/margins"] == pytest.approx(2 * view.margins[:3].mean().item(), abs=1e-5)
        of_pair = [-torch.nn.functional.logsigmoid(sign * 2 * view.margins[:3]) for sign in (1, -1)]
        assert entry["loss"] == pytest.approx((0.5 * (0.9 * of_pair[0] + 0.1 * of_pair[1])).mean().item())
    trainer.create_model_card("small")
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "| selector | `tests.trl.test_features:Shown` |" in card
    assert "| pairs of a step | 4 trained on, of 8 candidates |" in card
    assert "| so far | 18 pairs trained on, of 48 seen |" in card
    assert card.index("### Sample scheduling") < card.index("### Framework versions")


@pytest.mark.parametrize("recorded", ["random", "all"])
def test_without_scores_the_pairs_trained_on_are_recorded(
    tmp_path: Path, data: datasets.Dataset, recorded: str
) -> None:
    trainer = run(tmp_path, data, selector=recorded, record_pairs=True, packing="false", max_steps=2)
    found = read_pairs(tmp_path)
    assert found["selected"].all() and len(found) == (8 if recorded == "random" else 16)
    gaps = [found[f"{side}_logp"] - found[f"reference_{side}_logp"] for side in ("chosen", "rejected")]
    assert (0.3 * (gaps[0] - gaps[1]) - found["margin"]).abs().max() < 1e-5
    if recorded == "random":
        assert found["id"].tolist() == [data["id"][row] for rows in trainer.rows for row in rows]


@pytest.fixture(scope="module")
def several(data: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Noted:
    """A trainer that trains several times."""
    made: Noted = small.trainer(
        tmp_path_factory.mktemp("several"), data, kind=Noted, selector="random", max_steps=2, packing="false"
    )
    return made


@pytest.mark.parametrize("name", [name for name, entry in SELECTORS.items() if not entry.crossfitted])
def test_every_selector_runs(several: Noted, data: datasets.Dataset, name: str) -> None:
    several.args.selector, several.args.selector_kwargs = name, NEEDED.get(name)
    several._entry = refuse(several.args, data)
    several.rows.clear()
    several.train()
    assert several.state.global_step == 2
    if not SELECTORS[name].full_batch:
        assert [len(rows) for rows in several.rows] == [4, 4]


def test_a_selector_by_entry_point(
    tmp_path: Path, data: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "own-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sams.selectors]\nown = tests.trl.distributed:Differs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [len(rows) for rows in run(tmp_path / "run", data, selector="own", max_steps=2).rows] == [4, 4]


def test_rounds_on_all_candidates(tmp_path: Path, data: datasets.Dataset) -> None:
    """The first ones, every third one, and those after the end, which are not scored."""
    trainer = run(
        tmp_path,
        data,
        selector="top_loss",
        selection_ratio=0.25,
        selection_warmup=1,
        selection_full_every=3,
        selection_end=4,
        num_train_epochs=2,
    )
    assert [len(rows) for rows in trainer.rows] == [8, 2, 8, 2]
    shares = ["selected/share" in entry for entry in trainer.state.log_history if "loss" in entry]
    assert shares == [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("selector", "cached", "expected"),
    [
        ("random", False, (4, 4)),
        ("top_margin", False, (12, 8)),
        ("top_margin", True, (12, 0)),
        ("all", False, (8, 8)),
    ],
)
def test_no_pair_is_computed_twice(
    tmp_path: Path, data: datasets.Dataset, selector: str, cached: bool, expected: tuple[int, int]
) -> None:
    """Pairs of a step that go through the policy and the reference: n once for the scores, K once to train."""

    trainer = small.trainer(
        tmp_path, data, selector=selector, packing="false", max_steps=1, precompute_ref_log_probs=cached
    )
    counts = []
    for model in (trainer.model, trainer.ref_model):
        count = [0]

        def counted(_: Any, inputs: Any, named: Any, count: list[int] = count) -> None:
            count[0] += len(named["input_ids"]) // 2

        model.register_forward_pre_hook(counted, with_kwargs=True)
        counts.append(count)
    trainer.train()
    assert (counts[0][0], counts[1][0]) == expected


def test_evaluation_is_that_of_trl(tmp_path: Path, data: datasets.Dataset) -> None:
    def figures(**settings: Any) -> tuple[dict[str, float], Any, dict[str, float]]:
        evaluated: dict[str, Any] = {
            "eval_dataset": data.select(range(10)),
            "compute_metrics": lambda found: {"rows": float(len(found.label_ids))},
        }
        trainer = small.trainer(tmp_path, data, arguments=evaluated, **settings)
        found = trainer.evaluate()
        predicted = trainer.predict(trainer.eval_dataset)
        return found, predicted.predictions, predicted.metrics

    theirs, predictions, metrics = figures()
    ours, own_predictions, own_metrics = figures(selector="top_margin")
    timed = re.compile("runtime|per_second|preparation")
    assert {key: value for key, value in ours.items() if not timed.search(key)} == {
        key: value for key, value in theirs.items() if not timed.search(key)
    }
    assert (own_predictions == predictions).all()
    assert own_metrics["test_rows"] == metrics["test_rows"]


def test_what_is_pushed_to_the_hub(shown: tuple[Noted, list[View]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The upload is TRL's, and passes over the folder of the run."""
    import fnmatch

    trainer, _ = shown
    pushed: dict[str, Any] = {}
    hub = SimpleNamespace(upload_folder=lambda **named: pushed.update(named))
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    trainer.hub_model_id = "someone/small"
    trainer.push_to_hub()
    files = [
        str(file.relative_to(pushed["folder_path"]))
        for file in Path(pushed["folder_path"]).rglob("*")
        if file.is_file()
    ]
    kept = {
        name for name in files if not any(fnmatch.fnmatch(name, form) for form in pushed["ignore_patterns"])
    }
    assert {"model.safetensors", "README.md"} <= kept
    assert not [name for name in kept if name.startswith("_")]


YAML = {
    "selector": "sams",
    "selection_ratio": 0.25,
    "selector_kwargs": {},
    "scheduler_kwargs": {"gamma": 0.25},
    "packing": False,
    "beta": 0.2,
    "loss_type": ["ipo"],
}


def test_arguments_and_yaml_are_parsed(tmp_path: Path) -> None:
    base = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"]
    kind: Any = ScheduledDPOConfig
    [given] = HfArgumentParser(kind).parse_args_into_dataclasses(
        [
            *base,
            *("--selector", "top_loss", "--selection_ratio", "0.25", "--selector_kwargs", '{"a": 1}'),
            *("--selection_end", "9", "--packing", "true", "--record_pairs"),
        ]
    )
    assert (given.selector, given.selection_ratio, given.selector_settings) == ("top_loss", 0.25, {"a": 1})
    assert (given.selection_end, given.packing, given.record_pairs) == (9, "true", True)
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(YAML))
    _, training, _, _ = parser().parse_args_and_config(
        ["--config", str(file), *base, "--selection_ratio", "0.5"]
    )
    assert isinstance(training, ScheduledDPOConfig)
    assert (training.selector, training.selection_ratio, training.packing) == ("sams", 0.5, "false")
    assert training.scheduler_settings == {"preset": "small", "gamma": 0.25}
    assert (training.beta, training.loss_type) == (0.2, ["ipo"])
    again = ScheduledDPOConfig(
        **{key: training.to_dict()[key] for key in [*YAML, "output_dir", "use_cpu", "bf16"]}
    )
    assert again.scheduler_settings == training.scheduler_settings


def test_the_command_trains(
    tmp_path: Path,
    data: datasets.Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The script of TRL, with a YAML file, a folder of data and a folder of a model."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    small.models()[0].save_pretrained(tmp_path / "model")
    small.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    data.to_json(tmp_path / "data/train.jsonl")
    settings = {
        **{key: value for key, value in small.config(tmp_path).to_dict().items() if key in COMMON},
        "model_name_or_path": str(tmp_path / "model"),
        "dtype": "float32",
        "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "selector": "top_margin",
    }
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    assert main(["dpo", "--config", str(file)]) == 0
    state = json.loads((tmp_path / "out/checkpoint-2/trainer_state.json").read_text())
    assert "all/rewards/margins" in state["log_history"][0]
    nowhere = ["--dataset_name", str(tmp_path / "nowhere")]  # refused before the data is read
    assert main(["dpo", "--config", str(file), "--selector", "top_margn", *nowhere]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: no selector is named 'top_margn'") and "did you mean top_margin?" in error
    file.write_text(yaml.safe_dump(settings | {"selection_ration": 0.5}))
    assert main(["dpo", "--config", str(file)]) == 2
    assert "selection_ration" in capsys.readouterr().err.strip().splitlines()[-1]


COMMON = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "use_cpu",
    "bf16",
    "report_to",
    "logging_steps",
)

REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("no selector is named 'sam'", {"selector": "sam"}, {}),
    ("selector random: no setting 'k'", {"selector": "random", "selector_kwargs": {"k": 1}}, {}),
    ("selective chooses its pairs in a stage", {"selector": "selective"}, {}),
    ("selector all takes all pairs", {"selector": "all", "selection_ratio": 0.5}, {}),
    ("selection_ratio: 1.5 is given", {"selection_ratio": 1.5}, {}),
    ("packing: 'yes' is given", {"packing": "yes"}, {}),
    ("0.01 of 8 candidates are no pair", {"selector": "random", "selection_ratio": 0.01}, {}),
    ("`sft` is not a loss of a pair", {"selector": "sams", "loss_type": ["sigmoid", "sft"]}, {}),
    ("`aot_unpaired` is not a loss of a pair", {"selector": "top_loss", "loss_type": ["aot_unpaired"]}, {}),
    ("scheduler_kwargs: `gama`", {"selector": "sams", "scheduler_kwargs": {"gama": 1}}, {}),
    ("scheduler_path", {"selector": "sams", "scheduler_path": "/no/such/file"}, {}),
    ("an iterable data set", {"selector": "random", "max_steps": 2}, {"train_dataset": "iterable"}),
    ("pairs with images", {"selector": "random"}, {"train_dataset": "images"}),
    ("DPOConfig has no selector", {}, {"args": "DPOConfig"}),
    (
        "the data has no column `rating`",
        {"selector": "tests.trl.test_features:Shown", "selector_kwargs": {"column": "rating"}},
        {},
    ),
    ("is not a mean over pairs", {"selector": "tests.trl.distributed:Five", "loss_type": ["aot"]}, {}),
]


@pytest.mark.parametrize(
    ("message", "settings", "arguments"), REFUSALS, ids=[message for message, _, _ in REFUSALS]
)
def test_refusals_are_one_line_before_the_first_step(
    tmp_path: Path, data: datasets.Dataset, message: str, settings: dict[str, Any], arguments: dict[str, Any]
) -> None:
    given: dict[str, Any] = {
        "iterable": data.to_iterable_dataset(),
        "images": data.add_column("image", [None] * len(data)),
        "DPOConfig": small.config(tmp_path),
    }
    with pytest.raises(UserError) as refused:
        from sams.trl import ScheduledDPOTrainer

        trainer = small.trainer(
            tmp_path,
            data,
            kind=ScheduledDPOTrainer,
            arguments={key: given[name] for key, name in arguments.items()},
            **settings,
        )
        before = small.weights(trainer.model)
        try:
            trainer.train()
        finally:
            assert torch.equal(small.weights(trainer.model), before)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("installed", "refused"), [("1.15.2", True), ("1.16.3", False), ("1.17.0", True), ("2.0.0", True)]
)
def test_other_versions_of_trl_are_refused(
    installed: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sams.trl import refusals

    monkeypatch.setattr(refusals, "version", lambda _: installed)
    expected = pytest.raises(UserError, match=f"trl: version {installed} is installed")
    with expected if refused else nullcontext():
        refusals.refuse_version()
