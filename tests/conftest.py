"""What all tests share: no threads beside pytest's workers, nothing off this machine, toy models."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
for secret in ("OPENAI_API_KEY", "MLFLOW_TRACKING_URI", "SAMS_JOB"):
    os.environ.pop(secret, None)

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Only `-m gpu` sees the GPUs: all other tests give the same figures where there are some."""
    if config.option.markexpr != "gpu":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real preference data and published scores, which lie beside the project on some machines."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not on this machine ({folder})")
    return folder


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenised toy data set."""
    from tests import tiny

    return tiny.write_tokens(tmp_path_factory.mktemp("tokens"))
