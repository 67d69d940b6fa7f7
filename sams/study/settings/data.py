"""Examples and preference pairs: the synthetic world, or files and hub data sets."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from sams.study.settings.base import Count, Settings, Share

Form = Literal["auto", "hh", "messages", "shp", "stack_exchange"]
Column = Literal["prompt", "system", "history", "messages", "chosen", "rejected", "response"]


class World(Settings):
    """The synthetic world of short instructions with checkable answers."""

    seed: int = Field(0, ge=0, description="Seed of every example.")
    per_seed: bool = Field(
        False, description="Each seed of the study has its own data, those of world `seed` + seed."
    )
    sft_examples: Count = Field(32_768, description="Supervised examples.")
    imperfect_share: Share = Field(0.4, description="Share of the supervised answers that are wrong.")
    train_pairs: Count = Field(4096, description="Preference pairs for training.")
    test_pairs: Count = Field(1000, description="Clean preference pairs for testing.")
    validation_pairs: int = Field(
        0,
        ge=0,
        description="Pairs for choosing settings, with the same share of flips as the training pairs.",
    )
    flipped_share: Share = Field(
        0.3, description="Share of training and validation pairs whose labels are swapped."
    )
    verbose_share: Share = Field(0.3, description="Share of answers given in a full sentence.")
    reference_error_share: Share = Field(
        0.4, description="Share of wrong answers in the AlpacaEval baseline."
    )


class Data(Settings):
    """Where examples and preference pairs come from: the synthetic world, or files and hub data sets."""

    world: World | None = Field(None, description="Synthetic world; null if `train` and `test` name data.")
    train: str | None = Field(
        None, description="Preference pairs: file (JSONL, JSON, CSV, TSV or Parquet, gzip or not) or hub id."
    )
    test: str | float | None = Field(
        None,
        description="Held-out preference pairs, in the same forms; or the share of the prompts of `train` that is "
        "held out, all pairs of a prompt together.",
    )
    split_seed: int = Field(
        0,
        ge=0,
        description="Seed of the prompts that a share in `test` holds out. Which they are depends on seed and prompt "
        "only, not on the other rows.",
    )
    sft: str | None = Field(
        None, description="Supervised examples; null uses the chosen responses of `train`."
    )
    sft_turns: Literal["all", "last"] = Field(
        "all",
        description="Assistant turns of a conversation in `sft` that are learned: each as an example of its own, "
        "whose prompt is the conversation before it; or the last alone.",
    )
    columns: dict[Column, str] = Field(
        {}, description="Names of columns in your rows, by the names known here: `{prompt: question}`."
    )
    ignored_columns: list[str] = Field(
        [],
        description="Columns that the model must not see. Other unknown columns are refused, unless their names say "
        "that they are ids, scores, sources and the like.",
    )
    keep_columns: list[str] = Field(
        [],
        description="Columns of `train` with numbers that selectors read (docs/selectors.md): a score, a rating, a "
        "held-out loss. Every row must have them.",
    )
    form: Form = Field(
        "auto",
        description="Form of the pairs (docs/studies.md); auto detects it from the first row. The world is written "
        "in this form and read back.",
    )
    broken_rows: Literal["refuse", "drop"] = Field(
        "refuse", description="Rows that cannot be read: end the stage, or leave them out and report them."
    )
    shared_prompts: Literal["report", "drop"] = Field(
        "report",
        description="Training pairs and examples whose prompt is also in `test`: report them, or leave them out.",
    )
    published_rows: dict[Literal["train", "test"], Count] = Field(
        {}, description="Published number of rows of each split."
    )
    other_row_counts: Literal["report", "refuse"] = Field(
        "report", description="A number of rows other than the published one: report it, or end the stage."
    )
    max_length: Count = Field(1024, description="Maximum length of prompt and response together, in tokens.")
    max_prompt_length: Count = Field(
        512, description="Maximum length of the prompt in tokens; longer prompts lose their beginning."
    )

    @field_validator("test")
    @classmethod
    def _share(cls, test: str | float | None) -> str | float | None:
        if isinstance(test, float) and not 0.0 < test < 1.0:
            raise ValueError(f"expected a file, a hub id, or a share between 0 and 1, found {test:g}")
        return test

    @property
    def sources(self) -> dict[str, str]:
        """The files and data sets that are named, by key."""
        named = {"train": self.train, "test": self.test, "sft": self.sft}
        return {key: source for key, source in named.items() if isinstance(source, str)}

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if self.world is None and (self.train is None or self.test is None):
            raise ValueError("give `train` and `test` (files or hub ids), or a synthetic `world`")
        if self.world is not None and (self.train or self.test or self.sft):
            raise ValueError(
                "`world` and files exclude each other: set `world: null`, or `train`, `test` and `sft` to null"
            )
        if self.world is not None and self.world.validation_pairs and self.form != "auto":
            raise ValueError("`world.validation_pairs` are not written in another form: set `form: auto`")
        own = self.columns or self.ignored_columns or self.keep_columns
        if own and self.form in ("shp", "stack_exchange"):
            raise ValueError(
                f"`columns`, `ignored_columns` and `keep_columns` are not for rows of `form: {self.form}`"
            )
        if self.keep_columns and self.world is not None:
            raise ValueError("`keep_columns` are those of a file or data set, and `world` is given")
        if len(set(self.keep_columns)) < len(self.keep_columns):
            raise ValueError("`keep_columns` names a column twice")
        if isinstance(self.test, float) and "test" in self.published_rows:
            raise ValueError("`published_rows.test` is of a test split, and `test` is a share of `train`")
        if self.max_prompt_length >= self.max_length:
            raise ValueError("`max_prompt_length` must be below `max_length`, to leave room for a response")
        return self
