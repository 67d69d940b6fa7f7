"""Rewards of answers by prompt, and how often one model's are larger than another's."""

from pathlib import Path

from sams.scoring.inputs import read_rows


def read_rewards(path: Path) -> dict[str, float]:
    """Return the rewards of a file by prompt; answers without one are left out."""
    return {row["id"]: row["reward"] for row in read_rows(path) if row["reward"] is not None}


def wins(rewards: dict[str, float], base: dict[str, float]) -> dict[str, float]:
    """Return 100 for each prompt with a larger reward than the base's, 50 for a tie and 0 for a smaller one."""
    return {
        name: 50.0 * (1 + (reward > base[name]) - (reward < base[name]))
        for name, reward in rewards.items()
        if name in base
    }
