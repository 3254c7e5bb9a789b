import torch

from bilevel_envs.worlds.tabular.model import Table
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy

POLICY = BoltzmannPolicy(torch.tensor([[[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]]], dtype=torch.float64).log())


def test_draws_from_a_boltzmann_policy_are_those_made_by_hand():
    # state 0: below ¼ the first action, then the second, never the third; state 1: never the first
    state, uniform = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0.2, 0.25, 0.999999, 0.0, 0.5])
    assert POLICY.sample(state, uniform).tolist() == [0, 1, 1, 1, 2]
    assert int(POLICY.sample(0, 0.1)) == 0


def test_expectations_and_log_probabilities_are_those_made_by_hand():
    q = Table(torch.tensor([[[4.0, 8.0, 100.0], [100.0, 2.0, -6.0]]], dtype=torch.float64))
    assert POLICY.expect(q, torch.tensor([0, 1])).tolist() == [7.0, -2.0]
    assert POLICY.log_prob(torch.tensor([0, 1]), torch.tensor([1, 2])).exp().tolist() == [0.75, 0.5]
