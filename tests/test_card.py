"""A policy's card is one that the Hub can read, and says where the policy comes from."""

from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

from rlgen import card
from rlgen.metrics import Estimate


def read(folder):
    return ModelCard.load(folder / "README.md")


def test_the_hub_reads_a_card(tmp_path):
    card.write(tmp_path, "# A policy\n", "mp20", {"valid": 0.99512, "novel": 0.8})
    found = read(tmp_path)
    assert found.data.license == "apache-2.0" and found.data.library_name == "rlgen"
    assert found.data.datasets == ["mp_20"] and found.data.metrics == ["valid", "novel"]
    assert {"crystal-generation", "materials-science"} <= set(found.data.tags)
    assert "reinforcement-learning" not in found.data.tags
    assert [(r.metric_type, r.metric_value) for r in found.data.eval_results] == [("valid", 0.9951), ("novel", 0.8)]
    assert found.text.strip().startswith("# A policy") and "rlgen.sample policy=policy" in found.text


def test_own_data_has_its_owners_license(tmp_path):
    card.write(tmp_path, "# A policy\n", "/secret/place/my_crystals.csv", {})
    found = read(tmp_path)
    assert found.data.license is None and found.data.datasets == ["my_crystals"]
    assert "secret" not in found.content


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_fine_tuned_policy_says_what_it_was_made_with(tmp_path, evaluated):
    config = OmegaConf.create({
        "policy": "shipped", "reward": {"expression": "novelty*stability"}, "algorithm": {"name": "grpo"},
        "steps": 3, "batch": 8, "seed": 7, "energy": "m3gnet", "judge": "chgnet", "data": "shipped",
    })  # fmt: skip
    summary = {name: Estimate(0.5, 0.4, 0.6) for name in ("valid", "unique", "novel", "metastable", "stable", "sun")}
    notes = {
        "samples": 4, "definitions": {"stable": 0.0, "metastable": 0.1}, "scale": "x", "hull": "y", "relaxed": False,
        "novelty": "labels", "unique": "matcher",
    }  # fmt: skip
    one = SimpleNamespace(summary=summary, notes=notes, failures={})
    card.write_finetuned(tmp_path, config, 1234, {"pretrained": one, "fine-tuned": one} if evaluated else {})
    found = read(tmp_path)
    assert "reinforcement-learning" in found.data.tags and found.data.to_dict()["rlgen_base"] == "shipped"
    for words in ("| reward | novelty*stability |", "3 steps of 8 crystals, seed 7", "judge: chgnet", "1,234"):
        assert words in found.text
    assert ("| S.U.N. (≤ 0.1 eV/atom) | 50.0 % [40.0, 60.0] |" in found.text) == evaluated
    assert (found.data.eval_results is not None) == evaluated


def test_the_shipped_policy_has_a_card():
    from policies.model import SHIPPED

    found = read(SHIPPED)
    assert found.data.license == "apache-2.0" and found.data.datasets == ["mp_20"]
    assert {r.metric_type for r in found.data.eval_results} == {"valid", "unique", "novel"}
