"""The sampler draws from the policy's distribution, and says with which probability it drew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_conditions, tiny_policy
from pymatgen.core import Structure

from policies import sampler
from policies.model import CrystalPolicy
from policies.representations import REPRESENTATIONS, make
from policies.sampler import decode, sample
from rlgen.types import CrystalError

CONDITIONS = random_conditions(40, np.random.default_rng(0))


def draw(policy, seed: int = 0, conditions=CONDITIONS, **options) -> sampler.Rollout:
    return sample(policy, conditions, torch.Generator().manual_seed(seed), **options)


def test_the_seed_decides_the_tokens(policy):
    first, again, other = draw(policy), draw(policy), draw(policy, seed=1)
    assert torch.equal(first.ids, again.ids) and torch.equal(first.logprobs, again.logprobs)
    assert first.ids.shape != other.ids.shape or (first.ids != other.ids).any(1).sum() > 30


def test_global_generators_are_neither_used_nor_moved(policy):
    torch.manual_seed(0)
    first, state = draw(policy), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(draw(policy).ids, first.ids)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_logprobs_equal_recomputed_ones(policy, temperature):
    rollout = draw(policy, temperature=temperature)
    again, _ = policy.token_logprobs(rollout.ids, rollout.temperature)
    assert rollout.temperature == temperature
    assert (rollout.logprobs - again)[rollout.mask].abs().max() < 1e-4
    assert (rollout.logprobs[~rollout.mask] == 0).all()
    # The comparison means something: another temperature is another distribution.
    wrong, _ = policy.token_logprobs(rollout.ids, temperature * 1.2)
    assert (rollout.logprobs - wrong)[rollout.mask].abs().max() > 0.1


def test_a_policy_is_sampled_at_the_temperature_that_it_was_tuned_at():
    policy = tiny_policy()
    policy.config.sampling_temperature = 0.5
    own, same, other = draw(policy, temperature=None), draw(policy, temperature=0.5), draw(policy, temperature=1.0)
    assert own.temperature == 0.5 and torch.equal(own.ids, same.ids) and not torch.equal(own.ids, other.ids)


def test_logprobs_hold_beyond_the_first_allocation_of_the_cache():
    policy = tiny_policy(max_atoms=40)
    rollout = draw(policy, conditions=[{"n_atoms": 40}, {"n_atoms": 3}, {"n_atoms": 33}])
    again, _ = policy.token_logprobs(rollout.ids)
    assert rollout.ids.shape[1] == policy.representation.max_length > 2 * 64
    assert (rollout.logprobs - again)[rollout.mask].abs().max() < 1e-4


def test_dropout_is_off_while_sampling_and_back_on_after():
    from policies.model import CrystalPolicy

    torch.manual_seed(0)
    rep = tiny_policy().representation
    policy = CrystalPolicy.create(rep, hidden_size=32, layers=2, heads=2, intermediate_size=64, dropout=0.5).train()
    rollout = draw(policy)
    assert policy.training
    again, _ = policy.eval().token_logprobs(rollout.ids)
    assert (rollout.logprobs - again)[rollout.mask].abs().max() < 1e-4


def test_low_temperatures_draw_likelier_tokens(policy):
    means = [float(r.logprobs[r.mask].mean()) for r in (draw(policy, temperature=t) for t in (0.3, 1.0))]
    cold = draw(policy, temperature=1e-3)
    again, _ = policy.token_logprobs(cold.ids)
    best = policy(cold.ids).logits.log_softmax(-1).amax(-1)[:, policy.representation.prompt_length - 1 : -1]
    assert means[0] > means[1] + 0.5
    assert (again[cold.mask] > best[cold.mask] - 0.05).all()


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.0, 0.1, 0.0, 0.5, 0.25, 0.149, 0.001, 0.0])
    n = 40_000
    u = torch.rand(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sampler._draw(probabilities.log().expand(n, -1), u)
    assert drawn.shape == (n, 1)
    seen = torch.bincount(drawn[:, 0], minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert (seen[~possible] == 0).all()
    expected = n * probabilities[possible].double()
    assert float(((seen[possible] - expected) ** 2 / expected).sum()) < 18.5  # chi-square, 4 degrees: p = 0.001


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (1 - 2**-53, 3)])
def test_the_ends_of_the_distribution_are_possible_tokens(u, token):
    logp = torch.tensor([[0.0, 0.3, 0.3, 0.4, 0.0]]).log()
    assert int(sampler._draw(logp, torch.tensor([[u]], dtype=torch.float64))) == token


def test_each_row_is_drawn_from_its_own_distribution():
    logp = torch.full((5, 9), -torch.inf)
    certain = torch.tensor([8, 0, 3, 4, 7])
    logp[torch.arange(5), certain] = 0.0
    assert torch.equal(sampler._draw(logp, torch.rand(5, 1, dtype=torch.float64))[:, 0], certain)


def test_tokens_of_whole_sequences_follow_the_policy(policy):
    """The first token after the prompt, over many rollouts, as the forward pass says."""
    n, p = 3000, policy.representation.prompt_length
    rollout = draw(policy, conditions=[{"n_atoms": 1}] * n, batch=n)
    likely = policy(rollout.ids[:1, :p]).logits[0, -1].softmax(-1)
    seen = torch.bincount(rollout.ids[:, p], minlength=len(likely)) / n
    assert (seen - likely).abs().max() < 4 * (0.25 / n) ** 0.5
    assert float((seen - likely).abs().sum()) < 0.3


def test_to_go_on_with_unfinished_rows_only_changes_nothing(policy, monkeypatch):
    narrowed: list[int] = []
    narrow = CrystalPolicy.narrow

    def counting(self, cache, rows):
        narrowed.append(len(rows))
        narrow(self, cache, rows)

    monkeypatch.setattr(CrystalPolicy, "narrow", counting)
    monkeypatch.setattr(sampler, "FULL", 0.0)
    whole = draw(policy)
    assert not narrowed
    monkeypatch.setattr(sampler, "FULL", 1.0)
    part = draw(policy)
    assert len(narrowed) > 3 and min(narrowed) < 10
    assert torch.equal(part.ids, whole.ids) and (part.logprobs - whole.logprobs).abs().max() < 1e-4


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_rows_come_back_in_the_order_of_the_conditions(policy, batch):
    conditions = [{"n_atoms": n} for n in (3, 20, 1, 7, 7, 20, 2, 15)] + [{}, {"n_atoms": 4, "element": "Fe"}]
    told: list[int] = []
    rollout = draw(policy, conditions=conditions, batch=batch, progress=told.append)
    assert sum(told) == len(conditions) and max(told) <= batch
    p = policy.representation.prompt_length
    assert rollout.ids[:, :p].tolist() == [policy.representation.prompt(c) for c in conditions]
    crystals = decode(policy, rollout)
    for asked, crystal in zip(conditions, crystals, strict=True):
        assert asked.get("n_atoms", len(crystal)) == len(crystal)
    assert "Fe" in crystals[-1].symbol_set
    again, _ = policy.token_logprobs(rollout.ids)
    assert (rollout.logprobs - again)[rollout.mask].abs().max() < 1e-4


def test_shapes_masks_and_groups(policy):
    rollout = draw(policy, group=[i // 8 for i in range(40)])
    rep = policy.representation
    assert rollout.mask.shape == rollout.logprobs.shape == (40, rollout.ids.shape[1] - rep.prompt_length)
    assert rollout.group.tolist() == [i // 8 for i in range(40)]
    assert draw(policy).group.tolist() == list(range(40))
    assert rollout.conditions == CONDITIONS
    assert torch.equal(rollout.mask, rollout.ids[:, rep.prompt_length :] != rep.pad)
    assert ((rollout.ids == rep.eos).sum(1) == 1).all()  # the end is drawn, and is the last that is
    assert (rollout.ids[:, -1] != rep.pad).any()  # no column of padding alone
    assert rollout.ids.is_contiguous() and not rollout.logprobs.requires_grad


def test_what_cannot_be_read_keeps_its_row(policy):
    rollout = draw(policy)
    rollout.ids[3, policy.representation.prompt_length :] = policy.representation.pad
    crystals = decode(policy, rollout)
    assert [i for i, c in enumerate(crystals) if isinstance(c, CrystalError)] == [3]
    assert sum(isinstance(c, Structure) for c in crystals) == 39


EVERY_MASK = [{}, {"n_atoms": 4}, {"element": "Fe"}, {"space_group": 225, "n_atoms": 2}, {"formula": "NaCl"},
              {"elements": "Li-Fe-O"}, {"max_atoms": 3}, {"neutral": True},
              {"formula": "SrTiO3", "neutral": True, "max_atoms": 5},
              {"elements": "Na-Cl", "n_atoms": 2, "neutral": True},
              {"elements": "Li-Fe-O", "element": "O", "max_atoms": 6}]  # fmt: skip


@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_every_mask_of_sampling_is_in_the_recomputed_logprobs(name, temperature):
    torch.manual_seed(0)
    policy = CrystalPolicy.create(make(name, max_atoms=8), hidden_size=32, layers=2, heads=2, intermediate_size=64)
    with torch.no_grad():
        policy.embed.weight.mul_(10.0)  # so that it prefers some tokens
    rollout = draw(policy, conditions=EVERY_MASK * 2, temperature=temperature)
    again, _ = policy.token_logprobs(rollout.ids, rollout.temperature, rollout.conditions)
    assert (rollout.logprobs - again)[rollout.mask].abs().max() < 1e-4
    # The conditions count: without them another distribution is recomputed.
    free, _ = policy.token_logprobs(rollout.ids, rollout.temperature)
    assert (rollout.logprobs - free)[rollout.mask].abs().max() > 0.1
