from dataclasses import replace

import numpy as np
import pytest
import torch

from bilevel_envs import TabularModel
from bilevel_envs.worlds.tabular.model import Table, closed_cdf


def two_states(**changes):
    """State 0 goes to 1 or stays; state 1 ends."""
    tables = {
        "transition": torch.tensor([[[[0.5, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]], dtype=torch.float64),
        "initial": torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        "r_leader": torch.zeros(1, 2, 2).double(),
        "r_follower": torch.zeros(1, 2, 2).double(),
        "continues": torch.tensor([[[1.0, 1.0], [0.0, 0.0]]], dtype=torch.float64),
    }
    return TabularModel(**(tables | changes))


def test_expected_next_counts_only_what_goes_on():
    v = torch.tensor([[2.0, 10.0]], dtype=torch.float64)
    # state 0: action 0 → (2 + 10) / 2, action 1 → 2; state 1 ends, so nothing follows
    expected = torch.tensor([[[6.0, 2.0], [0.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(two_states().expected_next(v), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"transition": torch.full((1, 2, 2, 2), 0.55).double()},
            r"at \(0, 0, 0\) it sums to 1.1.*logits\.softmax",
        ),
        ({"transition": torch.ones(1, 2, 2, 3).double() / 3}, r"`transition` must have shape \[..., 2, 2, 2\]"),
        (
            {"initial": torch.tensor([[1.5, -0.5]], dtype=torch.float64)},
            r"`initial` .*smallest entry is -0.5",
        ),
        (
            {"r_follower": torch.full((1, 2, 2), float("nan")).double()},
            r"`r_follower` must be finite; at \(0, 0, 0\)",
        ),
        ({"r_leader": torch.zeros(2, 2).double()}, r"`r_leader` must have one leading runs axis, of length 1"),
        (
            {"transition": torch.full((2, 2, 2), 0.5).double()},
            r"`transition` must be \[run, state, action, next state\], .* got shape \[2, 2, 2\]",
        ),
        ({"continues": torch.full((1, 2, 2), 0.5).double()}, "`continues` must be 0 where the episode ends"),
    ],
)
def test_bad_tables_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        two_states(**change)


def test_with_rewards_refuses_rewards_of_the_wrong_shape():
    with pytest.raises(ValueError, match="`r_leader` must have shape"):
        two_states().with_rewards(torch.zeros(1, 3, 2), torch.zeros(1, 2, 2))


def test_cdf_closes_at_the_last_possible_outcome():
    # thirds do not add up to 1 in floating point; the impossible last outcome must never be drawn
    cdf = closed_cdf(np.array([[1 / 3, 1 / 3, 1 / 3, 0.0]]))
    assert cdf[0, 2] == 1.0


def test_table_refuses_states_without_the_runs_axis():
    table = Table(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="leading runs axis of 3"):
        table(torch.zeros(2, 5, dtype=torch.long))
    assert Table(torch.arange(4.0)[None])(2) == 2.0


def test_replacing_the_transition_replaces_what_is_derived_from_it():
    model = two_states()
    stays = torch.eye(2, dtype=torch.float64)[None, :, None, :].expand(1, 2, 2, 2).contiguous()
    changed = replace(model, transition=stays)
    v = torch.tensor([[2.0, 10.0]], dtype=torch.float64)
    assert changed.expected_next(v)[0, 0].tolist() == [2.0, 2.0]
    assert model.with_rewards(model.r_leader + 1, model.r_follower).structure is model.structure


def test_single_precision_tables_are_refused():
    with pytest.raises(TypeError, match="`transition` must be a float64 torch tensor, got a tensor of torch.float32"):
        two_states(transition=torch.full((1, 2, 2, 2), 0.5))


def test_tables_refuse_actions_out_of_range():
    table = Table(torch.arange(24.0).view(3, 4, 2))
    assert table(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0])).tolist() == [0.0, 11.0, 20.0]
    with pytest.raises(IndexError):
        table(torch.zeros(3, 1, dtype=torch.long), torch.full((3, 1), 2))


def test_a_resolvent_of_other_runs_is_refused():
    model = two_states()
    with pytest.raises(ValueError, match="`policy` must have a leading runs axis"):
        model.resolvent(torch.full((2, 2, 2), 0.5), 0.9, torch.ones(3, 2))
