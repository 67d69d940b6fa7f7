"""Benchmarks: decoding, AlpacaEval 2, MT-Bench, the judge."""

from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator, model_validator

from sams.study.settings.base import Count, Positive, Settings


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
    samples: Count = Field(
        1, description="Answers to each prompt, each from a seed of its own; AlpacaEval has room for one."
    )
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="What decodes; vllm has to be installed."
    )


class OnPolicyDecoding(Decoding):
    """How pairs of the model's own answers are sampled (SimPO, arXiv 2405.14734, appendix)."""

    temperature: float = Field(0.8, gt=0.0, description="Greedy answers would all be alike.")
    samples: int = Field(5, ge=2, description="Answers to each prompt.")


class OnPolicy(Settings):
    """Preference pairs of a model's own answers: of several to each prompt, the best and the worst."""

    prompts: str = Field(description="Rows with the key `prompt`: file or hub id.")
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
    """How answers to MT-Bench are decoded: at FastChat's temperatures unless others are set."""

    category_temperatures: dict[str, Annotated[float, Field(ge=0.0)]] = Field(
        MT_BENCH_TEMPERATURES, description="Temperature by category; `temperature` for those not named."
    )


class AlpacaEval(Settings):
    """AlpacaEval 2: the baseline's answers and the table that length control needs."""

    reference_outputs: str | None = Field(
        None,
        description="Baseline outputs (JSON, gzip or not); null: the world's own. "
        "inputs/alpaca_eval_gpt4_baseline.json is fetched.",
    )
    difficulty: str | None = Field(
        None,
        description="Difficulty table; null: made for the world's own instructions. "
        "inputs/df_gamed.csv is fetched.",
    )
    decoding: Decoding = Field(Decoding(), description="Decode settings.")


class MtBench(Settings):
    """MT-Bench: its questions, references and judge prompts."""

    questions: str | None = Field(
        None,
        description="Two-turn questions; null: the world's own. inputs/question.jsonl is fetched.",
    )
    references: str | None = Field(
        None, description="Reference answers; null: the world's own. inputs/gpt-4.jsonl is fetched."
    )
    judge_prompts: str | None = Field(
        None, description="Judge prompts; null: the world's own. inputs/judge_prompts.jsonl is fetched."
    )
    decoding: MtBenchDecoding = Field(MtBenchDecoding(), description="Decode settings.")


class WorldAccuracy(Settings):
    """Share of right answers to held-out instructions of the synthetic world, sampled and greedy; no judge."""

    instructions: Count = Field(
        1000, description="Prompts of the test pairs that are answered, the first ones."
    )
    decoding: Decoding = Field(
        Decoding(max_new_tokens=48, batch_size=500), description="Decode settings of the sampled answers."
    )


class Prices(Settings):
    """What a judge's tokens cost."""

    input: float = Field(ge=0.0, description="Dollars per million tokens of prompts.")
    output: float = Field(ge=0.0, description="Dollars per million tokens of answers.")


class Judge(Settings):
    """Who grades. The key comes from the environment (OPENAI_API_KEY), never from here."""

    kind: Literal["local", "openai"] = Field(
        "local", description="local: the world's own judge; openai: an endpoint."
    )
    base_url: str = Field("https://api.openai.com/v1", description="Endpoint of an OpenAI-compatible judge.")
    model: str | None = Field(
        None,
        pattern=r"^[\x21-\x7e]+$",
        description="Judge model of an endpoint; null: each benchmark's own (GPT-4 Turbo).",
    )
    concurrency: Count = Field(8, description="Calls in flight.")
    requests_per_minute: Count | None = Field(None, description="Calls begun in a minute; null: no limit.")
    tries: Count = Field(10, description="Tries of a call before it counts as failed.")
    retry_seconds: Positive = Field(
        1.0, description="Longest wait before the second try; doubled for each further one, up to a minute."
    )
    timeout_seconds: Positive = Field(120.0, description="Longest wait for an answer.")
    prices: Prices | None = Field(None, description="Prices of the tokens; null: cost is not reckoned.")
    max_cost: Positive | None = Field(
        None, description="Most dollars that one result's judgments may cost; needs `prices`."
    )
    length_lean: float = Field(
        0.3,
        ge=0.0,
        description="Local judge only: leaning to the longer answer, in logits per log length ratio.",
    )

    @field_validator("base_url")
    @classmethod
    def _is_an_address_without_secrets(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("expected http(s)://host/v1 without a password; the key is OPENAI_API_KEY")
        if {name for name, _ in parse_qsl(parts.query)} - {"api-version"}:  # where a key could hide
            raise ValueError("expected no parameter but api-version (Azure); the key is OPENAI_API_KEY")
        return url

    @model_validator(mode="after")
    def _a_limit_needs_prices(self) -> Self:
        if self.max_cost is not None and self.prices is None:
            raise ValueError("`max_cost` needs `prices`: {input: ..., output: ...}, $ per million tokens")
        return self


class Benchmarks(Settings):
    """Which benchmarks are scored, on what and by whom."""

    judge: Judge = Field(Judge(), description="The judge.")
    alpaca_eval: AlpacaEval | None = Field(None, description="AlpacaEval 2; null leaves it out.")
    mt_bench: MtBench | None = Field(None, description="MT-Bench; null leaves it out.")
