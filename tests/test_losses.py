"""Advantages and losses against numbers computed by hand."""

import math

import numpy as np
import pytest
import torch

from rlgen.algorithms.losses import (
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    foresight,
    gae,
    group_advantages,
    group_regression,
    kl_k3,
    leave_one_out,
    ratios,
    steered,
    token_weights,
    whiten,
)


def test_group_advantages_by_hand():
    rewards = torch.tensor([1.0, 3.0, 0.5, 0.5, 2.0])
    group = torch.tensor([0, 0, 1, 1, 2])
    # Group 0: mean 2, sample standard deviation sqrt(2). Group 1 is all equal. Group 2 is alone.
    expected = torch.tensor([-1 / (math.sqrt(2) + 1e-4), 1 / (math.sqrt(2) + 1e-4), 0.0, 0.0, 0.0])
    torch.testing.assert_close(group_advantages(rewards, group), expected)


def test_without_scale_only_the_mean_is_taken_off():
    advantages = group_advantages(torch.tensor([1.0, 3.0, 0.5, 0.5]), torch.tensor([0, 0, 1, 1]), "none")
    assert advantages.tolist() == [-1.0, 1.0, 0.0, 0.0]


def test_the_batch_can_be_the_scale():
    rewards, group = torch.tensor([1.0, 3.0, 0.5, 0.5]), torch.tensor([0, 0, 1, 1])
    # The mean is 1.25; squared differences are 1/16, 49/16, 9/16 and 9/16: 68/16 over 3.
    scale = math.sqrt(68 / 16 / 3) + 1e-4
    torch.testing.assert_close(group_advantages(rewards, group, "batch"), torch.tensor([-1, 1, 0, 0]) / scale)


def test_leave_one_out_by_hand():
    rewards = torch.tensor([1.0, 4.0, 1.0, 0.3, 0.3, 0.7])
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    assert leave_one_out(rewards, group).tolist() == [-1.5, 3.0, -1.5, 0.0, 0.0, 0.0]


def test_equal_rewards_give_exactly_zero():
    # 0.1 + 0.2 in float32 has a mean that differs from its terms in the last bit.
    rewards = torch.full((7,), 0.1 + 0.2)
    for scale in ("group", "batch", "none"):
        assert (group_advantages(rewards, torch.zeros(7, dtype=torch.long), scale) == 0).all()
    assert (leave_one_out(rewards, torch.zeros(7, dtype=torch.long)) == 0).all()


def test_groups_need_not_be_contiguous():
    rewards = torch.tensor([1.0, 5.0, 3.0, 9.0])
    a = group_advantages(rewards, torch.tensor([0, 1, 0, 1]))
    b = group_advantages(rewards[[0, 2, 1, 3]], torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(a[[0, 2, 1, 3]], b)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.56),  # clipped at 1.28
        (0.5, 2.0, -1.0),  # a smaller ratio of a good token is not clipped
        (0.5, -1.0, 0.8),  # clipped at 0.8
        (1.5, -1.0, 1.5),  # a larger ratio of a bad token is not clipped
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, expected):
    loss = clipped_surrogate(torch.tensor([[ratio]]), torch.tensor([[advantage]]), 0.2, 0.28)
    torch.testing.assert_close(loss, torch.tensor([[expected]]))


def test_clipped_tokens_have_no_gradient():
    logprobs, mask = torch.tensor([[math.log(1.5), 0.0]], requires_grad=True), torch.ones(1, 2, dtype=torch.bool)
    clipped_surrogate(ratios(logprobs, torch.zeros(1, 2), mask), torch.ones(1, 1), 0.2, 0.28).sum().backward()
    assert logprobs.grad.tolist() == [[0.0, -1.0]]


def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens():
    logprobs = torch.tensor([[2.0, 3.0, 99.0], [1.0, 1.0, 1.0]]).log()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    old = torch.zeros(2, 3)
    torch.testing.assert_close(ratios(logprobs, old, mask, "sequence"), torch.tensor([[math.sqrt(6)], [1.0]]))
    torch.testing.assert_close(ratios(logprobs, old, mask), logprobs.exp())


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_noise_in_logprobs_is_no_ratio(level):
    old, mask = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), torch.ones(2, 2, dtype=torch.bool)
    logprobs = (old + torch.tensor([[5e-5, -5e-5], [2e-4, 0.0]])).requires_grad_()
    found = ratios(logprobs, old, mask, level)
    assert (found[0] == 1).all() and found[1, 0] > 1
    found.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.full((2, 2), 1.0 if level == "token" else 0.5), rtol=1e-3, atol=0)


# Value


def test_gae_by_hand():
    # Three tokens with reward 1 at the end, and one token with reward 2 and padding.
    mask = torch.tensor([[True, True, True], [True, False, False]])
    values = torch.tensor([[0.5, 0.25, 0.75], [1.0, 7.0, 7.0]])
    found = gae(torch.tensor([1.0, 2.0]), values, mask, gamma=0.9, lam=0.5)
    third = 1 - 0.75
    second = 0.9 * 0.75 - 0.25 + 0.45 * third
    first = 0.9 * 0.25 - 0.5 + 0.45 * second
    torch.testing.assert_close(found, torch.tensor([[first, second, third], [1.0, 0.0, 0.0]]))


def test_gae_at_the_ends_of_lambda():
    torch.manual_seed(0)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    values, rewards = torch.rand(3, 6), torch.rand(3)
    waits = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(waits, (rewards[:, None] - values) * mask)  # the outcome less what was expected
    believes = gae(rewards, values, mask, gamma=1.0, lam=0.0)
    torch.testing.assert_close(believes[0, :5], values[0, 1:] - values[0, :5])
    torch.testing.assert_close(believes[1, 1], rewards[1] - values[1, 1])


def test_whitened_values_have_mean_zero_and_deviation_one():
    mask = torch.tensor([[True, True], [True, False]])
    white = whiten(torch.tensor([[1.0, 2.0], [3.0, 1e6]]), mask)
    torch.testing.assert_close(white, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.3, 0.245),  # within the clip: (0.3 - 1)² / 2
        (0.9, 0.18),  # clipped at 0.4: the worse of 0.1² and 0.6²
        (-0.5, 1.125),  # clipped at 0.0, but the loss itself is worse
    ],
)
def test_clipped_value_loss_by_hand(value, expected):
    one = torch.ones(1, 1)
    torch.testing.assert_close(clipped_value_loss(value * one, 0.2 * one, one, 0.2), expected * one)


def test_explained_variance_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[0.0, 1.0, 2.0, 9.0]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.ones(1, 4), returns, mask) == 0.0
    assert explained_variance(returns / 2, returns, mask) == pytest.approx(0.75)
    assert math.isnan(explained_variance(returns, torch.ones(1, 4), mask))


# KL


def test_kl_k3_by_hand_and_unbiased():
    d = math.log(0.5)
    torch.testing.assert_close(kl_k3(torch.tensor([[0.0]]), torch.tensor([[d]])), torch.tensor([[0.5 - d - 1]]))
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * kl_k3(p.log()[None], q.log()[None])[0]).sum(), exact)


def test_steered_by_hand():
    assert steered(0.5, 0.3, target=0.2) == pytest.approx((0.55, math.exp(0.55 + 1.0)))  # half too much
    assert steered(0.5, 0.1, target=0.2) == pytest.approx((0.45, math.exp(0.45 - 1.0)))
    assert steered(0.5, 9.9, target=0.2) == pytest.approx((0.6, math.exp(0.6 + 2.0)))  # the error counts 1 at most


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("grpo", (3 / 3 + 4 / 1) / 2),  # every sequence counts the same
        ("bnpo", 7 / 4),  # every token of the step
        ("dapo", 7 / 5),  # every token of the update, which has 5 a step
        ("dr_grpo", 7 / 20),  # a constant: 10 a sequence
    ],
)
def test_what_a_token_counts_by_hand(loss_type, expected):
    values = torch.tensor([[1.0, 1.0, 1.0], [4.0, 8.0, 8.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    weights = token_weights(mask, loss_type, tokens=5.0, longest=10)
    assert float((weights * values).sum()) == pytest.approx(expected)
    assert (weights[~mask] == 0).all()


def test_group_regression_by_hand():
    expected = torch.tensor([0.1, 0.3, 0.2, 1.0], requires_grad=True)
    earned = torch.tensor([0.0, 1.0, 0.5, 0.7])
    # Group of three: e - r = 0.1, -0.7, -0.3, mean -0.3, so 0.16, 0.16, 0 of mean 0.32 / 3. A group of one has none.
    loss = group_regression(expected, earned, [3, 1])
    assert float(loss) == pytest.approx(0.32 / 3)
    loss.backward()
    assert expected.grad.tolist() == pytest.approx([2 * 0.4 / 3, -2 * 0.4 / 3, 0.0, 0.0], abs=1e-6)


def test_foresight_is_the_correlation_within_groups():
    earned, group = np.array([0.0, 1.0, 5.0, 7.0]), np.array([0, 0, 1, 1])
    # Without the means of the groups: ±0.5, ±1 and, of what was expected, ±0.5, ∓0.5.
    assert foresight(np.array([1.0, 2.0, 4.0, 3.0]), earned, group) == pytest.approx(
        (0.5 - 1.0) / math.sqrt(2.5 * 1.0))  # fmt: skip
    assert foresight(earned + 3.0 * group, earned, group) == pytest.approx(1.0)
    assert foresight(np.array([1.0, 1.0, 2.0, 2.0]), earned, group) == 0
