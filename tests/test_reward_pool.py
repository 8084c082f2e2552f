"""The pool: three kinds of no reward, the same results with any number of workers, and workers that get lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from toy_rewards import Asked, Length, Misconfigured, Rank, TooHigh, WithReasons

from rewards.novelty import Novelty
from rewards.uniqueness import Uniqueness
from rewards.validity import Validity
from rlgen.reward_measure import pack, unpack
from rlgen.reward_pool import RewardPool
from rlgen.types import CrystalError, UserError

ALWAYS = ("restarts", "timeouts", "failures")


def rocksalt(cation: str = "Na", anion: str = "Cl", a: float = 5.6) -> Structure:
    """The cubic cell of eight atoms. Written out: from_spacegroup takes 0.1 s."""
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Structure(Lattice.cubic(a), [cation] * 4 + [anion] * 4, [*corners, *(corners + 0.5)])


def batch(n: int = 20, poison: int | None = None) -> list[Structure]:
    """Rock salts of rising length; the one at `poison` is of uranium."""
    return [rocksalt("U" if i == poison else "Na", a=5.0 + 0.05 * i) for i in range(n)]


def lengths(crystals) -> np.ndarray:
    return np.array([c.lattice.a for c in crystals])


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """One Ray for the module: each start costs five seconds. Pools then leave it running."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 1024**2)
    yield
    assert ray.is_initialized(), "a pool ended a Ray that it had not started"
    ray.shutdown()


def test_payload_keeps_the_crystal():
    crystal = Structure(Lattice.from_parameters(3, 4, 5, 80, 95, 101), ["Fe", "O"], [[0.1, -0.2, 1.3], [0.5, 0.6, 0.7]])
    back = unpack(pack(crystal))
    assert np.array_equal(back.lattice.matrix, crystal.lattice.matrix)
    assert np.array_equal(back.frac_coords, crystal.frac_coords)
    assert back.species == crystal.species


def test_invalid_failed_and_low_are_three_things():
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


def test_same_results_with_any_number_of_workers():
    rng = np.random.default_rng(3)
    kinds = [("Na", "Cl"), ("K", "Br"), ("U", "N")]
    crystals = [rocksalt(*kinds[i % 3], a=a) for i, a in enumerate(rng.uniform(5, 7, 27))]
    crystals[4] = CrystalError("chemistry", "charged")
    crystals[9] = crystals[3].copy()
    conditions = [{"n_atoms": i} for i in range(27)]
    rewards = [Validity(), Length(nan_for="U", raise_for="K"), Asked(), Rank(), Novelty(), Uniqueness()]
    results = []
    for workers in (0, 1, 2):
        with RewardPool(rewards, "asked*(novelty+length)+rank+uniqueness", workers=workers, chunk=5) as pool:
            results.append(pool.score(crystals, conditions))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].raw, other.raw)
        np.testing.assert_array_equal(results[0].score, other.score)
        np.testing.assert_array_equal(results[0].total, other.total)
        assert results[0].status.tolist() == other.status.tolist() and results[0].reason == other.reason
        assert results[0].counters == other.counters
    assert results[0].reason[1] == "length: ZeroDivisionError: no such length"
    # Rock salts of one chemistry differ in volume alone, which the matcher scales away: 8, 9 and 9 copies.
    np.testing.assert_allclose(results[0].raw[0, 5], 9)


def test_worker_killed_from_outside_mid_batch():
    crystals = batch(40)
    with RewardPool([Length(delay=0.05)], "length", workers=2, chunk=4) as pool:
        victim = pool._workers.pids()[0]
        killer = threading.Timer(0.3, os.kill, (victim, signal.SIGKILL))
        killer.start()
        result = pool.score(crystals)
        assert killer.finished.is_set()
        np.testing.assert_allclose(result.raw[:, 0], lengths(crystals))
        assert result.counters["restarts"] == 1 and set(result.status) == {"ok"}
        assert pool.score(crystals[:3]).counters["restarts"] == 0


def test_poison_fails_alone(tmp_path):
    crystals = batch(12, poison=5)
    with RewardPool([Length(kill_for="U"), Asked()], "length+asked", workers=2, chunk=4) as pool:
        result = pool.score(crystals)
    ok = np.arange(12) != 5
    np.testing.assert_allclose(result.raw[ok, 0], lengths(crystals)[ok])
    assert result.status[5] == "failed" and "died twice" in result.reason[5] and set(result.status[ok]) == {"ok"}
    assert {k: result.counters[k] for k in ALWAYS} == {"restarts": 2, "timeouts": 0, "failures": 1}
    with RewardPool([Length(kill_for="U", once=str(tmp_path))], "length", workers=1, chunk=4) as pool:
        result = pool.score(crystals)
    np.testing.assert_allclose(result.raw[:, 0], lengths(crystals))


def test_hanging_worker_is_replaced(tmp_path):
    crystals = batch(8, poison=2)
    with RewardPool([Length(hang_for="U")], "length", workers=2, chunk=4, timeout_s=1.5) as pool:
        result = pool.score(crystals)
    ok = np.arange(8) != 2
    np.testing.assert_allclose(result.raw[ok, 0], lengths(crystals)[ok])
    assert result.status[2] == "failed" and result.reason[2] == "length: no answer within 1.5 s, twice"
    assert {k: result.counters[k] for k in ALWAYS} == {"restarts": 2, "timeouts": 2, "failures": 1}


def test_batch_reward_that_hangs_costs_its_score_only():
    with RewardPool([Length(), Rank(hangs=True)], "length+rank", workers=1, timeout_s=1.0) as pool:
        pool._proven = {0, 1}  # it has worked before
        result = pool.score(batch(2))
    assert np.isnan(result.raw[:, 1]).all() and not np.isnan(result.raw[:, 0]).any()
    np.testing.assert_allclose(result.total, lengths(batch(2)) / 200)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reward_that_is_broken_ends_the_run(workers):
    with RewardPool([Length(raise_for="Na")], "length", workers=workers) as pool:
        with pytest.raises(UserError, match=r"'length' failed on all 4 crystals: ZeroDivisionError"):
            pool.score(batch(4))
        assert pool.score([rocksalt("K"), rocksalt("Na")]).status.tolist() == ["ok", "failed"]
        # From then on a batch on which it always raises is bad luck.
        assert set(pool.score(batch(4)).status) == {"failed"}
    with (
        RewardPool([Misconfigured()], "misconfigured", workers=workers) as pool,
        pytest.raises(UserError, match="weights are missing"),
    ):
        pool.score(batch(1))


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


def test_pool_ends_the_ray_it_started():
    code = (
        "import ray; from pymatgen.core import Lattice, Structure; from toy_rewards import Length\n"
        "from rlgen.reward_pool import RewardPool\n"
        "with RewardPool([Length()], 'length', workers=1) as pool:\n"
        "    assert ray.is_initialized()\n"
        "    assert pool.score([Structure(Lattice.cubic(3), ['Fe'], [[0, 0, 0]])]).total[0] == 0.03\n"
        "assert not ray.is_initialized()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    started = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert time.monotonic() - started < 120
