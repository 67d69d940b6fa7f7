"""What several fault tests start from."""

import time
from pathlib import Path

import pytest

from tests.faults.study import Workflow, overlay
from tests.test_tracking import workplace
from tests.training.conftest import prepared

__all__ = ["prepared", "undisturbed", "workplace"]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """Results of a run that nobody disturbs, and how long each rule's first job takes there."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Workflow(folder, "--configfile", overlay(folder))
    try:
        began: dict[str, float] = {}
        took: dict[str, float] = {}
        while run.process.poll() is None:
            now = time.monotonic()
            for rule in run.begun():
                began.setdefault(rule, now)
            for rule in run.finished():
                took.setdefault(rule, now - began[rule])
            time.sleep(0.1)
        assert run.process.returncode == 0, run.output()[-6000:]
    finally:
        run.clear()
    return folder, took
