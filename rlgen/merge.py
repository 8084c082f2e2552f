"""One policy of several that were fine-tuned from the same one: `python -m rlgen.merge runs=one,another output=…`.

Runs that differ in their seed or in what rewarded them agree about what earns and differ in what chance taught them. Of
an adapter behind a frozen trunk logits are a linear function, so that the mean of the adapters' changes gives the
geometric mean of the policies, renormalised at each token: the log-ratios to the policy before add up where they agree
and average out where they do not. What averages out cost diversity and earned nothing, which leaves room to go further
the same way (`strength`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from policies.model import Adapter, CrystalPolicy
from rlgen import card
from rlgen.config import main, stored_settings
from rlgen.types import UserError


def merged(policies: Sequence[CrystalPolicy], names: Sequence[str], strength: float) -> CrystalPolicy:
    """The policy whose log-ratio to the trunk is `strength` times the mean of the policies', before normalising.

    names: what errors call the policies. UserError: one has no adapter, or another trunk than the first.
    """
    first = policies[0]
    for policy, name in zip(policies, names, strict=True):
        if not isinstance(policy, CrystalPolicy) or policy.adapter is None:
            raise UserError(f"{name}: the policy has no adapter, which is what can be merged; fine-tune with "
                            "algorithm=gvpo and algorithm.adapter above 0")
        if not _same_trunk(policy, first):
            raise UserError(f"{name}: was not fine-tuned from the same policy as {names[0]}, whose weights differ; "
                            "merge runs of one policy=")
    adapters = [policy.adapter for policy in policies if policy.adapter is not None]
    share = strength / len(adapters)
    one = Adapter(first.config.hidden_size, sum(adapter.into.out_features for adapter in adapters))
    with torch.no_grad():
        one.into.weight.copy_(torch.cat([adapter.into.weight for adapter in adapters]))
        one.into.bias.copy_(torch.cat([adapter.into.bias for adapter in adapters]))
        one.out.weight.copy_(share * torch.cat([adapter.out.weight for adapter in adapters], dim=1))
        one.out.bias.copy_(share * torch.stack([adapter.out.bias for adapter in adapters]).sum(0))
    first.adapter, first.config.adapter = one, one.into.out_features
    return first


def _same_trunk(one: CrystalPolicy, other: CrystalPolicy) -> bool:
    """Whether two policies differ by their adapters at most."""
    mine, its = ({name: weights for name, weights in policy.state_dict().items() if not name.startswith("adapter.")}
                 for policy in (one, other))
    return (one.config.representation_parameters == other.config.representation_parameters
            and mine.keys() == its.keys() and all(torch.equal(weights, its[name]) for name, weights in mine.items()))


def run(config: Any) -> None:
    folders = config.runs.split(",")
    for folder in folders:
        if not (Path(folder) / "policy" / "config.json").is_file():
            raise UserError(f"runs={folder}: no finished run there (policy/config.json is missing); give folders that "
                            "rlgen.finetune wrote, separated by commas")
    runs = {folder: stored_settings("finetune", Path(folder), "runs") for folder in folders}
    loaded = [CrystalPolicy.load(str(Path(folder) / "policy")) for folder in runs]
    policy = merged([policy for policy, _ in loaded], [f"runs={folder}" for folder in runs], config.strength)
    output = Path(config.output)
    policy.save_pretrained(output)
    loaded[0][1].save(output)
    card.write_merged(output, config, runs, sum(p.numel() for p in policy.parameters()))
    print(f"{len(runs)} policies merged, strength {config.strength:g}: {output}\n"
          f"next: python -m rlgen.sample policy={output} n=1000 output=my_crystals")


if __name__ == "__main__":
    main("merge", run)
