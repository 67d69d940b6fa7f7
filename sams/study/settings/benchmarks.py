"""Benchmarks: decoding, AlpacaEval 2, MT-Bench and the judge."""

from typing import Annotated, Any, ClassVar, Literal, Self, get_args
from urllib.parse import parse_qsl, urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sams.study.settings.base import Count, Positive, Settings


class Decoding(Settings):
    """How answers are decoded."""

    temperature: float = Field(1.0, ge=0.0, description="0 decodes greedily.")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Probability mass of nucleus sampling."
    )
    top_k: int = Field(0, ge=0, description="Sample from this number of tokens; 0: from all.")
    repetition_penalty: Positive = Field(
        1.0, description="Divisor of the logits of tokens that occur already; 1: none."
    )
    max_new_tokens: Count = Field(1024, description="Maximum length of an answer in tokens.")
    batch_size: Count = Field(64, description="Prompts decoded together.")
    stop_token_ids: list[int] = Field([], description="Token ids that end an answer, besides EOS.")
    category_temperatures: dict[str, Annotated[float, Field(ge=0.0)]] = Field(
        {}, description="MT-Bench: temperature by category; other categories use `temperature`."
    )
    samples: Count = Field(
        1, description="Answers to each prompt, each with its own seed; AlpacaEval takes one."
    )
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="Library that decodes; vllm must be installed separately."
    )


class ModelDecoding(Settings):
    """How answers are decoded by the model's own settings, in its generation_config.json, and what replaces them."""

    temperature: float | None = Field(
        None, ge=0.0, description="0 decodes greedily; null: the model's, greedy if it says nothing."
    )
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="Probability mass of nucleus sampling; null: the model's."
    )
    top_k: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Sample from this number of tokens, 0: from all; null: the model's."
    )
    repetition_penalty: Positive | None = Field(
        None, description="Divisor of the logits of tokens that occur already; null: the model's."
    )
    max_new_tokens: Count = Field(256, description="Maximum length of an answer in tokens.")
    batch_size: Count = Field(16, description="Prompts decoded together.")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="Library that decodes; vllm must be installed separately."
    )


class Samples(Settings):
    """Answers of the start model and of each method to test prompts, side by side in the report."""

    prompts: Count = Field(20, description="Number of prompts, the first ones of the test pairs.")
    decoding: ModelDecoding = Field(ModelDecoding(), description="Decode settings.")


class OnPolicyDecoding(Decoding):
    """How pairs of the model's own answers are sampled (SimPO, arXiv 2405.14734, appendix)."""

    temperature: float = Field(
        0.8, gt=0.0, description="Sampling temperature; greedy answers would all be equal."
    )
    samples: int = Field(5, ge=2, description="Answers to each prompt.")


class OnPolicy(Settings):
    """Preference pairs of a model's own answers: the best and the worst of several answers to each prompt."""

    prompts: str = Field(description="File or hub id of rows with the key `prompt`.")
    reward_model: str = Field(
        description="Sequence classifier with one output: folder, hub id or id@revision."
    )
    decoding: OnPolicyDecoding = Field(OnPolicyDecoding(), description="How answers are sampled.")
    reward_batch_size: Count = Field(8, description="Answers that the reward model scores together.")


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


class MtBenchDecoding(Decoding):
    """How answers to MT-Bench are decoded: by default at FastChat's temperatures."""

    category_temperatures: dict[str, Annotated[float, Field(ge=0.0)]] = Field(
        MT_BENCH_TEMPERATURES, description="Temperature by category; other categories use `temperature`."
    )


class Benchmark(Settings):
    """A benchmark; `sams.scoring` has a file of the name of its key.

    Attributes:
        question_keys: keys that stage `prepare_questions` reads.
        source_keys: keys with files or models that the scoring stage reads besides.
        has_judge: whether a judge scores the answers.
    """

    question_keys: ClassVar[tuple[str, ...]] = ()
    source_keys: ClassVar[tuple[str, ...]] = ()
    has_judge: ClassVar[bool] = False

    def part(self, keys: tuple[str, ...]) -> dict[str, Any]:
        """Return the values of some keys as JSON."""
        return self.model_dump(mode="json", include={*keys})


class AlpacaEval(Benchmark):
    """AlpacaEval 2: answers of the baseline, and the table for length control."""

    question_keys, source_keys, has_judge = ("reference_outputs",), ("difficulty",), True

    reference_outputs: str | None = Field(
        None,
        description="Baseline outputs (JSON, gzip or not); null: those of the world. "
        "inputs/alpaca_eval_gpt4_baseline.json is downloaded.",
    )
    difficulty: str | None = Field(
        None,
        description="Difficulty table; null: made for the instructions of the world. "
        "inputs/df_gamed.csv is downloaded.",
    )
    accept_missing: int = Field(
        0,
        ge=0,
        description="Number of judgments that may be missing; the score is then marked as one of fewer.",
    )
    decoding: Decoding = Field(Decoding(), description="Decode settings.")


class MtBench(Benchmark):
    """MT-Bench: its questions, references and judge prompts."""

    question_keys, has_judge = ("questions", "references", "judge_prompts"), True

    questions: str | None = Field(
        None,
        description="Two-turn questions; null: those of the world. inputs/question.jsonl is downloaded.",
    )
    references: str | None = Field(
        None, description="Reference answers; null: those of the world. inputs/gpt-4.jsonl is downloaded."
    )
    judge_prompts: str | None = Field(
        None, description="Judge prompts; null: those of the world. inputs/judge_prompts.jsonl is downloaded."
    )
    accept_missing: int = Field(
        0,
        ge=0,
        description="Number of judgments that may be missing; the score is then marked as one of fewer.",
    )
    decoding: MtBenchDecoding = Field(MtBenchDecoding(), description="Decode settings.")


class OwnPrompts(Benchmark):
    """Answers to prompts of one's own, each compared with the start model's by a judge, in both orders."""

    question_keys, has_judge = ("prompts",), True

    prompts: str | None = Field(
        None,
        description="File of prompts in a form of docs/data.md, with optional `id` and `category`; null: "
        "instructions of the world.",
    )
    accept_missing: int = Field(
        0,
        ge=0,
        description="Number of prompts whose judgment may be missing; the score is then marked as one of fewer.",
    )
    decoding: ModelDecoding = Field(ModelDecoding(max_new_tokens=512), description="Decode settings.")


def _as_group(value: Any) -> Any:
    return {"prompts": value} if isinstance(value, str) else value


class RewardScore(Benchmark):
    """Mean reward of answers to test prompts, by a reward model, and the win rate over the start model's answers."""

    source_keys = ("model",)

    model: str = Field(description="Sequence classifier with one output: folder, hub id or id@revision.")
    prompts: Count = Field(200, description="Number of prompts, the first ones of the test pairs.")
    decoding: ModelDecoding = Field(ModelDecoding(max_new_tokens=512), description="Decode settings.")
    batch_size: Count = Field(8, description="Answers that the reward model scores together.")


class LmEval(Benchmark):
    """Tasks of EleutherAI's lm-eval: what training costs in other abilities (docs/generation.md)."""

    source_keys = ("include_path",)

    tasks: list[str] = Field(
        min_length=1, description="Names of tasks or groups of lm-eval: ifeval, gsm8k, truthfulqa_mc2, ..."
    )
    limit: Count | None = Field(None, description="Number of items of each task; null: all.")
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Number of examples in a prompt; null: the task's own."
    )
    metrics: dict[str, str] = Field(
        {},
        description="Metric and filter by task, such as `exact_match,flexible-extract` for gsm8k; other tasks show "
        "their first metric.",
    )
    batch_size: Count | Literal["auto"] = Field(
        8, description="Requests computed together; auto: the largest number that fits the GPU."
    )
    include_path: str | None = Field(
        None, description="Folder of own tasks (YAML). They may run code: read them before use."
    )


class WorldAccuracy(Settings):
    """Share of correct answers to held-out instructions of the synthetic world, sampled and greedy; no judge."""

    instructions: Count = Field(
        1000, description="Number of prompts to answer, the first ones of the test pairs."
    )
    decoding: Decoding = Field(
        Decoding(max_new_tokens=48, batch_size=500), description="Decode settings of the sampled answers."
    )


class Prices(Settings):
    """Prices of a judge's tokens."""

    input: float = Field(ge=0.0, description="Dollars per million tokens of prompts.")
    output: float = Field(ge=0.0, description="Dollars per million tokens of answers.")


class Judge(Settings):
    """The judge. Its key comes from the environment (OPENAI_API_KEY), never from the settings."""

    kind: Literal["local", "openai"] = Field(
        "local", description="local: the judge of the synthetic world; openai: an endpoint."
    )
    base_url: str = Field("https://api.openai.com/v1", description="Endpoint of an OpenAI-compatible judge.")
    model: str | None = Field(
        None,
        pattern=r"^[\x21-\x7e]+$",
        description="Judge model of the endpoint, which must be named; config/judges has examples.",
    )
    concurrency: Count = Field(8, description="Number of concurrent calls.")
    requests_per_minute: Count | None = Field(
        None, description="Maximum number of calls a minute; null: no limit."
    )
    tries: Count = Field(10, description="Attempts of a call before it counts as failed.")
    retry_seconds: Positive = Field(
        1.0,
        description="Maximum wait before the second attempt; doubled for each further attempt, up to a minute.",
    )
    timeout_seconds: Positive = Field(120.0, description="Maximum wait for an answer.")
    parameters: dict[str, Any] = Field(
        {},
        description="Fields of every request: added, or in place of a benchmark's own; null removes one. A reasoning "
        "model needs {max_tokens: null, max_completion_tokens: 4096, temperature: null}.",
    )
    log_probs: bool = Field(
        True,
        description="The endpoint gives log-probs, from which AlpacaEval reads preferences; false: labels are read "
        "from the text, and both orders of the answers are judged.",
    )
    repeats: Count = Field(1, description="Judgments of each item; the score is computed from their mean.")
    prices: Prices | None = Field(None, description="Prices of the tokens; null: the cost is not computed.")
    max_cost: Positive | None = Field(
        None, description="Maximum cost in dollars of the judgments of one result; needs `prices`."
    )
    length_lean: float = Field(
        0.3,
        ge=0.0,
        description="Local judge only: bias towards the longer answer, in logits per log length ratio.",
    )
    agreement: str | None = Field(
        None,
        description="agreement.json of `sams judge-agreement` for this judge; tables then say how well it agrees "
        "with recorded judgments.",
    )

    @property
    def asked_with(self) -> dict[str, Any]:
        """The settings on which judgments depend, besides the name of the judge."""
        if self.kind == "local":
            return {"length_lean": self.length_lean}
        return {"parameters": self.parameters, "log_probs": self.log_probs}

    @field_validator("base_url")
    @classmethod
    def _is_an_address_without_secrets(cls, url: str) -> str:
        parts = urlsplit(url)
        _ = parts.port  # raises
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("expected http(s)://host/v1 without a password; the key is OPENAI_API_KEY")
        if {name for name, _ in parse_qsl(parts.query)} - {"api-version"}:  # where a key could hide
            raise ValueError("expected no parameter but api-version (Azure); the key is OPENAI_API_KEY")
        return url

    @field_validator("parameters")
    @classmethod
    def _leaves_the_prompt_alone(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"model", "messages", "n", "stream", "logprobs"} & parameters.keys()):
            raise ValueError(f"{', '.join(taken)}: set by the benchmark, `judge.model` or `judge.log_probs`")
        return parameters

    @model_validator(mode="after")
    def _an_endpoint_needs_a_model(self) -> Self:
        if self.kind == "openai" and self.model is None:
            raise ValueError("kind openai needs `model`, the judge's name; config/judges has examples")
        return self

    @model_validator(mode="after")
    def _a_limit_needs_prices(self) -> Self:
        if self.max_cost is not None and self.prices is None:
            raise ValueError("`max_cost` needs `prices`: {input: ..., output: ...}, $ per million tokens")
        return self


class Benchmarks(Settings):
    """The benchmarks that are scored, their inputs and the judge."""

    judge: Judge = Field(Judge(), description="The judge.")
    alpaca_eval: AlpacaEval | None = Field(None, description="AlpacaEval 2; null skips it.")
    mt_bench: MtBench | None = Field(None, description="MT-Bench; null skips it.")
    own_prompts: Annotated[
        OwnPrompts | None, BeforeValidator(_as_group, json_schema_input_type=str | OwnPrompts | None)
    ] = Field(None, description="Comparison on prompts of one's own, or the file of prompts; null skips it.")
    reward_model: RewardScore | None = Field(
        None, description="Rewards of answers to test prompts; null skips them."
    )
    lm_eval: LmEval | None = Field(
        None, description="Tasks of lm-eval, an extra of this package; null skips them."
    )

    @property
    def scored(self) -> dict[str, Benchmark]:
        """The benchmarks that are scored, by key."""
        return {name: group for name, group in self if isinstance(group, Benchmark)}

    @property
    def judged(self) -> dict[str, Benchmark]:
        """The benchmarks that a judge scores, by key."""
        return {name: group for name, group in self.scored.items() if group.has_judge}


def benchmark_settings() -> dict[str, type[Benchmark]]:
    """Return the class of each benchmark's settings, by key."""
    kinds = {name: get_args(field.annotation) for name, field in Benchmarks.model_fields.items()}
    return {name: kind[0] for name, kind in kinds.items() if kind and issubclass(kind[0], Benchmark)}
