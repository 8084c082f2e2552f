"""The pool without workers: three kinds of no reward, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from toy_rewards import Asked, Length, Misconfigured, Rank, TooHigh, WithReasons, rocksalt, rocksalts

from rewards.validity import Validity
from rlgen.counters import count
from rlgen.reward_measure import pack, unpack
from rlgen.reward_pool import RewardPool
from rlgen.types import CrystalError, UserError


def test_payload_keeps_the_crystal():
    crystal = Structure(Lattice.from_parameters(3, 4, 5, 80, 95, 101), ["Fe", "O"], [[0.1, -0.2, 1.3], [0.5, 0.6, 0.7]])
    back = unpack(pack(crystal))
    assert np.array_equal(back.lattice.matrix, crystal.lattice.matrix)
    assert np.array_equal(back.frac_coords, crystal.frac_coords)
    assert back.species == crystal.species


def test_invalid_failed_and_low_are_three_things():
    count("counted elsewhere")
    overlapping = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.05, 0, 0]])
    crystals = [rocksalt(a=5.0), CrystalError("parse", "half a token"), overlapping, rocksalt("U", a=6.0)]
    with RewardPool([Validity(), Length(nan_for="U"), Asked()], "length+asked", workers=0) as pool:
        result = pool.score(crystals, [{"n_atoms": 8}] * 4)
    assert result.status.tolist() == ["ok", "invalid", "invalid", "failed"]
    assert result.reason[0] == "" and result.reason[1] == "parse: half a token" and "0.20 Å apart" in result.reason[2]
    assert result.reason[3] == "length: measured nan"
    np.testing.assert_allclose(result.raw[:, 0], [1, 0, 0, 1])
    np.testing.assert_allclose(result.raw[:, 1], [5.0, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(result.raw[:, 2], [50, np.nan, np.nan, 50])
    np.testing.assert_allclose(result.total, [(0.05 + 0.5) / 2, 0, 0, 0.25])
    assert result.names == ("validity", "length", "asked")
    assert result.counters == {"restarts": 0, "timeouts": 0, "failures": 1, "toy/measured": 2}


def test_nan_never_raises_a_total():
    for expression in ("length+asked", "length*asked", "asked+3*length", "length"):
        with RewardPool([Length(nan_for="U"), Asked()], expression, workers=0) as pool:
            good, bad = pool.score([rocksalt("Na", a=1.0 + 4.0), rocksalt("U", a=5.0)]).total
        assert np.isfinite(bad) and bad <= good


def test_nothing_valid_and_nothing_at_all():
    with RewardPool([Length(), Rank()], "length+rank", workers=0) as pool:
        assert pool.score([]).total.shape == (0,)
        result = pool.score([CrystalError("symmetry", "no"), CrystalError("parse", "no")])
    assert result.total.tolist() == [0, 0] and result.raw.shape == (2, 2)



def test_a_reward_that_is_broken_ends_the_run():
    with RewardPool([Length(raise_for="Na")], "length", workers=0) as pool:
        with pytest.raises(UserError, match=r"'length' failed on all 4 crystals: ZeroDivisionError"):
            pool.score(rocksalts(4))
        assert pool.score([rocksalt("K"), rocksalt("Na")]).status.tolist() == ["ok", "failed"]
        # From then on a batch on which it always raises is bad luck.
        assert set(pool.score(rocksalts(4)).status) == {"failed"}
    with (
        RewardPool([Misconfigured()], "misconfigured", workers=0) as pool,
        pytest.raises(UserError, match="weights are missing"),
    ):
        pool.score(rocksalts(1))


def test_reasons_and_scores_out_of_range():
    with RewardPool([WithReasons()], "with_reasons", workers=0) as pool:
        assert pool.score([rocksalt()]).reason == ["with_reasons: too hard"]
    with RewardPool([TooHigh()], "too_high", workers=0) as pool, pytest.raises(UserError, match=r"outside \[0, 1\]"):
        pool.score([rocksalt()])


def test_expression_must_name_what_is_given():
    with pytest.raises(UserError, match="length"):
        RewardPool([Length()], "novelty+length", workers=0)
    with pytest.raises(UserError, match="twice"):
        RewardPool([Length(), Length()], "length", workers=0)
    with RewardPool([Length()], "toy_rewards:Length", workers=0) as pool:
        np.testing.assert_allclose(pool.score([rocksalt(a=5)]).total, [0.05])


def test_without_workers_ray_is_never_imported():
    code = (
        "import sys; from pymatgen.core import Lattice, Structure; from toy_rewards import Length\n"
        "from rlgen.reward_pool import RewardPool\n"
        "with RewardPool([Length()], 'length', workers=0) as pool:\n"
        "    assert pool.score([Structure(Lattice.cubic(3), ['Fe'], [[0, 0, 0]])]).total[0] == 0.03\n"
        "assert 'ray' not in sys.modules and 'torch' not in sys.modules, 'heavy imports'\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
