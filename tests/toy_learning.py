"""Small things to learn: lattices of whole Å for a tiny policy, and a bandit whose best policy is known."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from policies.model import CrystalPolicy
from policies.representations import make
from policies.sampler import Rollout, sample

SIZES = {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64, "dropout": 0.1}


def tiny(seed: int = 0) -> CrystalPolicy:
    torch.manual_seed(seed)
    return CrystalPolicy.create(make("atoms", max_atoms=8), **SIZES)


def settings(**changes):
    base = {"name": "grpo", "group_size": 8, "scale_rewards": "group", "loss_type": "dapo",
            "importance_sampling_level": "token", "num_iterations": 1, "minibatch": 1000, "learning_rate": 3e-3,
            "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0, "beta_by_kind": {}, "use_bias_correction_kl": False,
            "target_kl": None, "entropy_coef": 0.0, "entropy_by_kind": {}, "max_grad_norm": 1.0, "temperature": 1.0,
            "past": 1.0, "adapter": 0, "gamma": 1.0, "lam": 0.95, "cliprange_value": 0.2, "value_learning_rate": 1e-2}
    return SimpleNamespace(**(base | changes))


def rollout_of(policy, seed, prompts=4, size=8, temperature=1.0, atoms=(1, 2, 3)):
    conditions = [{"n_atoms": atoms[i % len(atoms)]} for i in range(prompts) for _ in range(size)]
    return sample(policy, conditions, torch.Generator().manual_seed(seed), temperature=temperature,
                  group=[i for i in range(prompts) for _ in range(size)])


def cubic_share(policy, rollout):
    """(B,) share of lattice tokens that are the hundredths ".00Å" to ".49Å": something a policy can learn to write."""
    p, first = policy.representation.prompt_length, policy.representation.first["hundredth"]
    return (rollout.ids[:, [p + 7, p + 9, p + 11]] < first + 50).float().mean(1).numpy()


class Bandit(nn.Module):
    """A policy that writes one of K tokens, the arms, after a prompt of one; as much of `CrystalPolicy` as is learnt.

    arms: the K log-weights that it starts from. The first half of the tokens are of kind "low", the others "high".
    """

    def __init__(self, arms):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(arms, dtype=torch.float32))
        half = len(arms) // 2
        self.representation = SimpleNamespace(
            prompt_length=1, max_length=2, pad=0, first={"low": 0, "high": half},
            sizes={"low": half, "high": len(arms) - half}, prompt=lambda condition: [0],
            masks=lambda ids, conditions: torch.ones(len(ids), 1, len(arms), dtype=torch.bool))

    def hidden(self, ids):
        return nn.functional.one_hot(ids, len(self.logits)).float()

    def before_tokens(self, ids):
        return self.hidden(ids[:, :-1])

    def token_logprobs(self, ids, temperature=1.0, conditions=None, *, legal=None, hidden=None, train_entropy=False):
        logp = (self.logits / temperature).log_softmax(0)
        known = logp if train_entropy else logp.detach()
        return logp[ids[:, 1:]], -(known.exp() * known).sum().expand(len(ids), 1)

    def probabilities(self):
        return self.logits.detach().softmax(0)

    def draw(self, n, generator, group_size, prompts=(0,)):
        """n arms, in groups that have the prompts in turn."""
        arm = torch.multinomial(self.probabilities(), n, replacement=True, generator=generator)
        group = torch.arange(n) // group_size
        ids = torch.stack([torch.tensor(prompts)[group % len(prompts)], arm], 1)
        return Rollout(ids, self.token_logprobs(ids)[0].detach(), torch.ones(n, 1, dtype=torch.bool), group, [{}] * n,
                       1.0, torch.zeros(n, dtype=torch.bool))


def play(learner, bandit, rewards, *, steps, n=256, group_size=8, seed=0):
    """The mean of the bandit's distribution (K,) over the last half of the steps."""
    generator, seen = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        rollout = bandit.draw(n, generator, group_size)
        learner.update(rollout, rewards[rollout.ids[:, 1].numpy()], np.random.default_rng([seed, step]))
        seen.append(bandit.probabilities())
    return torch.stack(seen[steps // 2 :]).mean(0)
