"""The best are kept and learnt from again: with the probabilities they were drawn with, and not scored anew."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import tiny_policy

from policies.sampler import sample
from rlgen import algorithms, checkpoint
from rlgen.config import load
from rlgen.experience import Collector
from rlgen.replay import Replay, complete
from rlgen.types import RewardBreakdown

ROCK_SALTS = [f"AB_cF8_225_a_b:Cl-{element}" for element in ("K", "Li", "Na", "Rb")]
OTHERS = ["AB_cP2_221_a_b:Cl-Cs", "A_cI2_229_a:Fe", "A_hP2_194_c:Mg", "A2B_tP6_136_f_a:O-Ti"]


def settings(**changes) -> SimpleNamespace:
    return SimpleNamespace(**({"fraction": 0.5, "rows": 1, "size": 100, "per_prototype": 100, "age": 10} | changes))


def rollout_of(policy, groups: int = 4, size: int = 4, seed: int = 0, first: int = 1):
    conditions = [{"n_atoms": first + g} for g in range(groups) for _ in range(size)]
    return sample(policy, conditions, torch.Generator().manual_seed(seed),
                  group=[g for g in range(groups) for _ in range(size)])


def filled(policy, labels=OTHERS, **changes) -> Replay:
    """Of group g, row 1 is the best, with reward 0.5 + g / 10 among zeros."""
    replay = Replay(settings(**changes))
    rewards = np.zeros(16)
    rewards[1::4] = 0.5 + np.arange(4) / 10
    replay.add(rollout_of(policy), rewards, [labels[i // 4] for i in range(16)])
    return replay


def test_the_best_of_each_group_is_kept_by_its_gain(policy):
    kept = filled(policy).kept
    assert [one.label for one in kept] == OTHERS[::-1] and [one.reward for one in kept] == [0.8, 0.7, 0.6, 0.5]
    assert [one.gain for one in kept] == pytest.approx([0.6, 0.525, 0.45, 0.375])
    assert [one.label for one in filled(policy, size=2).kept] == OTHERS[:1:-1]
    assert len(filled(policy, ROCK_SALTS).kept) == 4 and len(filled(policy, ROCK_SALTS, per_prototype=2).kept) == 2
    assert len(filled(policy, OTHERS[:1] * 4).kept) == 1  # one crystal
    assert not filled(policy, [None, "FeO|unlabelled"] * 2).kept


def test_equal_rewards_keep_nothing_and_nothing_is_kept_when_off(policy):
    replay = Replay(settings())
    replay.add(rollout_of(policy), np.full(16, 0.7), ROCK_SALTS * 4)
    assert not replay.kept and replay.batches == 1
    assert not filled(policy, fraction=0.0).kept


def test_groups_are_completed_with_rows_of_their_condition(policy):
    replay = filled(policy, fraction=0.5)
    chosen = replay.choose(4, np.random.default_rng(0))
    assert len(chosen) == 2 and all(len(group) == 1 for group in chosen)
    fresh = sample(policy, [chosen[0][0].condition] * 3 + [chosen[1][0].condition] * 3 + [{"n_atoms": 9}] * 8,
                   torch.Generator().manual_seed(5), group=[0] * 3 + [1] * 3 + [2] * 4 + [3] * 4)
    whole = complete(fresh, chosen, policy.representation.pad)
    assert whole.group.tolist() == [g for g in range(4) for _ in range(4)]
    assert whole.replayed.nonzero().flatten().tolist() == [3, 7]
    for row, (one,) in zip((3, 7), chosen, strict=True):
        assert whole.conditions[row] == one.condition == whole.conditions[row - 1]
        assert whole.ids[row][: len(one.ids)].tolist() == one.ids.tolist() and whole.earned[row] == one.reward
        assert whole.mask[row].sum() == len(one.logprobs) and (whole.logprobs[row][~whole.mask[row]] == 0).all()
    assert whole.earned[~whole.replayed].isnan().all()
    kept = [i for i in range(16) if i not in (3, 7)]
    for name in ("ids", "logprobs", "mask"):
        old, new = getattr(fresh, name), getattr(whole, name)[kept]
        assert torch.equal(new[:, : old.shape[1]], old) and (new[:, old.shape[1] :] == new[0, -1] * 0).all()


def test_logprobs_are_those_of_the_policy_that_drew(policy):
    """The ratio to another policy, from the kept values, is the one from both policies' own forward passes."""
    replay, other = filled(policy), tiny_policy(seed=3)
    chosen = replay.choose(4, np.random.default_rng(1))
    fresh = rollout_of(other, first=10, seed=2)
    whole = complete(fresh, chosen, policy.representation.pad)
    rows = whole.replayed
    asked = [c for c, replayed in zip(whole.conditions, rows.tolist(), strict=True) if replayed]
    drew, now = (p.token_logprobs(whole.ids[rows], whole.temperature, asked)[0] for p in (policy, other))
    mask = whole.mask[rows]
    assert (whole.logprobs[rows] - drew)[mask].abs().max() < 1e-4
    ratio, expected = (now - whole.logprobs[rows]).exp()[mask], (now - drew).exp()[mask]
    torch.testing.assert_close(ratio, expected, rtol=1e-3, atol=1e-6)
    assert (expected - 1).abs().max() > 0.1


def test_learning_makes_what_is_replayed_likelier(policy):
    """The kept are from one policy and another one learns: what earned more than its fresh answers, it writes more."""
    replay, learns = filled(policy), tiny_policy(seed=3, sharpness=1.0)
    config = load("finetune", ["algorithm.learning_rate=3e-3"]).algorithm
    learner = algorithms.make(config, learns, Accelerator(cpu=True))
    chosen = replay.choose(4, np.random.default_rng(0))
    conditions = [chosen[g][0].condition for g in (0, 1) for _ in range(3)]

    def likelihood() -> float:
        ids = [(torch.from_numpy(one.ids)[None], one.condition) for (one,) in chosen]
        return sum(float(learns.token_logprobs(row, 1.0, [asked])[0].detach().sum()) for row, asked in ids)

    before = likelihood()
    for step in range(5):
        fresh = sample(learns, conditions, torch.Generator().manual_seed(step), group=[0] * 3 + [1] * 3)
        whole = complete(fresh, chosen, policy.representation.pad)
        stats = learner.update(whole, np.where(whole.replayed, 1.0, 0.0), np.random.default_rng(step))
        assert all(np.isfinite(value) for value in stats.values())
    assert likelihood() > before + 1


def test_rows_of_one_condition_come_together(policy):
    replay = Replay(settings(rows=2, fraction=1.0))
    for seed, labels in enumerate((ROCK_SALTS, OTHERS)):
        rewards = np.tile([1.0, 0, 0, 0], 4)
        replay.add(rollout_of(policy, seed=seed), rewards, [labels[i // 4] for i in range(16)])
    chosen = replay.choose(4, np.random.default_rng(0))
    assert [len(group) for group in chosen] == [2] * 4
    assert sorted(group[0].condition["n_atoms"] for group in chosen) == [1, 2, 3, 4]
    assert all(a.condition == b.condition and a is not b for a, b in chosen)


def test_what_is_old_or_was_rewarded_otherwise_is_forgotten(policy):
    replay = filled(policy, age=2)
    nothing = rollout_of(policy), np.zeros(16), [None] * 16
    for expected in (4, 0):
        replay.add(*nothing)
        assert len(replay.kept) == expected
    replay = filled(policy)
    replay.begin("")
    assert len(replay.kept) == 4
    replay.begin("another reward")
    assert not replay.kept and not replay.choose(4, np.random.default_rng(0))


def test_state_comes_back(policy, tmp_path):
    replay = filled(policy)
    checkpoint.save_state(tmp_path / "replay", replay.state())
    again = Replay(replay.settings)
    again.load_state(checkpoint.load_state(tmp_path / "replay"))
    assert again.batches == replay.batches and again.meaning == replay.meaning
    for a, b in zip(again.kept, replay.kept, strict=True):
        assert (a.label, a.reward, a.gain, a.batch, a.condition) == (b.label, b.reward, b.gain, b.batch, b.condition)
        assert np.array_equal(a.ids, b.ids) and np.array_equal(a.logprobs, b.logprobs)
        assert a.logprobs.dtype == b.logprobs.dtype
    one, other = (r.choose(4, np.random.default_rng(7)) for r in (replay, again))
    assert [group[0].label for group in one] == [group[0].label for group in other]


def test_replayed_rows_are_neither_scored_again_nor_counted(policy, monkeypatch):
    from policies.prompts import PromptTable
    from rlgen import experience

    seen: list[int] = []

    class Pool:
        def score(self, crystals, conditions):
            assert len(crystals) == len(conditions)
            seen.append(len(crystals))
            values = np.linspace(0, 1, len(crystals))[:, None]
            return RewardBreakdown(("toy",), values, values, values[:, 0], np.array(["ok"] * len(crystals)),
                                   [""] * len(crystals))

    # Every sample is another rock salt, whatever the random policy wrote.
    names = iter(f"AB_cF8_225_a_b:Cl-X{i}" for i in range(1000))
    monkeypatch.setattr(experience, "decode", lambda policy, rollout: [None] * len(rollout.ids))
    monkeypatch.setattr(experience, "isinstance", lambda *_: True, raising=False)
    monkeypatch.setattr(experience, "protostructure_label", lambda crystal: next(names))
    config = load("finetune", ["batch=16", "algorithm.group_size=4", "replay.fraction=0.5", "replay.rows=2",
                               "replay.per_prototype=100", "prompts.element=0"])
    table = PromptTable.of([225] * 3, [[11, 17], [11, 17, 8], [3, 17, 9, 9]])
    collector = Collector(table, config)
    collector.enter(Pool(), config)
    first = collector.score(policy, collector.draw(policy, 1))
    second = collector.score(policy, collector.draw(policy, 2))
    assert seen[0] == 16 and seen[1] == 16 - int(second.rollout.replayed.sum()) < 16
    assert len(second.crystals) == len(second.earned) == len(second.breakdown.total) == seen[1]
    assert second.scalars["reward/total"] == pytest.approx(0.5) and collector.memory.samples == sum(seen)
    assert len(second.rewards) == len(second.rollout.ids) == 16 and np.isfinite(second.rewards).all()
    replayed = second.rollout.replayed.numpy()
    assert (second.rewards[~replayed] == second.earned).all()
    assert set(second.rewards[replayed]) <= set(first.rewards)
    assert second.scalars["replay/rows"] == replayed.sum() and first.scalars["replay/rows"] == 0
