"""A study: what `config/config.yaml` and its overlays hold, validated; `sams.recipes` cuts it into recipes."""

import difflib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from sams.errors import UserError
from sams.scheduling.selection import selected
from sams.settings import (
    Benchmarks,
    Data,
    Launch,
    Model,
    Name,
    Paper,
    Preference,
    Pretrain,
    Scheduler,
    Settings,
    Sft,
    Training,
)
from sams.settings.scheduling import PRESETS

BASE_METHOD = "sft"


class Tracking(Settings):
    """MLflow. MLFLOW_TRACKING_URI, when set, is honoured; the default is sqlite in the results folder."""

    enabled: bool = Field(
        True, description="Mirror metrics to MLflow; the JSONL files are written in any case."
    )


class Study(Settings):
    """Everything a study is made of."""

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
        {}, description="For each method, what differs from `preference` and `scheduler` (key `scheduler`)."
    )
    benchmarks: Benchmarks = Field(Benchmarks(), description="Benchmarks to score.")
    launch: Launch = Field(Launch(), description="How training jobs are started.")
    tracking: Tracking = Field(Tracking(), description="MLflow.")

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        for key, values in (("seeds", self.seeds), ("methods", self.methods)):
            if len(set(values)) != len(values):
                raise ValueError(f"`{key}` names one twice: {values}")
        for method in self.paper.rows if self.paper else ():
            if method not in self.methods:
                raise ValueError(f"`paper.rows` names '{method}', which is not among the methods")
        for method in self.preference_methods:
            if method not in self.method_settings:
                near = difflib.get_close_matches(method, [BASE_METHOD, *self.method_settings], n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(f"method '{method}' has no entry in `method_settings`{hint}")
            self.preference_of(method)
            self.scheduler_of(method)
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

    def _check_batch(self, training: Training | None, key: str) -> None:
        processes = self.launch.nproc_per_node
        if training is not None and isinstance(processes, int) and training.batch_size % processes:
            raise ValueError(
                f"`{key}.batch_size` {training.batch_size} is not divisible by `launch.nproc_per_node` {processes}"
            )

    @property
    def preference_methods(self) -> list[str]:
        """The methods that are trained on preferences: all but `sft`."""
        return [method for method in self.methods if method != BASE_METHOD]

    @property
    def selective_methods(self) -> list[str]:
        """The methods that train on the easiest pairs of a cross-fitted order."""
        return [
            method for method in self.preference_methods if self.preference_of(method).selector == "selective"
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
        own = {key: value for key, value in self.method_settings[method].items() if key != "scheduler"}
        training = _part(Preference, {**self.preference, **own}, f"method_settings.{method} over preference")
        self._check_batch(training, f"method_settings.{method}")
        return training

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
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        problem = (
            "unknown key"
            if first["type"] == "extra_forbidden"
            else first["msg"].removeprefix("Value error, ")
        )
        found = (
            "" if first["type"] in ("extra_forbidden", "value_error") else f", found {first['input']!r:.80}"
        )
        raise ValueError(f"{where}: {f'{key}: ' if key else ''}{problem}{found}") from None


# --- reading --------------------------------------------------------------------------------


def read_settings(files: list[Path]) -> dict[str, Any]:
    """Read config files and lay each over those before it, as Snakemake does: groups merge, lists replace.

    Raises:
        UserError: naming the file and line that cannot be read.
    """
    import yaml

    merged: dict[str, Any] = {}
    for file in files:
        try:
            settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                "no such file", where=str(file), remedy="config/studies holds the studies"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"not YAML: {error}", where=str(file)) from None
        if not isinstance(settings, dict):
            raise UserError("expected keys and values at the top", where=str(file))
        _lay_over(merged, settings)
    return merged


def _lay_over(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = value


def load_study(settings: dict[str, Any], *, where: str = "config") -> Study:
    """Validate a study.

    Raises:
        UserError: the first mistake, naming its key.
    """
    try:
        return Study.model_validate(settings)
    except ValidationError as error:
        from sams.stage import first_problem

        raise UserError(
            first_problem(error), where=where, remedy="config/schema.yaml lists every key"
        ) from None
