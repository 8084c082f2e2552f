"""Workers: the same results with any number of them, and what happens to them costs no other crystal its score."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from toy_rewards import Asked, Length, Misconfigured, Rank, Starting, rocksalt, rocksalts

from rewards.stability import Stability
from rewards.uniqueness import Uniqueness
from rewards.validity import Validity
from rlgen.reward_pool import RewardPool
from rlgen.settings import RayConfig
from rlgen.types import CrystalError, UserError


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """One Ray for the module: each start costs five seconds. Pools then leave it running."""
    import ray

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 1024**2
    )
    yield ray
    assert ray.is_initialized(), "a pool ended a Ray that it had not started"
    ray.shutdown()


@pytest.fixture(scope="module")
def two_workers():
    """One pool for all that can happen to workers; they are replaced, and each accident meets a whole pool."""
    settings = RayConfig(chunk=4, timeout_s=2.0, memory_mb=2000)
    with RewardPool([Length(), Asked()], "length+asked", workers=2, ray=settings) as pool:
        yield pool


def lengths(crystals) -> np.ndarray:
    return np.array([c.lattice.a for c in crystals])


def events(result) -> dict[str, int]:
    """What the pool counted, but for what did not happen and what the toys counted."""
    return {name: n for name, n in result.counters.items() if n and not name.startswith("toy/")}


def score_with(pool, accident, n=12, unlucky=5, once=None):
    """Score n crystals, one of which causes an accident; all others must get their scores."""
    crystals = rocksalts(n)
    conditions = [{"n_atoms": 8 + i} for i in range(n)]
    conditions[unlucky] |= {"accident": accident, "once": None if once is None else str(once)}
    pool._workers.pids()  # all have started
    result = pool.score(crystals, conditions)
    others = np.arange(n) != unlucky
    np.testing.assert_array_equal(result.raw[others, 0], lengths(crystals)[others])
    np.testing.assert_array_equal(result.raw[others, 1], 50.0 + np.arange(n)[others])
    assert set(result.status[others]) == {"ok"}
    return result, unlucky


def assert_equal(one, other):
    for values in ("raw", "score", "total", "status"):
        np.testing.assert_array_equal(getattr(one, values), getattr(other, values))
    assert one.reason == other.reason and one.counters == other.counters


def test_same_results_with_any_number_of_workers_in_any_order():
    rng = np.random.default_rng(3)
    kinds = [("Na", "Cl"), ("K", "Br"), ("U", "N")]
    crystals = [rocksalt(*kinds[i % 3], a=a) for i, a in enumerate(rng.uniform(5, 7, 27))]
    crystals[4] = CrystalError("chemistry", "charged")
    crystals[9] = crystals[3].copy()
    rewards = [Validity(), Length(nan_for="U", raise_for="K"), Asked(), Rank(), Uniqueness()]
    results = []
    for workers in (0, 1, 2, 4):
        # Other times with each number of workers: chunks come back in another order.
        conditions = [{"n_atoms": i, "sleep": rng.uniform(0, 0.03)} for i in range(27)]
        settings = RayConfig(chunk=5)
        with RewardPool(rewards, "asked*length+rank+uniqueness", workers=workers, ray=settings) as pool:
            results.append(pool.score(crystals, conditions))
    for other in results[1:]:
        assert_equal(results[0], other)
    assert results[0].reason[1] == "length: ZeroDivisionError: no such length"
    # Rock salts of one chemistry differ in volume alone, which the matcher scales away: 8, 9 and 9 copies.
    np.testing.assert_allclose(results[0].raw[0, 4], 9)


def test_energies_do_not_depend_on_the_workers():
    """To the last bit: the driver forms the chunks, and a worker has as many threads as this test."""
    import torch

    threads = torch.get_num_threads()
    crystals = [rocksalt(*kind, a=a) for kind in (("Na", "Cl"), ("Mg", "O"), ("Li", "F")) for a in (4.1, 4.7, 5.6)]
    settings, results = RayConfig(chunk=4, memory_mb=4000), []
    try:
        torch.set_num_threads(1)
        for workers in (0, 2):
            with RewardPool([Stability("chgnet")], "stability", workers=workers, ray=settings) as pool:
                results.append(pool.score(crystals))
    finally:
        torch.set_num_threads(threads)
    assert_equal(*results)
    assert len(np.unique(results[0].raw)) == 9
    assert "cache_misses" not in results[0].counters  # nor "cache_hits": both sides have computed


@pytest.mark.parametrize("victims", [1, 2])
def test_workers_killed_from_outside(two_workers, victims):
    crystals = rocksalts(40)
    pids = two_workers._workers.pids()

    def kill():
        for pid in pids[:victims]:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Timer(0.3, kill)
    killer.start()
    result = two_workers.score(crystals, [{"sleep": 0.05}] * 40)
    killer.join()
    np.testing.assert_array_equal(result.raw[:, 0], lengths(crystals))
    assert set(result.status) == {"ok"} and events(result) == {"restarts": victims}


def test_a_crystal_that_kills_twice_fails_alone(two_workers):
    result, unlucky = score_with(two_workers, "killed")
    assert result.status[unlucky] == "failed"
    assert result.reason[unlucky].startswith("length: its worker died, the second worker lost over it; asked: ")
    assert events(result) == {"restarts": 2, "failures": 1}


def test_a_crystal_that_kills_once_is_scored(two_workers, tmp_path):
    result, unlucky = score_with(two_workers, "killed", once=tmp_path / "was_here")
    assert result.status[unlucky] == "ok" and events(result) == {"restarts": 1}


def test_a_worker_that_hangs_once(two_workers, tmp_path):
    result, unlucky = score_with(two_workers, "hangs", once=tmp_path / "was_here")
    assert result.status[unlucky] == "ok" and events(result) == {"restarts": 1, "timeouts": 1}


def test_a_worker_that_hangs_in_c(two_workers):
    result, unlucky = score_with(two_workers, "hangs_in_c")
    assert result.reason[unlucky].startswith("length: no answer within 2 s, the second worker lost over it")
    assert events(result) == {"restarts": 2, "timeouts": 2, "failures": 1}


def test_a_worker_out_of_memory(two_workers):
    result, unlucky = score_with(two_workers, "takes_all_memory")
    assert result.status[unlucky] == "failed" and "MemoryError" in result.reason[unlucky]
    assert events(result) == {"out_of_memory": 2, "failures": 1}  # with its chunk, and by itself
    assert result.raw[unlucky, 1] == 55  # the other reward of the crystal is measured


def test_a_worker_that_ray_ends_for_memory(two_workers, one_ray):
    before = two_workers.counters["out_of_memory"]
    assert "out of memory" in two_workers._workers._why(one_ray.exceptions.OutOfMemoryError("95 % used"), False)
    assert two_workers.counters["out_of_memory"] == before + 1


def test_a_batch_reward_that_hangs_costs_its_score_only():
    with RewardPool([Length(), Rank(hangs=True)], "length+rank", workers=1, ray=RayConfig(timeout_s=1.0)) as pool:
        pool._proven = {0, 1}  # it has worked before
        result = pool.score(rocksalts(2))
    assert np.isnan(result.raw[:, 1]).all() and not np.isnan(result.raw[:, 0]).any()
    np.testing.assert_allclose(result.total, lengths(rocksalts(2)) / 200)


def test_a_worker_that_dies_while_it_starts(tmp_path):
    with RewardPool([Starting(once=str(tmp_path / "was_here"))], "length", workers=1) as pool:
        result = pool.score(rocksalts(3))
    assert set(result.status) == {"ok"} and events(result) == {"restarts": 1, "failed_starts": 1}


@pytest.mark.parametrize(
    ("reward", "settings", "why"),
    [
        (Starting(accident="raises"), RayConfig(), "ValueError: no such thing"),
        (Starting(accident="killed"), RayConfig(), r"one died \(The actor is dead because its worker process has died"),
        (Starting(accident="hangs"), RayConfig(start_timeout_s=1.5), "no answer within 1.5 s"),
        (Length(), RayConfig(cpus_per_worker=64, start_timeout_s=0.5), r"asks for 64 CPU \(\d+ of 4 free\)"),
    ],
)
def test_workers_that_do_not_start_end_the_run(reward, settings, why):
    with (
        RewardPool([reward], "length", workers=1, ray=settings) as pool,
        pytest.raises(UserError, match=f"reward workers do not start: .*{why}"),
    ):
        pool.score(rocksalts(2))


def test_a_broken_reward_in_a_worker_ends_the_run():
    with RewardPool([Length(raise_for="Na"), Misconfigured()], "length", workers=1) as pool:
        with pytest.raises(UserError, match="weights are missing"):
            pool.score(rocksalts(1))
        pool.rewards.pop()
        with pytest.raises(UserError, match=r"'length' failed on all 4 crystals: ZeroDivisionError"):
            pool.score(rocksalts(4))


def test_scoring_in_another_thread(two_workers):
    """As a training loop does that samples meanwhile; what goes wrong there comes out of the future, once."""
    crystals = rocksalts(16)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(two_workers.score, crystals, [{"sleep": 0.02}] * 16)
        here = two_workers.score(crystals[:2])  # waits for its turn
        np.testing.assert_array_equal(running.result().raw[:, 0], lengths(crystals))
        np.testing.assert_array_equal(here.raw[:, 0], lengths(crystals)[:2])
        broken = thread.submit(two_workers.score, crystals, [{"sleep": "no number"}] * 16)
        two_workers._proven = set()
        with pytest.raises(UserError, match="'length' failed on all 16 crystals: TypeError"):
            broken.result()
        assert set(thread.submit(two_workers.score, crystals).result().status) == {"ok"}


@pytest.mark.parametrize("workers", [0, 1])
def test_closing_ends_a_score_in_another_thread(workers):
    pool = RewardPool([Length()], "length", workers=workers, ray=RayConfig(chunk=1))
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(pool.score, rocksalts(200), [{"sleep": 0.1}] * 200)
        time.sleep(0.5)
        started = time.monotonic()
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            running.result()
    assert time.monotonic() - started < 10  # not the 20 s that the crystals take
    with pytest.raises(RuntimeError, match="closed"):
        pool.score(rocksalts(1))
