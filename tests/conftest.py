"""Environment and fixtures of all tests: one thread a process, no network, small data."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
for secret in ("OPENAI_API_KEY", "MLFLOW_TRACKING_URI", "SAMS_JOB"):
    os.environ.pop(secret, None)

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def patience(seconds: float) -> float:
    """Return a time-out for work of some seconds: three times as long, and longer on a machine under load."""
    return seconds * max(3.0, os.getloadavg()[0])


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs, except with `-m gpu`, so that other tests give the same figures on every machine."""
    if config.option.markexpr != "gpu":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real preference data and published scores, which some machines have next to the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not on this machine ({folder})")
    return folder


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small tokenised data set."""
    from tests import tiny

    return tiny.write_tokens(tmp_path_factory.mktemp("tokens"))
