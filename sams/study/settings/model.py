"""The policy: which model, how it computes."""

from typing import Any, Literal

from pydantic import Field, model_validator

from sams.study.settings.base import Count, Settings


class Model(Settings):
    """The policy: a hub id or folder, or a fresh model built from an architecture config."""

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
        None, description="Architecture class of `path`, which a rehearsal builds small."
    )
    tokenizer: Literal["words", "bpe"] | None = Field(
        None,
        description="Tokenizer trained on the study's data (with `architecture`); null takes the model's own.",
    )
    vocab_size: Count = Field(4096, description="Upper limit of the trained tokenizer's vocabulary.")
    control_tokens: list[str] = Field(
        [], description="Control tokens of a trained tokenizer, which the chat template writes."
    )
    chat_template: str | None = Field(
        None, description="File with a chat template (jinja); null takes the tokenizer's own, or a plain one."
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="Attention kernel of padded rows and of generation."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Compute type; master weights and log-prob sums are always float32."
    )
    activation_checkpointing: bool | Literal["auto"] = Field(
        False,
        description="Recompute activations in the backward pass; auto: where they would not fit in memory.",
    )
    compile: bool = Field(
        False,
        description="Compile norms and MLPs with torch.compile: a minute at the start, faster steps on GPUs.",
    )
    packing: bool = Field(
        True,
        description="Rows without padding, in which a pair's prompt is computed once, if the model's log-probs "
        "stay the same; that is tried at the start of each job.",
    )

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
