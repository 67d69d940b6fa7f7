"""The scheduler: rewards and networks."""

from typing import Any, Literal

from pydantic import Field, model_validator

from sams.study.settings.base import Count, Overlay, Positive, Settings, Share

# Sizes by preset; sizes given in the study override them. `paper`: 445 M parameters at a policy width of 4096.
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

# Keys that the weights depend on: networks that differ in one of them cannot load each other's weights.
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


class SchedulerKeys(Settings):
    """Keys of a scheduler."""

    preset: Literal["small", "paper"] = Field(
        "small",
        description="Sizes of the networks that are not given below: those of the paper, or small ones.",
    )

    gamma: Share = Field(
        0.5, description="Weight of the batch-level reward against the sample-level one (Eq. 8)."
    )
    delta: Share = Field(0.5, description="Weight of the margin against the uncertainty term (Eq. 7).")
    uncertainty: Literal["sum", "mean"] = Field(
        "sum",
        description="Chosen log-prob in the uncertainty term (Eq. 7): summed over tokens, or their mean.",
    )
    exploration: float = Field(
        0.01, ge=0.0, description="lambda: weight of the output of the exploration network."
    )
    merge: Literal["concat", "mean", "difference"] = Field(
        "concat", description="How the contexts of the chosen and the rejected response are merged."
    )
    connector_width: Count = Field(64, description="Hidden width of the connector (paper: 1024).")
    encoder: str = Field(
        "random", description="all-MiniLM-L6-v2, a folder with that model, or `random` for a small fresh one."
    )
    encoder_width: Count = Field(64, description="Width of a `random` encoder (all-MiniLM-L6-v2 has 384).")
    encoder_layers: Count = Field(2, description="Layers of a `random` encoder.")
    width: Count = Field(128, description="Width of the residual networks (paper: 4096).")
    depth: int = Field(4, ge=3, description="Linear layers of each residual network (paper: 16).")
    block: Count = Field(
        4, description="Neighbouring activations averaged for the exploration network (paper: 16)."
    )
    learning_rate: Positive = Field(1.0e-4, description="Learning rate of Adam, one optimiser per network.")
    weight_decay: float = Field(1.0e-5, ge=0.0, description="Adam weight decay.")
    updates_per_round: Count = Field(1, description="Fits of both networks per round.")
    replay_rounds: Count = Field(40_000, description="Maximum number of rounds in the replay pool.")
    replay_bytes: Count = Field(
        16_000_000_000,
        description="Maximum size of the replay pool in bytes, over all processes; its files take 3 times that.",
    )
    replay_sample: int = Field(
        32, ge=0, description="Arms drawn from the pool for each fit, in addition to the newest."
    )


class Scheduler(SchedulerKeys):
    """The scheduler network and its rewards (SamS Eq. 6 to 11). Default sizes are those of preset `small`."""

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


class MethodScheduler(SchedulerKeys, Overlay):
    """Scheduler of one method. Keys that are not given are those of `scheduler`."""
