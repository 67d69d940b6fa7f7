"""Benchmarks: decoding, AlpacaEval 2, MT-Bench, the judge."""

from typing import Annotated, Literal

from pydantic import Field

from sams.settings.base import Count, Settings


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
