"""Names of the files in a model's folder, as patterns."""

from pathlib import Path

from sams.runtime.files import CARD

WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZER = (
    "token*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat*",
    "additional_chat_templates/*",
)
LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
BESIDE_WEIGHTS = ("config.json", "generation_config.json", CARD, *LICENCES, *TOKENIZER)
"""Files that an export copies or reads in addition to the weights of its start model."""


def matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files of a folder that match one of the patterns, in the order of the patterns."""
    found = (path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file())
    return list(dict.fromkeys(found))


def is_weights(path: str) -> bool:
    """Return whether a path is that of a file of weights."""
    return any(Path(path).match(pattern) for pattern in WEIGHTS)
