"""The policy: which model it is and how it computes."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sams.study.settings.base import Count, Overlay, Settings

TEMPLATE_DATE = "2024-07-26"
"""The date that Llama 3's templates take where they cannot ask for today's."""

# YAML reads an unquoted date as a date.
Day = Annotated[
    str,
    BeforeValidator(lambda value: value.isoformat() if isinstance(value, date) else value),
    AfterValidator(lambda text: date.fromisoformat(text).isoformat()),
]


class ModelSource(Settings):
    """Where a model and its tokenizer come from."""

    path: str | None = Field(
        None, description="Hub id or local folder; null builds a model from `architecture`."
    )
    revision: str | None = Field(None, description="Hub revision (commit) of `path`.")
    allow_pickle: bool = Field(
        False,
        description="Read pickled weights (pytorch_model.bin) where there are no safetensors; tensors only, "
        "with weights_only.",
    )
    architecture: dict[str, Any] | None = Field(
        None, description="transformers config with `model_type`, for a model built from scratch."
    )
    model_type: Literal["llama", "mistral", "gemma2", "gpt_neox"] | None = Field(
        None, description="Architecture class of `path`; a rehearsal builds a small model of it."
    )
    tokenizer: Literal["words", "bpe"] | None = Field(
        None,
        description="Tokenizer trained on the study's data (with `architecture`); null: that of `path`.",
    )
    vocab_size: Count = Field(4096, description="Maximum vocabulary size of a trained tokenizer.")
    control_tokens: list[str] = Field(
        [], description="Control tokens of a trained tokenizer, as the chat template writes them."
    )
    chat_template: str | None = Field(
        None,
        description="File with a chat template (jinja); null uses the tokenizer's template, or a plain one if it has "
        "none.",
    )
    template_date: Day = Field(
        TEMPLATE_DATE,
        description="The day, YYYY-MM-DD, that a chat template gets for today's date: token ids do not change from "
        "day to day.",
    )


class ModelKeys(ModelSource):
    """Keys of a model."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="Attention kernel for padded rows and for generation."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Compute type; master weights and log-prob sums are always float32."
    )
    activation_checkpointing: bool | Literal["selective", "auto"] = Field(
        False,
        description="Recompute activations in the backward pass; selective: all but matrix products and attention; "
        "auto: as little as fits in memory.",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="Compile blocks and log-probs with torch.compile: one to two minutes at the start, faster steps; "
        "auto: on GPUs, for 300 steps or more, unless launch.deterministic is set.",
    )
    packing: bool = Field(
        True,
        description="Rows without padding, in which the prompt of a pair is computed once. Each job first tests that "
        "the model's log-probs stay the same, and pads if not.",
    )


class Model(ModelKeys):
    """The policy: a hub id or folder, or a fresh model built from an architecture config."""

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


class Export(Settings):
    """Exported models: Hugging Face folders with all that the start model has next to its weights."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type of the weights; auto: that of the start model, or the compute type where there is none.",
    )


class MethodModel(ModelKeys, Overlay):
    """Model of a method that is scored and not trained. Keys that are not given are those of `model`."""
