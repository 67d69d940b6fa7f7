"""The settings of a study, validated. `sams.study.files` reads them; recipes derive from them."""

import copy
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from sams.runtime.errors import nearest
from sams.runtime.problems import first_problem
from sams.scheduling.selection import selected
from sams.scheduling.selectors.table import SELECTORS
from sams.study.settings import (
    Benchmarks,
    Count,
    Data,
    Export,
    Launch,
    Method,
    Model,
    Name,
    OnPolicy,
    Paper,
    Preference,
    PreferenceKeys,
    Pretrain,
    Samples,
    Scheduler,
    Settings,
    Sft,
    Training,
)
from sams.study.settings.scheduling import NETWORK_KEYS, PRESETS
from sams.study.settings.tuning import Chosen, Grid

BASE_METHOD = "sft"

# Folders of results/<study> that are not settings, and of a setting that are not methods.
STUDY_FOLDERS = ("benchmarks", "checkpoints", "logs", "tables")
SETTING_FOLDERS = ("data", "difficulty", "questions", "reference", "scheduler", "tokens")


class Tracking(Settings):
    """MLflow: the server at MLFLOW_TRACKING_URI, or sqlite in the results folder."""

    enabled: bool = Field(True, description="Copy metrics to MLflow; the JSONL files are always written.")


class Study(Settings):
    """A study: models, data, methods, benchmarks and how its jobs run."""

    extends: str | None = Field(
        None,
        description="File of a study that this one extends, relative to this file or to the source tree.",
    )
    rehearse: bool = Field(
        False, description="Rehearse the study: a tiny fresh model on synthetic data (docs/studies.md)."
    )
    study: Name = Field(description="Name of the study: results go to `results/<study>`.")
    setting: Name = Field(
        description="Short name of model and data: results go to `results/<study>/<setting>`."
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0], min_length=1, description="Seeds; each stage runs once per seed."
    )
    methods: list[Name] = Field(
        min_length=1,
        description="Methods in the order of the main table. All others start from `sft`, which is made in any case.",
    )
    paper: Paper | None = Field(None, description="Table of the paper that the study reproduces; null: none.")
    model: Model = Field(description="The policy.")
    data: Data = Field(description="Examples and preference pairs.")
    sft: Sft | None = Field(None, description="Supervised fine-tuning; null starts from the model as it is.")
    scheduler: Scheduler = Field(Scheduler(), description="The scheduler of selectors `sams` and `reward`.")
    pretrain: Pretrain | None = Field(
        None, description="Scheduler pretraining; null starts with fresh networks."
    )
    preference: PreferenceKeys = Field(description="Preference optimisation: keys that the methods share.")
    method_settings: dict[Name, Method] = Field(
        {}, description="For each method, the keys that differ from `preference`, `scheduler` and `model`."
    )
    grids: dict[Name, Grid] = Field(
        {}, description="Tuning grids by method; `sams grid` prints them as an overlay."
    )
    tuning_budget: Count | None = Field(
        None, description="Number of points tried of each grid, equal for all methods; null: all points."
    )
    chosen: Chosen | None = Field(
        None, description="Methods chosen from several runs by validation pairs; null: none."
    )
    on_policy: OnPolicy | None = Field(
        None,
        description="Pairs of a model's own answers, for target `on_policy`; null: none.",
    )
    samples: Samples | None = Field(
        Samples(),
        description="Answers to test prompts, side by side in the report; null: none.",
    )
    benchmarks: Benchmarks = Field(Benchmarks(), description="Benchmarks and judge.")
    export: Export = Field(Export(), description="How models are exported.")
    launch: Launch = Field(Launch(), description="How training jobs are started.")
    tracking: Tracking = Field(Tracking(), description="MLflow.")

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        for key, values in (("seeds", self.seeds), ("methods", self.methods)):
            if len(set(values)) != len(values):
                raise ValueError(f"`{key}` has a duplicate: {values}")
        if self.setting in STUDY_FOLDERS:
            raise ValueError(f"`setting` {self.setting} is the name of another results folder: rename it")
        for method in self.methods:
            if method in SETTING_FOLDERS:
                raise ValueError(f"method '{method}' has the name of another results folder: rename it")
        for method in self.paper.rows if self.paper else ():
            if method not in (*self.methods, *self.method_settings):
                raise ValueError(f"`paper.rows` names '{method}', which is not among the methods")
        for method in self.preference_methods:
            if method not in self.method_settings:
                hint = nearest(method, [BASE_METHOD, *self.method_settings])
                raise ValueError(f"method '{method}' has no entry in `method_settings`{hint}")
            self.preference_of(method)
            self.scheduler_of(method)
        for method in self.finished_methods:
            if method == BASE_METHOD:
                raise ValueError("`method_settings.sft.model`: `sft` is the study's own model, set `model`")
            self.model_of(method)
        self._check_grids()
        self._check_chosen()
        if self.benchmarks.own_prompts and BASE_METHOD not in self.started_methods:
            raise ValueError(
                "`benchmarks.own_prompts` compares with the answers of the start model: add `sft` to `methods`"
            )
        judged = self.benchmarks.judged
        if self.data.world is None and self.benchmarks.judge.kind == "local" and judged:
            raise ValueError(
                "`benchmarks.judge.kind: local` can only grade the synthetic world: "
                f"set it to openai, or {' and '.join(judged)} to null"
            )
        if self.pretrains and self.pretrain is not None and self.pretrain.policy == "moving":
            if self.sft is None:
                raise ValueError("`pretrain.policy: moving` is part of SFT: set `sft`, or `policy: frozen`")
            selected(self.sft.batch_size, self.pretrain.ratio)
        self._check_batches()
        self._check_4bit()
        self._check_columns()
        return self

    @property
    def uses_4bit(self) -> bool:
        """Whether a stage holds frozen weights in 4 bits."""
        return any(map(_in_4bit, self.trainings.values()))

    @property
    def trainings(self) -> dict[str, Sft | Preference]:
        """Settings of SFT, if the study has it, and of each method that is trained on preferences."""
        start = {BASE_METHOD: self.sft} if self.sft and BASE_METHOD in self.trained_methods else {}
        return start | {method: self.preference_of(method) for method in self.preference_methods}

    def _check_4bit(self) -> None:
        """Check that 4-bit weights are not to be sharded, and that all methods share a reference."""
        trainings = self.trainings
        for name, training in trainings.items():
            if _in_4bit(training) and self.launch.strategy == "fsdp2":
                raise ValueError(
                    f"`lora.load_in_4bit` of {name}: 4-bit weights cannot be sharded, set `launch.strategy: ddp`"
                )
        preferences = [training for training in trainings.values() if isinstance(training, Preference)]
        if len({_in_4bit(training) for training in preferences if training.needs_reference}) > 1:
            raise ValueError(
                "`lora.load_in_4bit`: methods share their reference log-probs, set it for all of them or for none"
            )

    def _check_columns(self) -> None:
        """Check that the data keeps the columns that this package's selectors read."""
        for name, training in self.trainings.items():
            if isinstance(training, Preference) and training.selector in SELECTORS:
                column = training.selector_settings.get("column")
                if column not in (None, *self.data.keep_columns):
                    key = f"method_settings.{name}.selector_settings.column"
                    raise ValueError(f"`{key}` is '{column}': add it to `data.keep_columns`")

    def _check_grids(self) -> None:
        """Check that every value of a grid is valid for its method."""
        for method, grid in self.grids.items():
            if method not in self.method_settings:
                raise ValueError(f"`grids.{method}`: no such method in `method_settings`")
            if self.method_settings[method].model is not None:
                continue  # A finished model, in a study that extends one in which the method is trained.
            for key, axis in grid.axes.items():
                for value in axis.values:
                    self._check_point(method, {key: value}, f"grids.{method}.axes.{key}")
            points = math.prod(len(axis.values) for axis in grid.axes.values())
            if self.tuning_budget is not None and points < self.tuning_budget:
                raise ValueError(
                    f"`grids.{method}` has {points} points, fewer than `tuning_budget` {self.tuning_budget}"
                )

    def _check_chosen(self) -> None:
        """Check that all runs to choose from are trained, and evaluated equally often on validation pairs."""
        world = self.data.world
        validated = [method for method in self.preference_methods if self.preference_of(method).validated]
        if validated and not (world and world.validation_pairs):
            raise ValueError(f"method '{validated[0]}' is `validated`: set `data.world.validation_pairs`")
        runs = self.chosen_runs
        for run in runs:
            if run not in validated:
                raise ValueError(
                    f"`chosen.runs` names '{run}', which is not a `validated` method: add it to `methods`, or set "
                    "`chosen: null`"
                )
        if len({(own.evaluations, own.epochs) for own in map(self.preference_of, runs)}) > 1:
            raise ValueError(
                "`chosen.runs` need the same `epochs` and `evaluations`, or the choice is unfair"
            )

    def _check_point(self, method: str, point: dict[str, float], where: str) -> None:
        _part(Preference, with_point(self._keys_of(method), point), where)

    def _check_batches(self) -> None:
        """Check that every global batch is divisible by the number of processes, unless that is `auto`."""
        each, nodes = self.launch.nproc_per_node, self.launch.nodes
        if isinstance(each, int) and (undivided := self.undivided(nodes * each)):
            raise ValueError(
                f"`{undivided[0]}` {undivided[1]} is not divisible by "
                + (f"`launch.nodes` {nodes} times " if nodes > 1 else "")
                + f"`launch.nproc_per_node` {each}"
            )

    def with_methods(self, *methods: str) -> "Study":
        """Return the study with these methods only, without what it says of others."""
        update = {
            "methods": [method for method in self.methods if method in methods],
            "method_settings": {
                method: own for method, own in self.method_settings.items() if method in methods
            },
            "grids": {},
            "chosen": None,
            "paper": None,
        }
        return self.model_copy(update=update)

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Global batch of every training stage, by config key."""
        sizes = {
            "sft.batch_size"
            if name == BASE_METHOD
            else f"method_settings.{name}.batch_size": training.batch_size
            for name, training in self.trainings.items()
        }
        if self.pretrains and self.pretrain is not None and self.pretrain.policy == "frozen":
            sizes["pretrain.batch_size"] = self.pretrain.batch_size
        return sizes

    def undivided(self, processes: int) -> tuple[str, int] | None:
        """Return key and size of the first global batch that is not divisible by the number of processes."""
        return next(((key, size) for key, size in self.batch_sizes.items() if size % processes), None)

    def _keys_of(self, method: str) -> dict[str, Any]:
        """Return the keys of `Preference` for a method: the shared ones, overlaid with the method's own."""
        own = self.method_settings[method].model_dump(include=set(Preference.model_fields))
        return {**self.preference.model_dump(), **own}

    @property
    def preference_methods(self) -> list[str]:
        """Methods trained on preferences: all but `sft` and finished models."""
        return [method for method in self.methods if method not in (BASE_METHOD, *self.finished_methods)]

    @property
    def finished_methods(self) -> list[str]:
        """Methods that are finished models, which are scored and not trained."""
        return [
            method
            for method in self.methods
            if (own := self.method_settings.get(method)) and own.model is not None
        ]

    @property
    def started_methods(self) -> list[str]:
        """The methods, and `sft` where others start from it, whether the tables show it or not."""
        start = [BASE_METHOD] if self.preference_methods and BASE_METHOD not in self.methods else []
        return [*start, *self.methods]

    @property
    def trained_methods(self) -> list[str]:
        """Methods with a training job: no finished models, and no `sft` in a study without SFT."""
        start = [BASE_METHOD] if self.sft is not None and BASE_METHOD in self.started_methods else []
        return [*start, *self.preference_methods]

    @property
    def chosen_runs(self) -> list[str]:
        """Runs that methods are chosen from."""
        return [run for runs in self.chosen.runs.values() for run in runs] if self.chosen else []

    @property
    def exported_methods(self) -> list[str]:
        """Methods whose models are exported as Hugging Face folders: all but runs to choose from."""
        return [method for method in self.methods if method not in self.chosen_runs]

    @property
    def sampled_methods(self) -> list[str]:
        """The start model and the methods whose answers the report shows: all but runs to choose from."""
        return [method for method in self.started_methods if method not in self.chosen_runs]

    @property
    def selective_methods(self) -> list[str]:
        """Methods that train on the easiest pairs by cross-fitted losses."""
        return [
            method for method in self.preference_methods if self.preference_of(method).preselected is not None
        ]

    def scheduler_is_pretrained(self, method: str) -> bool:
        """Return whether a method starts from the pretrained scheduler.

        Methods with `fresh_scheduler`, or with networks of other sizes than those of the study, do not.
        """
        if (
            self.pretrain is None
            or method not in self.preference_methods
            or not self.preference_of(method).selector_entry.trains_scheduler
            or self.method_settings[method].fresh_scheduler
        ):
            return False
        own, shared = self.scheduler_of(method), self.scheduler
        return all(getattr(own, key) == getattr(shared, key) for key in NETWORK_KEYS)

    @property
    def pretrains(self) -> bool:
        """Whether a method starts from the pretrained scheduler; without one, it is not trained."""
        return any(map(self.scheduler_is_pretrained, self.preference_methods))

    @property
    def needs_kl(self) -> bool:
        """Whether the loss of any method needs log-probs of mismatched completions (KTO)."""
        return any(self.preference_of(method).needs_kl for method in self.preference_methods)

    @property
    def reference_in_4bit(self) -> bool:
        """Whether the reference has its weights in 4 bits, as the methods that start from it."""
        methods = [self.preference_of(name) for name in self.preference_methods]
        return any(_in_4bit(training) for training in methods if training.needs_reference)

    @property
    def results(self) -> Path:
        """Folder of the study's setting, relative to the working directory."""
        return Path("results") / self.study / self.setting

    def preference_of(self, method: str) -> Preference:
        """Return the settings of one method: the shared ones, overlaid with the method's own."""
        training: Preference = _part(
            Preference, self._keys_of(method), f"method_settings.{method} over preference"
        )
        return training

    def model_of(self, method: str) -> Model:
        """Return the model of one method: that of the study, or the finished one that the method names."""
        own = self.method_settings[method].model if method in self.method_settings else None
        if own is None:
            return self.model
        fresh = {} if own.path is None else {"architecture": None, "tokenizer": None}
        shared = {**self.model.model_dump(), "revision": None, **fresh}
        return _part(Model, {**shared, **own.model_dump()}, f"method_settings.{method}.model")

    def scheduler_of(self, method: str) -> Scheduler:
        """Return the scheduler of one method: that of the study, overlaid with the method's own keys."""
        own = self.method_settings[method].scheduler.model_dump()
        shared = self.scheduler.model_dump()
        if "preset" in own:
            # The method's preset replaces the sizes of the study's preset.
            shared = {key: value for key, value in shared.items() if key not in PRESETS["paper"]}
        return _part(Scheduler, {**shared, **own}, f"method_settings.{method}.scheduler")


def _part(kind: type[Settings], values: dict[str, Any], where: str) -> Any:
    """Validate a merged group of a study; `where` names it in the error."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        key, problem = first_problem(error, kind)
        raise ValueError(f"{where}: {f'{key}: ' if key else ''}{problem}") from None


def with_point(settings: dict[str, Any], point: dict[str, float]) -> dict[str, Any]:
    """Return settings of a method with values of a grid; `loss_settings.alpha` means `alpha` in that group."""
    changed = copy.deepcopy(settings)
    for key, value in point.items():
        group, _, name = key.rpartition(".")
        (changed.setdefault(group, {}) if group else changed)[name] = value
    return changed


def _in_4bit(training: Training | None) -> bool:
    return training is not None and training.lora is not None and training.lora.load_in_4bit
