"""The policy: one distribution inside the grammar, the same with a cache, from a folder, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CRYSTALS, random_conditions, tiny_policy
from pymatgen.core import Structure
from safetensors.torch import load_file

from policies.model import SHIPPED, Cache, CrystalPolicy
from policies.prompts import PromptTable
from policies.representations import make
from policies.sampler import decode, sample
from rewards.novelty import Novelty
from rlgen.config import CONFIGS
from rlgen.types import UserError


def batch(policy: CrystalPolicy, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, T) of built crystals under prompts that they answer in part, and labels of what follows the prompt."""
    rep, rng = policy.representation, np.random.default_rng(seed)
    rows = []
    for structure in CRYSTALS.values():
        written = rep.encode(structure)
        known = {"n_atoms": len(rep.decode(written)), "element": structure.species[-1].symbol, "space_group": 1}
        rows.append(torch.tensor(rep.prompt({k: v for k, v in known.items() if rng.random() < 0.5}) + written))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=rep.pad)
    labels = ids.masked_fill(ids == rep.pad, -100)
    labels[:, : rep.prompt_length] = -100
    return ids, labels


def test_weights_in_half_precision_are_computed_with_in_single():
    policy, _ = CrystalPolicy.load("shipped")
    kept = load_file(SHIPPED / "model.safetensors")
    assert {weights.dtype for weights in kept.values()} == {torch.float16}
    assert {weights.dtype for weights in policy.parameters()} == {torch.float32}
    assert torch.equal(policy.embed.weight, kept["embed.weight"].float())


def test_the_tuned_policy_is_the_shipped_one_but_for_its_adapter():
    shipped, _ = CrystalPolicy.load("shipped")
    tuned, prompts = CrystalPolicy.load("tuned")
    kept, learnt = shipped.state_dict(), tuned.state_dict()
    assert all(torch.equal(learnt[name], weights) for name, weights in kept.items())
    assert {name.split(".")[0] for name in learnt.keys() - kept.keys()} == {"adapter"}
    asked = prompts.sample(160, np.random.default_rng(0))
    novel = {}
    for name, policy in (("shipped", shipped), ("tuned", tuned)):
        crystals = decode(policy, sample(policy, asked, torch.Generator().manual_seed(0)))
        assert all(isinstance(crystal, Structure) for crystal in crystals)
        novel[name] = Novelty("shipped:all").measure(crystals, [{}] * len(crystals)).mean()
    assert novel["tuned"] > novel["shipped"] + 0.05  # of 2,000 each 0.93 and 0.74 are
    with pytest.raises(UserError, match="policy=tuned writes crystals as orbits, not text"):
        CrystalPolicy.load("tuned", "text")


def test_logits_are_minus_infinity_exactly_where_illegal(policy):
    ids, _ = batch(policy)
    p = policy.representation.prompt_length
    logits, legal = policy(ids).logits[:, p - 1 :], policy.representation.masks(ids)
    assert logits.dtype == torch.float32 and not logits.isnan().any()
    assert ((logits == -torch.inf) == ~legal).all()
    assert logits.logsumexp(-1).isfinite().all()


def test_logits_need_no_attention_mask(policy):
    ids, _ = batch(policy)
    length = int((ids[0] != policy.representation.pad).sum())
    alone = policy(ids[:1, :length]).logits
    assert torch.allclose(policy(ids, attention_mask=ids != 0).logits[:1, :length], alone, atol=1e-5)


def test_the_loss_is_the_mean_negative_log_likelihood(policy):
    ids, labels = batch(policy)
    temperatures = [1.0, 0.7]
    logits = (policy.hidden(ids) @ policy.embed.weight.T).double()
    by_hand = []
    for row in range(len(ids)):
        for t in range(policy.representation.prompt_length, ids.shape[1]):
            if labels[row, t] == -100:
                continue
            legal = policy.representation.masks(ids[row : row + 1, :t])[0, -1]
            weights = [torch.where(legal, (logits[row, t - 1] / one).exp(), 0.0) for one in temperatures]
            by_hand.append(torch.stack([-(w[ids[row, t]] / w.sum()).log() for w in weights]))
    assert len(by_hand) == int((labels != -100).sum())
    for temperature, expected in zip(temperatures, torch.stack(by_hand).mean(0).tolist(), strict=True):
        assert float(policy(ids, labels=labels, temperature=temperature).loss) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_and_entropies_by_hand(policy, temperature):
    ids, _ = batch(policy)
    p = policy.representation.prompt_length
    logprobs, entropy = policy.token_logprobs(ids, temperature)
    expected = policy(ids, temperature=temperature).logits.log_softmax(-1)[:, p - 1 : -1]
    assert logprobs.shape == entropy.shape == (len(ids), ids.shape[1] - p)
    assert torch.allclose(logprobs, expected.gather(2, ids[:, p:, None])[..., 0], atol=1e-5)
    by_hand = torch.distributions.Categorical(logits=expected.double().clamp(min=-1e9)).entropy()
    assert torch.allclose(entropy.double(), by_hand, atol=1e-5)
    assert (entropy[ids[:, p:] == policy.representation.pad] == 0).all()


def test_gradients_are_finite_and_reach_every_parameter(policy):
    ids, labels = batch(policy)
    policy.train()(ids, labels=labels).loss.backward()
    logprobs, _ = policy.token_logprobs(ids)
    logprobs.sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("chunks", [1, 4], ids=["from the first token", "after the prompt"])
def test_hidden_states_with_a_cache_equal_those_without(policy, chunks):
    ids, _ = batch(policy)
    whole = policy.hidden(ids)
    cache = Cache(policy.config, len(ids), ids.shape[1], policy.embed.weight)
    steps = [ids[:, :chunks], *ids[:, chunks:].split(1, dim=1)]
    pieces = torch.cat([policy.hidden(step, cache) for step in steps], dim=1)
    assert (pieces - whole).abs().max() < 1e-5


def test_later_tokens_do_not_change_earlier_ones(policy):
    ids, _ = batch(policy)
    changed = ids.clone()
    changed[:, 20:] = 7
    assert torch.equal(policy.hidden(ids)[:, :20], policy.hidden(changed)[:, :20])


# On disk


def test_a_folder_is_enough_to_sample(policy, tmp_path):
    conditions = random_conditions(20, np.random.default_rng(0))
    table = PromptTable.of([225, 2], [[11, 17], [3, 25, 8, 8]])
    policy.save_pretrained(tmp_path / "policy")
    table.save(tmp_path / "policy")
    loaded, prompts = CrystalPolicy.load(str(tmp_path / "policy"))
    draws = [sample(p, conditions, torch.Generator().manual_seed(3)) for p in (policy, loaded)]
    assert torch.equal(draws[0].ids, draws[1].ids) and torch.equal(draws[0].logprobs, draws[1].logprobs)
    assert loaded.representation.max_atoms == policy.representation.max_atoms == 20
    for name in ("space_group", "n_atoms", "elements"):
        assert np.array_equal(getattr(prompts, name), getattr(table, name))
    written = [path for path in (tmp_path / "policy").rglob("*") if path.is_file()]
    assert {path.suffix for path in written} == {".json", ".safetensors"}  # no pickle


def test_another_version_of_the_representation_is_refused(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["representation_version"] = "0123456789abcdef"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"0123456789abcdef.*pretrain anew"):
        CrystalPolicy.from_pretrained(tmp_path)


def test_the_version_tells_vocabularies_apart():
    assert make("atoms", max_atoms=20).version == make("atoms", max_atoms=20).version
    assert make("atoms", max_atoms=20).version != make("atoms", max_atoms=21).version


def test_what_is_no_policy_is_the_users_mistake(policy, tmp_path):
    with pytest.raises(UserError, match="no policy there"):
        CrystalPolicy.load(str(tmp_path))
    policy.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"prompts\.safetensors"):
        CrystalPolicy.load(str(tmp_path))
    with pytest.raises(UserError, match="known: atoms"):
        make("molecules")


# Sizes

MILLIONS = {"tiny": 1, "compact": 3, "small": 5, "base": 42}


#: The sizes of what is gone on from are not in its file.
OWN = [file for file in sorted((CONFIGS / "policy").glob("*.yaml")) if file.stem not in ("hf", "trained")]


@pytest.mark.parametrize("file", OWN, ids=lambda file: file.stem)
def test_policies_have_the_size_they_say(file: Path):
    with torch.device("meta"):
        policy = CrystalPolicy.create(make("atoms"), **yaml.safe_load(file.read_text()))
    assert sum(p.numel() for p in policy.parameters()) == pytest.approx(MILLIONS[file.stem] * 1e6, rel=0.15)
    assert f"About {MILLIONS[file.stem]} million parameters" in file.read_text()


# What is asked of crystals


def test_prompts_are_drawn_from_the_crystals():
    table = PromptTable.of([225, 2], [[11, 17], [3, 25, 8, 8]])
    drawn = table.sample(2000, np.random.default_rng(0))
    assert {tuple(row.values()) for row in drawn} == {
        (225, 2, "Na"), (225, 2, "Cl"), (2, 4, "Li"), (2, 4, "Mn"), (2, 4, "O")
    }  # fmt: skip
    share = np.mean([row["element"] == "O" for row in drawn if row["n_atoms"] == 4])
    assert share == pytest.approx(1 / 3, abs=0.06)  # elements count alike, however many of the atoms are theirs
    assert table.sample(50, np.random.default_rng(1)) == table.sample(50, np.random.default_rng(1))


def test_what_is_left_open_follows_the_crystals_that_fit():
    table = PromptTable.of([225, 225, 62, 2], [[11, 17], [3, 9], [38, 22] + [8] * 3, [3, 25, 8, 8]])
    rng = np.random.default_rng(0)

    def drawn(**asked):
        return table.answering(asked, 200, rng, lambda condition: True)

    assert {(c["n_atoms"], c["element"]) for c in drawn(space_group=225)} == {(2, "Na"), (2, "Cl"), (2, "Li"), (2, "F")}
    assert {c["space_group"] for c in drawn(element="Li")} == {225, 2}
    assert {(c["space_group"], c["n_atoms"]) for c in drawn(formula="SrTiO3")} == {(62, 5)}
    assert {(c["space_group"], c["n_atoms"]) for c in drawn(elements="Li-O", max_atoms=4)} == {(225, 2)}
    assert drawn(space_group=100)[0] == {"space_group": 100}  # no crystal has it: the rest stays open
    assert table.answering({"space_group": 225}, 1, rng, lambda condition: False) == [{"space_group": 225}]


def test_the_seed_decides_the_weights():
    first, again, other = (tiny_policy(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
