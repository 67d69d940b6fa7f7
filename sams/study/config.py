"""A study: what `config/config.yaml` and its overlays hold, validated; `sams.study.recipes` cuts it into recipes."""

import copy
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, model_validator

from sams.runtime.errors import UserError, first_line, nearest
from sams.runtime.problems import first_problem
from sams.scheduling.selection import selected
from sams.study.settings import (
    Benchmarks,
    Count,
    Data,
    Launch,
    Model,
    Name,
    OnPolicy,
    Paper,
    Preference,
    Pretrain,
    Scheduler,
    Settings,
    Sft,
    Training,
)
from sams.study.settings.scheduling import PRESETS
from sams.study.settings.tuning import Chosen, Grid

if TYPE_CHECKING:
    import yaml

BASE_METHOD = "sft"
SOURCE = Path(__file__).resolve().parents[2]

# Keys of a method that are no settings of `Preference`.
OWN_KEYS = ("scheduler", "fresh_scheduler", "model")

# Folders of results/<study> beside those of its settings, and of a setting beside those of its methods.
STUDY_FOLDERS = ("benchmarks", "checkpoints", "logs", "tables")
SETTING_FOLDERS = ("data", "difficulty", "questions", "reference", "scheduler", "tokens")


class Tracking(Settings):
    """MLflow. MLFLOW_TRACKING_URI, when set, is honoured; the default is sqlite in the results folder."""

    enabled: bool = Field(
        True, description="Mirror metrics to MLflow; the JSONL files are written in any case."
    )


class Study(Settings):
    """Everything a study is made of."""

    extends: str | None = Field(
        None, description="A study's file that lies below this one, relative to the source tree."
    )
    rehearse: bool = Field(
        False, description="Run the study with a tiny fresh model on synthetic data (docs/studies.md)."
    )
    study: Name = Field(description="Name of the study: results go to results/<study>.")
    setting: Name = Field(description="Short name of model and data, one level below the study.")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0], min_length=1, description="One run of everything per seed."
    )
    methods: list[Name] = Field(
        min_length=1, description="Rows of the main table, in order; `sft` is the start of all."
    )
    paper: Paper | None = Field(
        None, description="Table of the paper that the study reproduces; null: none, and no table beside it."
    )
    model: Model = Field(description="The policy.")
    data: Data = Field(description="Examples and preference pairs.")
    sft: Sft | None = Field(None, description="Supervised fine-tuning; null starts from the model as it is.")
    scheduler: Scheduler = Field(Scheduler(), description="The scheduler of selector `sams`.")
    pretrain: Pretrain | None = Field(
        None, description="Scheduler pretraining; null starts with a fresh one."
    )
    preference: dict[str, Any] = Field(description="Settings of `Preference` that the methods share.")
    method_settings: dict[Name, dict[str, Any]] = Field(
        {},
        description="For each method, what differs from `preference` and `scheduler` (key `scheduler`); "
        "`fresh_scheduler: true` leaves pretraining out; `model: {path: ...}` is a finished model, only scored.",
    )
    grids: dict[Name, Grid] = Field({}, description="Tuning grids by method; `sams grid` writes them out.")
    tuning_budget: Count | None = Field(
        None, description="Points of each grid that are tried, the same number for every method; null: all."
    )
    chosen: Chosen | None = Field(
        None, description="Methods that are chosen of several runs by validation pairs; null: none."
    )
    on_policy: OnPolicy | None = Field(
        None,
        description="Pairs of a model's own answers, for target `on_policy`; no other target needs them.",
    )
    benchmarks: Benchmarks = Field(Benchmarks(), description="Benchmarks to score.")
    launch: Launch = Field(Launch(), description="How training jobs are started.")
    tracking: Tracking = Field(Tracking(), description="MLflow.")

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        for key, values in (("seeds", self.seeds), ("methods", self.methods)):
            if len(set(values)) != len(values):
                raise ValueError(f"`{key}` names one twice: {values}")
        if self.setting in STUDY_FOLDERS:
            raise ValueError(f"`setting` {self.setting} is the name of another folder of results: rename it")
        for method in self.methods:
            if method in SETTING_FOLDERS:
                raise ValueError(f"method '{method}' has the name of another folder of results: rename it")
        for method in self.paper.rows if self.paper else ():
            if method not in self.methods:
                raise ValueError(f"`paper.rows` names '{method}', which is not among the methods")
        for method in self.preference_methods:
            if method not in self.method_settings:
                hint = nearest(method, [BASE_METHOD, *self.method_settings])
                raise ValueError(f"method '{method}' has no entry in `method_settings`{hint}")
            own = self.method_settings[method]
            if not isinstance(own.get("scheduler", {}), dict):
                raise ValueError(f"`method_settings.{method}.scheduler` takes keys and values")
            if not isinstance(own.get("fresh_scheduler", False), bool):
                raise ValueError(f"`method_settings.{method}.fresh_scheduler` takes true or false")
            self.preference_of(method)
            self.scheduler_of(method)
        for method in self.finished_methods:
            if method == BASE_METHOD or not isinstance(self.method_settings[method]["model"], dict):
                raise ValueError(f"`method_settings.{method}.model` takes {{path: ...}}, and not for `sft`")
            self.model_of(method)
        self._check_grids()
        self._check_chosen()
        scored = self.benchmarks.alpaca_eval or self.benchmarks.mt_bench
        if self.data.world is None and self.benchmarks.judge.kind == "local" and scored:
            raise ValueError(
                "`benchmarks.judge.kind: local` can only grade the synthetic world: "
                "set it to openai, or both benchmarks to null"
            )
        if self.pretrain is not None and self.pretrain.policy == "moving":
            if self.sft is None:
                raise ValueError("`pretrain.policy: moving` runs beside SFT: set `sft`, or `policy: frozen`")
            selected(self.sft.batch_size, self.pretrain.ratio)
        frozen = self.pretrain if self.pretrain and self.pretrain.policy == "frozen" else None
        for batched, key in ((self.sft, "sft"), (frozen, "pretrain")):
            self._check_batch(batched, key)
        return self

    def _check_grids(self) -> None:
        """See that every value of a grid is one that its method can have, and that its own is among them."""
        for method, grid in self.grids.items():
            if method not in self.method_settings:
                raise ValueError(f"`grids.{method}` is of no method in `method_settings`")
            if "model" in self.method_settings[method]:
                continue  # a finished model, in a study that extends one where the method is trained
            own = self.preference_of(method)
            for key, axis in grid.axes.items():
                where = f"grids.{method}.axes.{key}"
                for value in axis.values:
                    self._check_point(method, {key: value}, where)
                group, _, name = key.rpartition(".")
                current = getattr(own, group).get(name) if group else getattr(own, name)
                if current not in axis.values:
                    raise ValueError(f"{where}: the method's own value {current} is not in {axis.values}")
            points = math.prod(len(axis.values) for axis in grid.axes.values())
            if self.tuning_budget is not None and points < self.tuning_budget:
                raise ValueError(
                    f"`grids.{method}` has {points} points, fewer than `tuning_budget` {self.tuning_budget}"
                )

    def _check_chosen(self) -> None:
        """See that what is chosen from is trained, evaluated on validation pairs, and evaluated equally often."""
        world = self.data.world
        validated = [method for method in self.preference_methods if self.preference_of(method).validated]
        if validated and not (world and world.validation_pairs):
            raise ValueError(f"method '{validated[0]}' is `validated`: set `data.world.validation_pairs`")
        runs = self.chosen_runs
        for run in runs:
            if run not in validated:
                raise ValueError(f"`chosen.runs` names '{run}', which is no method that is `validated`")
        if len({(own.evaluations, own.epochs) for own in map(self.preference_of, runs)}) > 1:
            raise ValueError(
                "`chosen.runs` need the same `epochs` and `evaluations`, or the choice is unfair"
            )

    def _check_point(self, method: str, point: dict[str, float], where: str) -> None:
        merged = {**self.preference, **self._own(method)}
        _part(Preference, with_point(merged, point), where)

    def _own(self, method: str) -> dict[str, Any]:
        """The settings of `Preference` that a method has of its own."""
        return {key: value for key, value in self.method_settings[method].items() if key not in OWN_KEYS}

    def _check_batch(self, training: Training | None, key: str) -> None:
        each, nodes = self.launch.nproc_per_node, self.launch.nodes
        if training is not None and isinstance(each, int) and training.batch_size % (nodes * each):
            raise ValueError(
                f"`{key}.batch_size` {training.batch_size} is not divisible by "
                + (f"`launch.nodes` {nodes} times " if nodes > 1 else "")
                + f"`launch.nproc_per_node` {each}"
            )

    @property
    def preference_methods(self) -> list[str]:
        """The methods that are trained on preferences: all but `sft` and finished models."""
        return [method for method in self.methods if method not in (BASE_METHOD, *self.finished_methods)]

    @property
    def finished_methods(self) -> list[str]:
        """The methods that are models from elsewhere, scored as they are."""
        return [method for method in self.methods if "model" in self.method_settings.get(method, {})]

    @property
    def trained_methods(self) -> list[str]:
        """The methods that a training job makes: not finished models, nor the start of a study without SFT."""
        start = [BASE_METHOD] if self.sft is not None and BASE_METHOD in self.methods else []
        return [*start, *self.preference_methods]

    @property
    def chosen_runs(self) -> list[str]:
        """The runs that methods are chosen from."""
        return [run for runs in self.chosen.runs.values() for run in runs] if self.chosen else []

    @property
    def exported_methods(self) -> list[str]:
        """The methods whose models are written as Hugging Face folders: all but runs to choose from."""
        return [method for method in self.methods if method not in self.chosen_runs]

    @property
    def selective_methods(self) -> list[str]:
        """The methods that train on the easiest pairs of a cross-fitted order."""
        return [
            method for method in self.preference_methods if self.preference_of(method).preselected is not None
        ]

    @property
    def needs_kl(self) -> bool:
        """Whether a method's loss needs log-probs of mismatched completions (KTO)."""
        return any(self.preference_of(method).needs_kl for method in self.preference_methods)

    @property
    def results(self) -> Path:
        """Folder of the study's setting, relative to the working directory."""
        return Path("results") / self.study / self.setting

    def preference_of(self, method: str) -> Preference:
        """Settings of one method: what the methods share, and its own over them."""
        merged = {**self.preference, **self._own(method)}
        training: Preference = _part(Preference, merged, f"method_settings.{method} over preference")
        self._check_batch(training, f"method_settings.{method}")
        return training

    def model_of(self, method: str) -> Model:
        """Model of one method: the study's, or the finished one that it names."""
        own = self.method_settings.get(method, {}).get("model")
        if own is None:
            return self.model
        fresh = {} if own.get("path") is None else {"architecture": None, "tokenizer": None}
        shared = {**self.model.model_dump(), "revision": None, **fresh}
        return _part(Model, {**shared, **own}, f"method_settings.{method}.model")

    def scheduler_of(self, method: str) -> Scheduler:
        """Scheduler of one method: the study's, with the method's own settings over it."""
        own = self.method_settings[method].get("scheduler", {})
        shared = self.scheduler.model_dump()
        if "preset" in own:
            # A preset of the method's own brings its sizes; those of the study's preset give way.
            shared = {key: value for key, value in shared.items() if key not in PRESETS["paper"]}
        return _part(Scheduler, {**shared, **own}, f"method_settings.{method}.scheduler")


def _part(kind: type[Settings], values: dict[str, Any], where: str) -> Any:
    """Validate a merged group inside a study; findings name the merged place."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        key, problem = first_problem(error, kind)
        raise ValueError(f"{where}: {f'{key}: ' if key else ''}{problem}") from None


# --- reading --------------------------------------------------------------------------------


def read_settings(files: list[Path], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read the default study and, over it, what the other files and `more` give.

    Raises:
        UserError: naming the file and line that cannot be read.
    """
    default, *overlays = files
    given: dict[str, Any] = {}
    for file in overlays:
        _lay_over(given, read_file(file))
    _lay_over(given, more or {})
    return resolved(read_file(default), given)


def resolved(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a study: what is given over the study that it extends, and that over the default study.

    Groups merge and lists replace, as Snakemake does it. With `rehearse: true` they become those of a rehearsal.

    Raises:
        UserError: a study that is extended cannot be read, or extends itself; or `rehearse` is no boolean.
    """
    settings: dict[str, Any] = {}
    for layer in [default, *_extended(given), given]:
        _lay_over(settings, layer)
    # `--config rehearse=true` reaches us as text: Snakemake only knows Python's True.
    settings["rehearse"] = {"true": True, "false": False}.get(str(settings.get("rehearse", False)).lower())
    if settings["rehearse"] is None:
        raise UserError(
            f"expected a boolean, found {given.get('rehearse')!r:.80}",
            where="key 'rehearse'",
            remedy="set it to true or false",
        )
    if settings["rehearse"]:
        from sams.study.rehearsal import rehearsal_of

        return rehearsal_of(settings)
    return settings


def _extended(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The studies below a study, the lowest first."""
    layers: list[dict[str, Any]] = []
    names: list[str] = []
    while isinstance(name := given.get("extends"), str):
        if name in names:
            raise UserError(
                f"extends itself: {' -> '.join([*names, name])}", where=name, remedy="drop one `extends`"
            )
        names.append(name)
        given = read_file(SOURCE / name)
        layers.insert(0, given)
    return layers


def read_file(file: Path) -> dict[str, Any]:
    """Keys and values of a YAML file.

    Raises:
        UserError: naming the file, and the line that cannot be read.
    """
    import yaml

    try:
        settings = yaml.load(file.read_text(encoding="utf-8-sig"), _loader())
    except FileNotFoundError:
        others = [path.name for path in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
        raise UserError(
            f"no such file{nearest(file.name, others)}",
            where=str(file),
            remedy="config/studies holds the studies",
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=str(file), remedy="name a YAML file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"not YAML: {problem}", where=f"{file}{line}", remedy="correct it there") from None
    if not isinstance(settings, dict):
        raise UserError(
            "expected keys and values at the top", where=str(file), remedy="write `key: value` lines"
        )
    return settings


@functools.cache
def _loader() -> type["yaml.SafeLoader"]:
    """YAML's safe loader, which refuses a key that is given twice instead of taking the last."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise yaml.MarkedYAMLError(
                        problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark
                    )
                if isinstance(key, yaml.ScalarNode):
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader


def _lay_over(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = copy.deepcopy(value)


def with_point(settings: dict[str, Any], point: dict[str, float]) -> dict[str, Any]:
    """Settings of a method with values of a grid in place of its own; `loss_settings.alpha` is a key below."""
    changed = copy.deepcopy(settings)
    for key, value in point.items():
        group, _, name = key.rpartition(".")
        (changed.setdefault(group, {}) if group else changed)[name] = value
    return changed


def load_study(settings: dict[str, Any], *, where: str = "config") -> Study:
    """Validate a study.

    Raises:
        UserError: the first mistake, naming its key.
    """
    try:
        return Study.model_validate(settings)
    except ValidationError as error:
        key, problem = first_problem(error, Study)
        place = f"{where}: key '{key}'" if key else where
        raise UserError(problem, where=place, remedy="config/schema.yaml lists every key") from None
