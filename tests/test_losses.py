"""Advantages and losses against numbers computed by hand."""

import math

import pytest
import torch

from rlgen.algorithms.losses import clipped_surrogate, group_advantages, kl_k3, token_mean


def test_group_advantages_by_hand():
    rewards = torch.tensor([1.0, 3.0, 0.5, 0.5, 2.0])
    group = torch.tensor([0, 0, 1, 1, 2])
    # Group 0: mean 2, sample standard deviation sqrt(2). Group 1 is all equal. Group 2 is alone.
    expected = torch.tensor([-1 / (math.sqrt(2) + 1e-4), 1 / (math.sqrt(2) + 1e-4), 0.0, 0.0, 0.0])
    torch.testing.assert_close(group_advantages(rewards, group), expected)


def test_without_scale_only_the_mean_is_taken_off():
    advantages = group_advantages(torch.tensor([1.0, 3.0, 0.5, 0.5]), torch.tensor([0, 0, 1, 1]), scale=False)
    assert advantages.tolist() == [-1.0, 1.0, 0.0, 0.0]


def test_equal_rewards_give_exactly_zero():
    # 0.1 + 0.2 in float32 has a mean that differs from its terms in the last bit.
    rewards = torch.full((7,), 0.1 + 0.2)
    assert (group_advantages(rewards, torch.zeros(7, dtype=torch.long)) == 0).all()


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
    logprobs, old = torch.tensor([[math.log(ratio) - 1.0]]), torch.tensor([[-1.0]])
    loss = clipped_surrogate(logprobs, old, torch.tensor([advantage]), 0.2, 0.28)
    torch.testing.assert_close(loss, torch.tensor([[expected]]))


def test_clipped_tokens_have_no_gradient():
    logprobs = torch.tensor([[math.log(1.5), 0.0]], requires_grad=True)
    clipped_surrogate(logprobs, torch.zeros(1, 2), torch.tensor([1.0]), 0.2, 0.28).sum().backward()
    assert logprobs.grad.tolist() == [[0.0, -1.0]]


def test_kl_k3_by_hand_and_unbiased():
    d = math.log(0.5)
    torch.testing.assert_close(kl_k3(torch.tensor([[0.0]]), torch.tensor([[d]])), torch.tensor([[0.5 - d - 1]]))
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * kl_k3(p.log()[None], q.log()[None])[0]).sum(), exact)


def test_token_mean_counts_tokens_not_sequences():
    values = torch.tensor([[1.0, 1.0, 1.0], [4.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert token_mean(values, mask) == 7 / 4
