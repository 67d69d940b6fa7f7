"""Where the files of the workflow are: Snakefile, rules, config, profiles, scripts and captions."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
BUNDLED = PACKAGE / "source"
"""Folder into which setup.py puts the files when it builds a wheel. A checkout has none."""
IS_CHECKOUT = not BUNDLED.is_dir()
SOURCE = PACKAGE.parent if IS_CHECKOUT else BUNDLED
"""Folder with the Snakefile: the top of a checkout, or a folder of the installed package."""
SNAKEFILE = SOURCE / "Snakefile"


def here_or_packaged(name: str) -> Path:
    """Return the path of a file: relative to the current folder if it exists there or nowhere, else in `SOURCE`."""
    packaged = SOURCE / name
    return packaged if packaged.is_file() and not Path(name).is_file() else Path(name)
