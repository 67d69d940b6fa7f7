import numpy as np
import pytest
from scipy.special import expit

from sams.runtime.errors import UserError
from sams.scoring.difficulty import fit_difficulty, make_difficulty, std_delta_len
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge


def rows(*lengths: int) -> list[dict[str, str]]:
    return [
        {"instruction": str(number), "output": "x" * length, "generator": "m"}
        for number, length in enumerate(lengths)
    ]


def test_length_differences_are_the_baseline_minus_the_output_in_standard_deviations() -> None:
    gap = std_delta_len(rows(10, 10, 10), rows(5, 10, 21), "f")
    assert gap * np.array([5.0, 0.0, -11.0]).std(ddof=1) == pytest.approx([5.0, 0.0, -11.0])


@pytest.mark.parametrize("lengths", [(5, 5, 5), (7, 7, 7), (510, 511, 510)])
def test_constant_length_differences_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="differ by a nearly constant amount"):
        std_delta_len(rows(5, 5, 5), rows(*lengths), "f")


def test_difficulties_and_length_weights_are_found_again() -> None:
    draw = np.random.default_rng(0)
    theta, phi = draw.normal(size=(8, 1)), draw.normal(size=(8, 1))
    gamma, gaps = draw.normal(size=200), draw.normal(size=(8, 200))
    found, weights = fit_difficulty(expit(theta + phi * np.tanh(gaps) + gamma), gaps)
    assert np.corrcoef(found, gamma)[0, 1] > 0.98
    assert found.mean() == pytest.approx(0.0, abs=1e-9)
    assert np.corrcoef(weights, phi[:, 0])[0, 1] > 0.98


@pytest.mark.parametrize(
    ("preferences", "problem"),
    [
        (np.full((2, 5), 0.5), "at least 3 models"),
        (1 + np.linspace(0, 1, 15).reshape(3, 5), "between 0 and 1; subtract 1"),
        (np.full((3, 5), 0.5), "are equal"),
    ],
)
def test_preferences_that_identify_nothing_are_refused(preferences: np.ndarray, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        fit_difficulty(preferences, np.zeros_like(preferences))


def test_only_a_world_can_have_a_table_of_its_own(tmp_path) -> None:
    with pytest.raises(UserError, match="only be made for the synthetic world"):
        make_difficulty(ScoreRecipe(judge=Judge(), world=None), tmp_path, tmp_path / "difficulty.csv")
