"""The settings of a study: typed, validated, one model per group of keys.

`Study` is what `config/config.yaml` and its overlays hold; `sams.recipes` cuts it into the stages' recipes.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sams.errors import UserError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]

BASE_METHOD = "sft"


class Settings(BaseModel):
    """A group of settings: unknown keys are refused, values are never changed after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


# --- what is trained ------------------------------------------------------------------------------


class Model(Settings):
    """The policy: a hub id or folder, or a fresh model built from an architecture config."""

    path: str | None = Field(
        None, description="Hub id or local folder; null builds a model from `architecture`."
    )
    revision: str | None = Field(None, description="Hub revision (commit) of `path`.")
    architecture: dict[str, Any] | None = Field(
        None, description="transformers config with `model_type`, for a model built from scratch."
    )
    tokenizer: Literal["words", "bpe"] | None = Field(
        None,
        description="Tokenizer trained on the study's data (with `architecture`); null takes the model's own.",
    )
    vocab_size: Count = Field(4096, description="Upper limit of the trained tokenizer's vocabulary.")
    chat_template: str | None = Field(
        None, description="File with a chat template (jinja); null takes the tokenizer's own, or a plain one."
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="Attention kernel.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Compute type; master weights and log-prob sums are always float32."
    )
    activation_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give exactly one of `path` and `architecture` (set the other to null)")
        if self.architecture is not None:
            if "model_type" not in self.architecture:
                raise ValueError("`architecture` needs `model_type`, for example llama")
            if self.tokenizer is None:
                raise ValueError(
                    "`architecture` needs `tokenizer`: words or bpe, trained on the study's data"
                )
        return self


# --- data -----------------------------------------------------------------------------------------


class World(Settings):
    """The synthetic world of short instructions with checkable answers."""

    seed: int = Field(0, ge=0, description="Seed of every example.")
    sft_examples: Count = Field(32_768, description="Supervised examples.")
    imperfect_share: Share = Field(0.4, description="Share of the supervised answers that are wrong.")
    train_pairs: Count = Field(4096, description="Preference pairs to train on.")
    test_pairs: Count = Field(1000, description="Clean preference pairs to test on.")
    flipped_share: Share = Field(0.3, description="Share of training pairs whose labels are swapped.")
    verbose_share: Share = Field(0.3, description="Share of answers given in a full sentence.")
    reference_error_share: Share = Field(
        0.4, description="Share of wrong answers in the AlpacaEval baseline."
    )


class Data(Settings):
    """Where examples and preference pairs come from: the synthetic world, or files and hub data sets."""

    world: World | None = Field(None, description="Synthetic world; null when `train` and `test` name data.")
    train: str | None = Field(
        None, description="Preference pairs: file (JSONL, JSON or Parquet, gzip or not) or hub id."
    )
    test: str | None = Field(None, description="Held-out preference pairs, in the same forms.")
    sft: str | None = Field(
        None, description="Supervised examples; null takes the chosen responses of `train`."
    )
    max_length: Count = Field(1024, description="Longest prompt and response together, in tokens.")
    max_prompt_length: Count = Field(
        512, description="Longest prompt in tokens; longer ones lose their beginning."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if self.world is None and (self.train is None or self.test is None):
            raise ValueError("give `train` and `test` (files or hub ids), or a synthetic `world`")
        if self.world is not None and (self.train or self.test or self.sft):
            raise ValueError(
                "`world` and files exclude each other: set `world: null`, or `train`, `test` and `sft` to null"
            )
        if self.max_prompt_length >= self.max_length:
            raise ValueError("`max_prompt_length` must be below `max_length`, to leave room for a response")
        return self


# --- training -------------------------------------------------------------------------------------


class Training(Settings):
    """What every training stage shares. The global batch is the setting; accumulation is derived."""

    batch_size: Count = Field(
        64, description="Global batch: examples or pairs per round, over all processes."
    )
    micro_batch_size: Count = Field(
        8, description="Examples or pairs per process in one forward and backward."
    )
    scoring_micro_batch_size: Count = Field(16, description="The same for passes without gradients.")
    epochs: Count = Field(
        1, description="Passes over the data; the incomplete last batch of each is dropped."
    )
    max_steps: int | None = Field(
        None, ge=1, description="Stop after so many optimiser steps; null runs all epochs."
    )
    learning_rate: Positive = Field(5.0e-7, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Course after the warm-up."
    )
    warmup_ratio: Share = Field(
        0.1, description="Share of the steps in which the learning rate rises linearly."
    )
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW weight decay.")
    max_grad_norm: Positive = Field(10.0, description="Gradients are clipped to this norm.")
    evaluations: Count = Field(
        4, description="Evaluations of the test split in the run, the last at its end."
    )
    log_every: Count = Field(1, description="Steps between two lines of the metric log.")
    checkpoint_every: Count = Field(100, description="Steps between two checkpoints.")


def check_selection(batch_size: int, ratio: float) -> None:
    """See that a share of a batch is a whole number of pairs, at least one."""
    chosen = batch_size * ratio
    if chosen < 1 or abs(chosen - round(chosen)) > 1e-6:
        raise ValueError(
            f"batch_size {batch_size} times ratio {ratio} is {chosen:g} pairs: choose a whole number of 1 or more"
        )


class Sft(Training):
    """Supervised fine-tuning on prompt and response."""


class Scheduler(Settings):
    """The scheduler network and its rewards (SamS Eq. 6 to 11). Sizes are those of preset `small`."""

    gamma: Share = Field(
        0.5, description="Weight of the batch-level reward against the sample-level one (Eq. 8)."
    )
    delta: Share = Field(0.5, description="Weight of the margin against the uncertainty term (Eq. 7).")
    exploration: float = Field(0.01, ge=0.0, description="lambda: weight of the exploration net's output.")
    merge: Literal["concat", "mean", "difference"] = Field(
        "concat", description="How the contexts of chosen and rejected are merged."
    )
    connector_width: Count = Field(64, description="Hidden width of the connector (paper: 1024).")
    encoder: str = Field(
        "random", description="all-MiniLM-L6-v2, a folder with that model, or `random` for a small fresh one."
    )
    encoder_width: Count = Field(64, description="Width of a `random` encoder (all-MiniLM-L6-v2 has 384).")
    encoder_layers: Count = Field(2, description="Layers of a `random` encoder.")
    width: Count = Field(128, description="Width of the residual nets (paper: 4096).")
    depth: int = Field(4, ge=3, description="Linear layers of each residual net (paper: 16).")
    block: Count = Field(
        4, description="Neighbouring activations averaged for the exploration net (paper size: 16)."
    )
    learning_rate: Positive = Field(1.0e-4, description="Adam, one per net.")
    weight_decay: float = Field(1.0e-5, ge=0.0, description="Adam weight decay.")
    updates_per_round: Count = Field(1, description="Fits of both nets per round.")
    replay_rounds: Count = Field(40_000, description="Most rounds kept in the replay pool.")
    replay_bytes: Count = Field(2_000_000_000, description="Most bytes of the replay pool on each process.")
    replay_sample: int = Field(
        32, ge=0, description="Arms drawn from the pool for each fit, besides the newest."
    )

    @model_validator(mode="after")
    def _sizes(self) -> "Scheduler":
        if (self.depth - 2) * self.width % self.block:
            raise ValueError(
                f"`block` {self.block} does not divide the {self.depth - 2} x {self.width} hidden activations"
            )
        if self.encoder == "random" and self.encoder_width % 4:
            raise ValueError(
                f"`encoder_width` {self.encoder_width} is not a multiple of its 4 attention heads"
            )
        return self


class Pretrain(Training):
    """Scheduler pretraining on the SFT loss with the policy frozen: forward passes only (Eq. 12 to 14)."""

    ratio: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="Share of each batch taken as arms."
    )
    gamma: Share = Field(
        0.0, description="As `scheduler.gamma`; a frozen policy makes the batch reward mere noise."
    )

    @model_validator(mode="after")
    def _selection(self) -> "Pretrain":
        check_selection(self.batch_size, self.ratio)
        return self

    @property
    def selected(self) -> int:
        """K: arms taken of each global batch."""
        return round(self.batch_size * self.ratio)


class Preference(Training):
    """Preference optimisation: a loss, and a selector that chooses whom to train on."""

    loss: Literal["sigmoid"] = Field("sigmoid", description="Preference loss.")
    beta: Positive = Field(0.1, description="Inverse temperature of the implicit reward.")
    selector: Literal["all", "random", "sams"] = Field(
        "all", description="Who chooses the pairs to train on."
    )
    ratio: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="K / n: share of each batch trained on."
    )

    @model_validator(mode="after")
    def _selection(self) -> "Preference":
        if self.selector == "all" and self.ratio != 1.0:
            raise ValueError("selector `all` has ratio 1.0: choose another selector or drop `ratio`")
        check_selection(self.batch_size, self.ratio)
        return self

    @property
    def selected(self) -> int:
        """K: pairs of each global batch that are trained on."""
        return round(self.batch_size * self.ratio)


class Launch(Settings):
    """How training jobs are started. Changes nothing in a result, so it is part of no recipe."""

    nproc_per_node: Count | Literal["auto"] = Field(
        "auto", description="Processes of each torchrun; auto: one per GPU, or 2 without one."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs if there are any.")
    strategy: Literal["ddp", "fsdp2"] = Field("ddp", description="Replicate or shard the policy.")
    threads_per_process: Count = Field(1, description="CPU threads of each process.")
    timeout_minutes: Positive = Field(30.0, description="A collective call that hangs longer ends the job.")


# --- benchmarks -----------------------------------------------------------------------------------


class Decoding(Settings):
    """How answers are decoded."""

    temperature: float = Field(1.0, ge=0.0, description="0 decodes greedily.")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(1.0, description="Nucleus of the sampling.")
    max_new_tokens: Count = Field(1024, description="Longest answer in tokens.")
    batch_size: Count = Field(64, description="Prompts decoded together.")
    stop_token_ids: list[int] = Field([], description="Ids that end an answer, besides the tokenizer's EOS.")
    category_temperatures: dict[str, Annotated[float, Field(ge=0.0)]] = Field(
        {}, description="MT-Bench: temperature by category; `temperature` for those not named."
    )


# FastChat's own temperatures (fastchat/llm_judge/common.py, temperature_config).
MT_BENCH_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}


class AlpacaEval(Settings):
    """AlpacaEval 2: the baseline's answers and the table that length control needs."""

    reference_outputs: str | None = Field(
        None, description="Baseline outputs (JSON, gzip or not); null: the world's own."
    )
    difficulty: str | None = Field(
        None, description="Difficulty table (df_gamed.csv); null: made for the world's own instructions."
    )
    decoding: Decoding = Field(Decoding(), description="Decode settings.")


class MtBench(Settings):
    """MT-Bench: its questions, references and judge prompts."""

    questions: str | None = Field(
        None, description="question.jsonl; null: the world's own two-turn questions."
    )
    references: str | None = Field(None, description="Reference answers; null: the world's own.")
    judge_prompts: str | None = Field(None, description="judge_prompts.jsonl; null: the world's own.")
    decoding: Decoding = Field(
        Decoding(category_temperatures=MT_BENCH_TEMPERATURES), description="Decode settings."
    )


class Judge(Settings):
    """Who grades. The key comes from the environment (OPENAI_API_KEY), never from here."""

    kind: Literal["local", "openai"] = Field(
        "local", description="local: the world's own judge; openai: an endpoint."
    )
    base_url: str = Field("https://api.openai.com/v1", description="Endpoint of an OpenAI-compatible judge.")
    model: str | None = Field(
        None, description="Judge model of an endpoint; null: each benchmark's own (GPT-4 Turbo)."
    )
    concurrency: Count = Field(8, description="Calls in flight.")
    length_lean: float = Field(
        0.3,
        ge=0.0,
        description="Local judge only: leaning to the longer answer, in logits per log length ratio.",
    )


class Benchmarks(Settings):
    """Which benchmarks are scored, on what and by whom."""

    judge: Judge = Field(Judge(), description="The judge.")
    alpaca_eval: AlpacaEval | None = Field(None, description="AlpacaEval 2; null leaves it out.")
    mt_bench: MtBench | None = Field(None, description="MT-Bench; null leaves it out.")


class Tracking(Settings):
    """MLflow. MLFLOW_TRACKING_URI, when set, is honoured; the default is sqlite in the results folder."""

    enabled: bool = Field(
        True, description="Mirror metrics to MLflow; the JSONL files are written in any case."
    )


# --- the study ------------------------------------------------------------------------------------


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
        for batched, key in ((self.sft, "sft"), (self.pretrain, "pretrain")):
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
        return _part(Scheduler, {**self.scheduler.model_dump(), **own}, f"method_settings.{method}.scheduler")


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
