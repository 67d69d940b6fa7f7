"""What all settings share: groups that refuse unknown keys, and the types of their values."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """A group of settings: unknown keys are refused, values are never changed after parsing."""

    # No number may be NaN or infinite: recipes are JSON, which has neither, and no setting means anything by them.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False
    )
