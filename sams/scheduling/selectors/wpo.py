"""Selector `wpo`: weights all pairs by how likely the policy is to write their responses.

    w = exp(mean over tokens of log policy(chosen) + mean over tokens of log policy(rejected))

Source: Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization", arXiv 2406.11827: off-policy
pairs count as if they were sampled from the policy. This is the paper's length-normalised weight without its
alignment. The authors' code and TRL's `use_weighting` also divide each token's probability by the sum of the squares
of the distribution it is drawn from, so that a response sampled from the policy has a weight near 1; that needs the
logits of each token, which a selector does not see. The authors' code clips w at 1, which this w never exceeds.
"""

from sams.scheduling.selectors.base import Choice, Selector, Setup, View, top_k
from sams.scheduling.selectors.values import mean_one, per_token, policy, positive


class Wpo(Selector):
    """Chooses every pair, with weight w.

    Args:
        setup: inputs of the training job.
        normalise: whether weights are scaled to a mean of 1 over the batch; the paper's are not, and are small for
            an unsure policy, which acts as a smaller learning rate.
    """

    def __init__(self, setup: Setup, normalise: bool = False) -> None:
        super().__init__(setup)
        self.normalise = normalise

    def choose(self, view: View, k: int) -> Choice:
        chosen, rejected = per_token(view, policy(view))
        scores = chosen + rejected
        indices = top_k(scores, k)
        scores = scores[indices]
        return Choice(indices, weights=mean_one(scores) if self.normalise else positive(scores.exp()))
