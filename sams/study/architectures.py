"""Find the transformers config of a study's model without its weights."""

from pathlib import Path
from typing import Any

from sams.runtime.errors import UserError
from sams.runtime.files import read_json
from sams.runtime.source import SOURCE, here_or_packaged
from sams.study.settings import Model

FOLDER = Path("config") / "models"


def config_of(settings: Model) -> dict[str, Any]:
    """Return the transformers config of a model, with its `model_type`, without access to a hub.

    It comes from the study's `architecture`, a local folder, or config/models.

    Raises:
        UserError: the model is neither built from scratch, nor in a folder, nor in config/models.
    """
    if settings.architecture is not None:
        return {"vocab_size": settings.vocab_size, **settings.architecture}
    assert settings.path is not None
    for file in (Path(settings.path) / "config.json", here_or_packaged(f"{FOLDER}/{settings.path}.json")):
        if file.is_file():
            config: dict[str, Any] = read_json(file)
            return config
    known = sorted(
        str(file.relative_to(folder).with_suffix(""))
        for folder in {FOLDER.resolve(), SOURCE / FOLDER}
        for file in folder.rglob("*.json")
    )
    raise UserError(
        f"the architecture of {settings.path} is not known",
        where="model.path",
        remedy=f"put its config.json at config/models/{settings.path}.json (there are: {', '.join(known)})",
    )
