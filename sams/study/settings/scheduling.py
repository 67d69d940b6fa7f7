"""The scheduler: its rewards and networks."""

from typing import Any, Literal

from pydantic import Field, model_validator

from sams.study.settings.base import Count, Positive, Settings, Share

# Sizes by preset; a size given beside the preset wins. `paper`: 445 M parameters at a policy width of 4096.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "paper": {
        "connector_width": 1024,
        "encoder": "all-MiniLM-L6-v2",
        "width": 4096,
        "depth": 16,
        "block": 16,
    },
}

# What a scheduler's weights depend on: networks that differ in one of these cannot take each other's.
NETWORK_KEYS = (
    "merge",
    "connector_width",
    "encoder",
    "encoder_width",
    "encoder_layers",
    "width",
    "depth",
    "block",
)


class Scheduler(Settings):
    """The scheduler network and its rewards (SamS Eq. 6 to 11). Default sizes are those of preset `small`."""

    preset: Literal["small", "paper"] = Field(
        "small", description="Sizes of the networks where they are not given: `paper` is the paper's."
    )

    gamma: Share = Field(
        0.5, description="Weight of the batch-level reward against the sample-level one (Eq. 8)."
    )
    delta: Share = Field(0.5, description="Weight of the margin against the uncertainty term (Eq. 7).")
    uncertainty: Literal["sum", "mean"] = Field(
        "sum", description="Chosen log-prob of the uncertainty term: over all tokens, or per token (Eq. 7)."
    )
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
    replay_bytes: Count = Field(
        16_000_000_000,
        description="Most bytes of the replay pool, of all processes together; its files take up to 3 times that.",
    )
    replay_sample: int = Field(
        32, ge=0, description="Arms drawn from the pool for each fit, besides the newest."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        return {**PRESETS[preset], **given} if preset in PRESETS else given

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
