"""What was found before earns less: by crystal, formula and prototype, relative to what was asked, over resumes."""

import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from policies.model import SHIPPED
from policies.prompts import PromptTable
from rlgen import checkpoint, reference
from rlgen.config import load
from rlgen.experience import Collector
from rlgen.memory import SHAPES, Memory
from rlgen.metrics import exp_entropy
from rlgen.protostructure import read_label
from rlgen.settings import MemoryConfig

NACL, KCL, KBR = "AB_cF8_225_a_b:Cl-Na", "AB_cF8_225_a_b:Cl-K", "AB_cF8_225_a_b:Br-K"
CSCL_OF_NACL = "AB_cP2_221_a_b:Cl-Na"


def memory(asked: float = 0.0, **changes) -> Memory:
    settings = OmegaConf.structured(MemoryConfig)
    for key, value in changes.items():
        OmegaConf.update(settings, key.replace("__", "."), value)
    return Memory(settings, lambda group, n_atoms: asked if (group, n_atoms) == (225, 2) else 0.0)


def earned(memory: Memory, labels: list, totals=None) -> list[float]:
    return memory.discount(labels, np.ones(len(labels)) if totals is None else np.array(totals)).tolist()


def test_by_default_a_crystal_earns_1_over_1_plus_n():
    found = memory()
    assert earned(found, [NACL, KCL, NACL, None, NACL]) == [1, 1, 1 / 2, 1, 1 / 3]
    assert earned(found, [NACL, KBR, "NaCl|unlabelled", "NaCl|unlabelled"]) == [1 / 4, 1, 1, 1 / 2]
    assert found.samples == 9 and found.crystals[NACL] == 4


@pytest.mark.parametrize(
    ("shape", "left"),
    [("none", [1, 1, 1, 1, 1]), ("inverse", [1, 2 / 3, 1 / 2, 2 / 5, 1 / 3]), ("step", [1, 1, 0, 0, 0]),
     ("linear", [1, 1 / 2, 0, 0, 0]),
     ("sigmoid", [1 / (1 + np.exp(x / 0.15)) for x in (-1, 0, 1, 2, 3)])],
)
def test_shapes_of_a_bucket_of_two(shape, left):
    np.testing.assert_allclose(earned(memory(crystal__shape=shape, crystal__bucket=2), [NACL] * 5), left)


def test_every_shape_starts_near_1_never_rises_and_stays_in_bounds():
    for shape in SHAPES.values():
        values = [shape(fill) for fill in np.linspace(0, 100, 500)]
        assert values[0] > 0.998 and (np.diff(values) <= 0).all() and min(values) >= 0


def test_formulas_and_prototypes_have_buckets_of_their_own():
    off = {"crystal__shape": "none"}
    assert earned(memory(**off, formula__shape="step", formula__bucket=1), [NACL, CSCL_OF_NACL, KCL]) == [1, 0, 1]
    assert earned(memory(**off, prototype__shape="step", prototype__bucket=2), [NACL, KCL, CSCL_OF_NACL, KBR]
                  ) == [1, 1, 1, 0]
    # The same positions, whichever element is called A.
    fluorite, antifluorite = "A2B_cF12_225_c_a:F-Sr", "AB2_cF12_225_a_c:O-Rb"
    assert earned(memory(**off, prototype__shape="step", prototype__bucket=1), [fluorite, antifluorite]) == [1, 0]
    both = memory(formula__shape="inverse", formula__bucket=1)
    assert earned(both, [NACL, NACL, CSCL_OF_NACL]) == [1, 1 / 4, 1 / 3]  # crystal × formula


def test_a_prototype_has_room_for_what_was_asked():
    # Half of the prompts ask for rock salt's space group and size: half of the samples may be rock salt.
    labels = [f"AB_cF8_225_a_b:Cl-X{i}" if i % 2 else f"AB_cP2_221_a_b:Cl-X{i}" for i in range(400)]
    settings = {"crystal__shape": "none", "prototype__shape": "step", "prototype__bucket": 10}
    asked, unasked = memory(0.5, **settings), memory(0.0, **settings)
    for start in range(0, 400, 40):
        chunk = labels[start : start + 40]
        as_asked, as_not = earned(asked, chunk), earned(unasked, chunk)
        assert as_asked[1::2] == [1] * 20
        assert (start < 20) or sum(as_not) == 0
        assert (start < 20) or sum(as_asked[::2]) == 0  # nobody asked for these
    absolute = memory(0.5, **settings, prototype__quota=0.0)
    assert sum(earned(absolute, labels)) == 20  # both buckets of ten


def test_the_share_of_prompts_is_that_of_both_enantiomorphic_groups():
    config = load("finetune", ["prompts.power=0"])
    collector = Collector(PromptTable.of([76, 78, 78, 225], [[11, 17]] * 4), config)
    collector.enter(None, config)
    asked = collector.memory.asked
    assert (asked(76, 2), asked(225, 2)) == pytest.approx((2 / 3, 1 / 3)) and asked(78, 2) == asked(1, 2) == 0


@pytest.mark.parametrize("shape", ["none", "inverse"])
def test_a_policy_that_learns_under_the_memory_keeps_several_prototypes(shape):
    """Policy gradient over four prototypes of one space group and size, of which one is worth most, each sample with
    other elements. Without the memory it writes that one. With it, shares s tend to where v / (1 + s) is the same."""
    found = memory(1.0, prototype__shape=shape, prototype__bucket=1)
    values, positions = np.array([1.0, 0.9, 0.8, 0.7]), ["a_b", "a_c", "c_d", "a_d"]
    rng, logits, drawn = np.random.default_rng(0), np.zeros(4), []
    for step in range(600):
        p = np.exp(logits) / np.exp(logits).sum()
        drawn = rng.choice(4, size=32, p=p)
        labels = [f"AB_cF8_225_{positions[k]}:Cl-X{step}{i}" for i, k in enumerate(drawn)]
        rewards = values[drawn] * found.discount(labels, values[drawn])
        advantages = rewards - rewards.mean()
        logits += 0.5 * (np.bincount(drawn, advantages, minlength=4) - advantages.sum() * p) / 4
    p = np.exp(logits) / np.exp(logits).sum()
    if shape == "none":
        assert exp_entropy(drawn) < 1.2 and p[0] > 0.95
    else:
        np.testing.assert_allclose(p, values / 0.68 - 1, atol=0.1)


def test_who_answers_as_mp20_does_keeps_all_and_the_trap_keeps_nothing():
    """Prompts of the shipped policy; labels of the training set at random, or all of its commonest prototype."""
    train = pq.read_table(reference._SHIPPED, filters=[("split", "==", "train")], columns=["label"])
    labels = [label for label in train["label"].to_pylist() if not label.endswith("|unlabelled")]
    heuslers = [label for label in labels if read_label(label).prototype == "ABC2_cF16_225_a_b_c"]
    config = load("finetune", ["memory.crystal.shape=none", "memory.prototype.shape=step"])
    rng = np.random.default_rng(0)
    for pool, kept in ((labels, 1.0), (heuslers, 0.0)):
        collector = Collector(PromptTable.load(SHIPPED), config)
        collector.enter(None, config)
        for _ in range(40):
            drawn = [pool[i] for i in rng.integers(len(pool), size=128)]
            left = collector.memory.discount(drawn, np.ones(128))
        assert left.mean() == pytest.approx(kept, abs=0.02)


def test_only_what_scores_enough_is_remembered():
    found = memory(min_score=0.5)
    assert earned(found, [NACL, NACL, NACL], [0.4, 0.5, 0.9]) == [1, 1, 1 / 2]
    assert found.crystals[NACL] == 2 and found.samples == 3


def test_state_comes_back_and_goes_on_alike(tmp_path):
    settings = {"formula__shape": "sigmoid", "prototype__shape": "linear", "asked": 0.1}
    rng = np.random.default_rng(0)
    some = [NACL, KCL, KBR, CSCL_OF_NACL, None, "NaCl|unlabelled"]
    whole, first = memory(**settings), memory(**settings)
    draws = [[some[i] for i in rng.integers(len(some), size=20)] for _ in range(6)]
    for found in (whole, first):
        for labels in draws[:3]:
            found.discount(labels, np.ones(20))
        found.add_sun(KBR)
        found.add_sun(KCL)
    checkpoint.save_state(tmp_path / "memory", first.state())
    second = memory(**settings)
    second.load_state(checkpoint.load_state(tmp_path / "memory"))
    assert second.scalars() == whole.scalars()
    assert second.scalars()["memory/sun"] == 2 and second.scalars()["memory/sun_prototypes"] == 1
    for labels in draws[3:]:
        np.testing.assert_array_equal(second.discount(labels, np.ones(20)), whole.discount(labels, np.ones(20)))
    new = memory()
    new.load_state(memory().state())
    assert new.scalars() == memory().scalars()


def test_hundreds_of_thousands_of_crystals_are_saved_in_a_moment(tmp_path):
    shipped = pq.read_table(reference._SHIPPED, columns=["label"])["label"].to_pylist()
    found = memory()
    found.crystals.update({f"{label}{i}": 1 + i for label in shipped for i in range(5)})
    started = time.process_time()
    checkpoint.save_state(tmp_path / "memory", found.state())
    assert time.process_time() - started < 2 and len(found.crystals) > 200_000
    assert (tmp_path / "memory.json").stat().st_size + (tmp_path / "memory.safetensors").stat().st_size < 15e6
