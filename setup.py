"""Puts the workflow's files into a wheel, as `sams/source`. The rest of the build is in pyproject.toml.

In a checkout they are used where they are, so an editable install gets no copies.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
FOLDERS = ("config", "profiles", "rules", "workflow")
FILES = ("Snakefile", "envs/sams.yaml")
SKIPPED = {".pyc"}


class BuildWithWorkflow(build_py):
    """Builds the package together with the workflow's files."""

    def workflow_files(self) -> list[str]:
        found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
        files = [path for path in found if path.is_file() and path.suffix not in SKIPPED]
        return sorted([*FILES, *(path.relative_to(ROOT).as_posix() for path in files)])

    def run(self) -> None:
        if not self.editable_mode:  # an earlier build's files would stay, also those that are deleted here
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            for file in self.workflow_files():
                target = Path(self.build_lib, "sams", "source", file)
                self.mkpath(str(target.parent))
                self.copy_file(str(ROOT / file), str(target))

    def get_source_files(self) -> list[str]:
        """Return what an archive of sources must hold, too."""
        return [*super().get_source_files(), *self.workflow_files()]


setup(cmdclass={"build_py": BuildWithWorkflow})
