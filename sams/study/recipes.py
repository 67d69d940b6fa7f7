"""Recipes of the stages: for each job, the settings that its result depends on.

A stage does not see the complete study, so an unrelated setting does not run it again. Recipes leave out how a job
is launched (GPUs, processes, DDP or FSDP2), which must not change a result.
"""

import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import Field

from sams.runtime.errors import UserError, nearest
from sams.runtime.files import canonical_json
from sams.study.settings import (
    Count,
    Data,
    Decoding,
    Export,
    Judge,
    Launch,
    LmEval,
    MicroBatch,
    Model,
    ModelDecoding,
    ModelSource,
    Name,
    OnPolicyDecoding,
    Preference,
    Pretrain,
    Ratio,
    Scheduler,
    Settings,
    Sft,
    World,
    WorldAccuracy,
)
from sams.study.settings.model import TEMPLATE_DATE, Day
from sams.study.study import Study

Part = TypeVar("Part", bound=Settings)


class Job(Settings):
    """Study of a job and how the job is launched; no key changes its result."""

    study: Name = Field("adhoc", description="Name of the study, which is the MLflow experiment.")
    setting: Name = Field("adhoc", description="Setting of the study.")
    tracking: bool = Field(False, description="Copy metrics to MLflow.")
    launch: Launch = Field(Launch(), description="Device, strategy, threads.")


class DataRecipe(Settings):
    """Stage `prepare_data`."""

    data: Data


class QuestionsRecipe(Settings):
    """Stage `prepare_questions`: of each benchmark with questions, the keys that it reads."""

    world: World | None
    benchmarks: dict[str, dict[str, Any]]


class TokeniseRecipe(Settings):
    """Stage `tokenise`: tokenizer and token ids."""

    model: ModelSource
    max_length: Count
    max_prompt_length: Count
    mismatched: bool = Field(False, description="Give every pair a mismatched completion, for KTO's KL term.")


class Watching(Settings):
    """Scheduler that learns during SFT: it chooses arms, while the policy trains on all examples."""

    scheduler: Scheduler
    ratio: Ratio


class SftRecipe(Settings):
    """Stage `train_sft`."""

    seed: int
    model: Model
    training: Sft
    watching: Watching | None = None


class ReferenceRecipe(Settings):
    """Stage `compute_reference`: log-probs of the reference model, by pair id."""

    model: Model
    micro_batch_size: MicroBatch
    mismatched: bool = Field(False, description="Log-probs of the mismatched completions too.")
    load_in_4bit: bool = Field(
        False, description="Weights in 4 bits, as the policies have them that start from it."
    )


class PretrainRecipe(Settings):
    """Stage `pretrain_scheduler`."""

    seed: int
    model: Model
    scheduler: Scheduler
    training: Pretrain


class PreferenceRecipe(Settings):
    """Stages `train_preference` and `train_crossfit`. `scheduler` is null for selectors without its settings."""

    seed: int
    method: Name
    model: Model
    training: Preference
    scheduler: Scheduler | None


class ExportRecipe(Settings):
    """Stage `export_model`."""

    model: Model
    export: Export = Export()
    data: dict[str, str] = Field({}, description="Files and data sets of the training data; for the card.")
    sft: Sft | None = Field(None, description="Fine-tuning before the preference stage; for the card.")


class GenerateRecipe(Settings):
    """Stage `generate_answers` of one set of questions."""

    seed: int
    method: Name
    benchmark: Name = Field(description="Name of the benchmark, or `samples`.")
    prompts: Count | None = Field(None, description="Number of test prompts, for sets of these.")
    precision: Literal["float32", "bfloat16"]
    template_date: Day = TEMPLATE_DATE
    decoding: Decoding | ModelDecoding


class OnPolicyRecipe(Settings):
    """Stage `sample_pairs`: preference pairs of a model's own answers."""

    seed: int
    precision: Literal["float32", "bfloat16"]
    template_date: Day = TEMPLATE_DATE
    decoding: OnPolicyDecoding = Field(OnPolicyDecoding(), description="How answers are sampled.")
    reward_batch_size: Count = Field(8, description="Answers that the reward model scores together.")


class AssessRecipe(Settings):
    """Stage `assess`: accuracy of the chosen weights of one seed."""

    seed: int
    model: Model
    world: World
    accuracy: WorldAccuracy
    runs: dict[Name, Preference]


class ScoreRecipe(Settings):
    """Stages `make_difficulty` and `score_<name>` of each benchmark with a judge."""

    judge: Judge
    world: World | None
    accept_missing: int = 0


class RewardRecipe(Settings):
    """Stage `score_reward_model`."""

    model: str
    precision: Literal["float32", "bfloat16"]
    batch_size: Count


class LmEvalRecipe(Settings):
    """Stage `score_lm_eval`."""

    precision: Literal["float32", "bfloat16"]
    lm_eval: LmEval


def recipe_json(recipe: Settings) -> str:
    """Return a recipe as canonical JSON: equal settings give equal text."""
    return canonical_json(recipe.model_dump(mode="json"))


def job_of(study: Study) -> Job:
    """Return the settings that all jobs of a study share."""
    return Job(study=study.study, setting=study.setting, tracking=study.tracking.enabled, launch=study.launch)


def current_job() -> Job:
    """Return the job of this process from SAMS_JOB, which the workflow sets; without it, an untracked run."""
    from sams.runtime.stage import read_recipe

    return read_recipe(os.environ.get("SAMS_JOB", "{}"), Job)


def recipe_of(study: Study, stage: str, *, method: str = "", seed: int = 0, benchmark: Any = "") -> Settings:
    """Return the recipe of one job of a stage.

    Args:
        study: the study.
        stage: name of the rule.
        method: method of the job, in stages with one job per method.
        seed: seed of the job, in stages with one job per seed.
        benchmark: name of a benchmark, or `samples`, in `generate_answers` and `score`.

    Raises:
        UserError: the study has no such stage or method.
    """
    if method and method not in study.started_methods:
        raise UserError(
            f"no method '{method}'",
            where="--method",
            remedy=f"the study has {', '.join(study.started_methods)}",
        )
    stages: dict[str, Callable[[], Settings]] = {
        "job": lambda: job_of(study),
        "prepare_data": lambda: DataRecipe(data=_data(study, seed)),
        "prepare_questions": lambda: QuestionsRecipe(
            world=study.data.world,
            benchmarks={
                name: group.part(group.question_keys)
                for name, group in study.benchmarks.scored.items()
                if group.question_keys and benchmark in ("", name)
            },
        ),
        "tokenise": lambda: TokeniseRecipe(
            model=ModelSource.model_validate(study.model.model_dump(include=set(ModelSource.model_fields))),
            max_length=study.data.max_length,
            max_prompt_length=study.data.max_prompt_length,
            mismatched=study.needs_kl,
        ),
        "train_sft": lambda: SftRecipe(
            seed=seed, model=study.model, training=require(study.sft, "sft"), watching=_watching(study)
        ),
        "compute_reference": lambda: ReferenceRecipe(
            model=study.model,
            micro_batch_size=_reference_micro_batch(study),
            mismatched=study.needs_kl,
            load_in_4bit=study.reference_in_4bit,
        ),
        "pretrain_scheduler": lambda: PretrainRecipe(
            seed=seed,
            model=study.model,
            # The policy is frozen, so the batch-level reward is noise.
            scheduler=study.scheduler.model_copy(update={"gamma": 0.0}),
            training=_frozen_pretrain(study),
        ),
        "train_crossfit": lambda: _crossfit(study, method, seed),
        "train_preference": lambda: _preference(study, method, seed),
        "export_model": lambda: ExportRecipe(
            model=study.model_of(method) if method else study.model,
            export=study.export,
            data=study.data.sources if method in study.trained_methods else {},
            sft=study.sft if method in study.preference_methods else None,
        ),
        "generate_answers": lambda: _generate(study, method, seed, benchmark),
        "sample_pairs": lambda: OnPolicyRecipe(
            seed=seed,
            precision=study.model.precision,
            template_date=study.model.template_date,
            decoding=require(study.on_policy, "on_policy").decoding,
            reward_batch_size=require(study.on_policy, "on_policy").reward_batch_size,
        ),
        "assess": lambda: _assess(study, seed),
        "score_reward_model": lambda: _reward(study),
        "score_lm_eval": lambda: LmEvalRecipe(
            precision=study.model.precision, lm_eval=require(study.benchmarks.lm_eval, "benchmarks.lm_eval")
        ),
        # What is known about the judge changes no judgment.
        "score": lambda: ScoreRecipe(
            judge=study.benchmarks.judge.model_copy(update={"agreement": None}),
            world=study.data.world,
            accept_missing=getattr(study.benchmarks.scored.get(benchmark), "accept_missing", 0),
        ),
    }
    if stage not in stages:
        raise UserError(
            f"no stage '{stage}'{nearest(stage, list(stages))}",
            where="stage",
            remedy=f"choose one of {', '.join(stages)}",
        )
    return stages[stage]()


def _preference(study: Study, method: str, seed: int) -> PreferenceRecipe:
    if method not in study.preference_methods:
        raise UserError(
            f"'{method or 'none'}' is not trained on preferences",
            where="--method",
            remedy=f"choose one of {', '.join(study.preference_methods)}",
        )
    training = study.preference_of(method)
    return PreferenceRecipe(
        seed=seed,
        method=method,
        model=study.model,
        training=training,
        scheduler=study.scheduler_of(method) if training.selector_entry.reads_scheduler else None,
    )


def _data(study: Study, seed: int) -> Data:
    """Return the data of the study, or with `per_seed` that of one seed."""
    world = study.data.world
    if world is None or not world.per_seed:
        return study.data
    return study.data.model_copy(update={"world": world.model_copy(update={"seed": world.seed + seed})})


def _assess(study: Study, seed: int) -> AssessRecipe:
    chosen = require(study.chosen, "chosen")
    return AssessRecipe(
        seed=seed,
        model=study.model,
        world=require(_data(study, seed).world, "data.world"),
        accuracy=chosen.accuracy,
        runs={run: study.preference_of(run) for run in study.chosen_runs},
    )


def _generate(study: Study, method: str, seed: int, benchmark: Any) -> GenerateRecipe:
    if benchmark == "samples":
        group: Any = require(study.samples, "samples")
    else:
        group = require(getattr(study.benchmarks, benchmark, None), f"benchmarks.{benchmark}")
    return GenerateRecipe(
        seed=seed,
        method=method,
        benchmark=benchmark,
        prompts=count if isinstance(count := getattr(group, "prompts", None), int) else None,
        precision=study.model.precision,
        template_date=study.model.template_date,
        decoding=group.decoding,
    )


def _reward(study: Study) -> RewardRecipe:
    group = require(study.benchmarks.reward_model, "benchmarks.reward_model")
    return RewardRecipe(model=group.model, precision=study.model.precision, batch_size=group.batch_size)


def _reference_micro_batch(study: Study) -> MicroBatch:
    methods = study.preference_methods
    sizes = [study.preference_of(method).scoring_micro_batch_size for method in methods]
    return min((size for size in sizes if size != "auto"), default="auto")


def _crossfit(study: Study, method: str, seed: int) -> PreferenceRecipe:
    """Return the recipe of plain training of the method on half of the data."""
    recipe = _preference(study, method, seed)
    return recipe.model_copy(
        update={
            "training": recipe.training.model_copy(
                update={"selector": "all", "selector_settings": {}, "ratio": 1.0, "easiest": None}
            )
        }
    )


def _watching(study: Study) -> Watching | None:
    pretrain = study.pretrain
    if pretrain is None or pretrain.policy == "frozen" or not study.pretrains:
        return None
    return Watching(scheduler=study.scheduler, ratio=pretrain.ratio)


def _frozen_pretrain(study: Study) -> Pretrain:
    pretrain = require(study.pretrain, "pretrain")
    if pretrain.policy == "moving":
        raise UserError("the scheduler is pretrained during SFT", remedy="use the recipe of train_sft")
    return pretrain


def require(part: Part | None, key: str) -> Part:
    """Return a group of settings that a stage requires.

    Raises:
        UserError: the study has no such group.
    """
    if part is None:
        raise UserError("the study does not have this stage", where=key, remedy=f"set `{key}`")
    return part
