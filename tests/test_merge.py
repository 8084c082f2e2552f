"""Several policies merged into one: its log-ratios by hand, what it writes, and what cannot be merged."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from conftest import tiny_policy

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from rlgen import finetune, merge
from rlgen.config import load
from rlgen.merge import merged
from rlgen.types import UserError

NAMES = ["runs=a", "runs=b", "runs=c"]


def adapted(policy: CrystalPolicy, units: int, seed: int) -> CrystalPolicy:
    """The same trunk with an adapter that changes what it writes."""
    torch.manual_seed(seed)
    other = deepcopy(policy)
    other.adapt(units)
    torch.nn.init.normal_(other.adapter.out.weight, std=0.3)
    torch.nn.init.normal_(other.adapter.out.bias, std=0.3)
    return other.eval()


@pytest.mark.parametrize("strength", [0.0, 1.0, 1.7])
def test_log_ratios_are_the_mean_of_the_policies_times_the_strength(strength):
    trunk = tiny_policy()
    policies = [adapted(trunk, units, seed) for seed, units in enumerate((4, 8, 3))]
    hidden = torch.randn(5, 7, trunk.config.hidden_size)
    with torch.no_grad():
        before = trunk.logits(hidden)
        changes = torch.stack([policy.logits(hidden) - before for policy in policies])
        after = merged(policies, NAMES, strength).logits(hidden)
    assert changes.std(0).min() > 0  # each says something else
    torch.testing.assert_close(after, before + strength * changes.mean(0), atol=1e-4, rtol=1e-4)


def test_a_policy_merged_with_itself_is_the_same():
    one = adapted(tiny_policy(), 4, 0)
    hidden = torch.randn(3, one.config.hidden_size)
    with torch.no_grad():
        expected = one.logits(hidden)
        found = merged([adapted(tiny_policy(), 4, 0) for _ in range(3)], NAMES, 1.0).logits(hidden)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_runs_are_merged_into_a_policy_that_can_be_used(tmp_path):
    start = tmp_path / "start"
    tiny_policy().save_pretrained(start)
    PromptTable.of([225, 221], [[11, 17], [22, 38, 8, 8, 8]]).save(start)
    for name, more in (("a", ["seed=0"]), ("b", ["seed=1"]), ("all", ["algorithm.adapter=0", "algorithm.minibatch=4"])):
        finetune.run(load("finetune", ["reward=validity", f"policy={start}", "steps=1", "batch=8", "workers=0", *more,
                                       "algorithm.group_size=4", "evaluate=0", "real_every=0", "device=cpu",
                                       "data=prototypes", f"output={tmp_path / name}"]))
    merge.run(load("merge", [f"runs={tmp_path / 'a'},{tmp_path / 'b'}", "strength=1.5", f"output={tmp_path / 'ab'}"]))
    policy, prompts = CrystalPolicy.load(str(tmp_path / "ab"))
    a, b = (CrystalPolicy.load(str(tmp_path / name / "policy"))[0] for name in "ab")
    hidden = torch.randn(4, policy.config.hidden_size)
    with torch.no_grad():
        trunk = hidden @ policy.embed.weight.T
        expected = trunk + 1.5 * ((a.logits(hidden) - trunk) + (b.logits(hidden) - trunk)) / 2
        torch.testing.assert_close(policy.logits(hidden), expected, atol=1e-5, rtol=1e-4)
    assert len(prompts) == 2
    card = (tmp_path / "ab" / "README.md").read_text()
    assert "merged of 2" in card and "strength 1.5" in card and f"| {tmp_path / 'b'} | validity | {start} |" in card
    for runs, message in (
        (f"{tmp_path / 'a'},{tmp_path / 'all'}", r"runs=.*all: the policy has no adapter, .* algorithm=gvpo and"),
        (f"{tmp_path / 'a'},{tmp_path / 'none'}", r"runs=.*none: no finished run there \(policy/config.json"),
    ):
        with pytest.raises(UserError, match=message):
            merge.run(load("merge", [f"runs={runs}", f"output={tmp_path / 'no'}"]))
        assert not (tmp_path / "no").exists()


def test_other_trunks_are_refused():
    other = tiny_policy()
    with torch.no_grad():
        other.embed.weight += 0.01
    with pytest.raises(UserError, match="runs=b: was not fine-tuned from the same policy as runs=a"):
        merged([adapted(tiny_policy(), 4, 0), adapted(other, 4, 1)], NAMES[:2], 1.0)
