"""Ray itself: a cluster that is joined and loses a node, and a Ray that is lost."""

import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from toy_rewards import Length, rocksalts

from rewards.novelty import Novelty
from rewards.uniqueness import Uniqueness
from rlgen.ray_session import user_modules
from rlgen.reward_pool import RewardPool
from rlgen.settings import RayConfig
from rlgen.types import UserError

MY_REWARD = """
from dataclasses import dataclass
from typing import ClassVar
import os
import numpy as np

@dataclass(frozen=True)
class Mine:
    name: ClassVar[str] = "mine"
    unit: ClassVar[str] = ""
    per_sample: ClassVar[bool] = True

    def measure(self, structures, conditions):
        return np.full(len(structures), 0.5 if __file__ == "HERE" else 1.0)

    def transform(self, raw):
        return np.asarray(raw)
"""


@pytest.fixture(scope="module")
def cluster():
    """A cluster of three nodes on this machine. Its head has no core for workers, as on a machine with the trainer."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    assert not ray.is_initialized()
    # Ray waits 15 s for a node that does not answer; here it is known to be gone.
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    memory = 80 * 1024**2
    cluster = Cluster()
    cluster.add_node(num_cpus=0, object_store_memory=memory, include_dashboard=False, _system_config=quick)
    for _ in range(2):
        cluster.add_node(num_cpus=2, object_store_memory=memory)
    yield cluster
    cluster.shutdown()


def test_a_node_is_lost_in_the_middle_of_a_batch(cluster):
    crystals = rocksalts(60)
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    settings = RayConfig(address=cluster.address, chunk=4)
    with RewardPool([Length()], "length", workers=2, ray=settings) as pool:
        homes = {psutil.Process(pid).ppid() for pid in pool._workers.pids()}
        assert homes == nodes.keys(), "workers are not spread over the nodes"
        victim = nodes.popitem()[1]
        remover = threading.Timer(0.5, cluster.remove_node, (victim,), {"allow_graceful": False})
        remover.start()
        result = pool.score(crystals, [{"sleep": 0.1}] * 60)
        remover.join()
        np.testing.assert_array_equal(result.raw[:, 0], [c.lattice.a for c in crystals])
        assert set(result.status) == {"ok"}
        # Ray may still have sent a replacement to the node that was gone.
        assert result.counters["restarts"] - result.counters.get("failed_starts", 0) == 1
        # The node that is left has room for both.
        assert {psutil.Process(pid).ppid() for pid in pool._workers.pids()} == nodes.keys()
    import ray

    assert not ray.is_initialized(), "the pool joined, so it leaves"


def test_the_users_own_reward_travels_to_the_cluster(cluster, tmp_path, monkeypatch):
    file = tmp_path / "my_rewards_of_this_test.py"
    file.write_text(MY_REWARD.replace("HERE", str(file)))
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        mine = importlib.import_module(file.stem).Mine()
    with RewardPool([mine], "mine", workers=1, ray=RayConfig(address=cluster.address)) as pool:
        assert pool.score(rocksalts(1)).total == [1.0]  # measured by the copy that the worker was sent
    # What is installed does not travel.
    with RewardPool([Uniqueness()], "uniqueness", workers=1, ray=RayConfig(address=cluster.address)) as pool:
        assert pool.score(rocksalts(1)).total == [1.0]
    assert user_modules([mine, Length(), Novelty()]) == [str(file), str(Path(__file__).with_name("toy_rewards.py"))]


def test_no_cluster_at_the_address():
    with pytest.raises(UserError, match=r"ray.address=127.0.0.1:1: "):
        RewardPool([Length()], "length", workers=1, ray=RayConfig(address="127.0.0.1:1"))


LOST = """
import os, sys, threading, time
import psutil, ray
from toy_rewards import Length, rocksalts
from rlgen.settings import RayConfig
from rlgen.reward_pool import RewardPool
from rlgen.types import UserError

try:
    RewardPool([Length()], "length", workers=1, ray=RayConfig(gpus_per_worker=64))
except UserError as error:
    print(error)
assert not ray.is_initialized()
with RewardPool([Length()], "length", workers=1) as pool:
    pool._workers.pids()
    victim = next(p for p in psutil.Process().children() if p.name() == sys.argv[1])
    threading.Timer(0.5, victim.kill).start()
    started = time.monotonic()
    try:
        pool.score(rocksalts(50), [{"sleep": 1.0}] * 50)
    except UserError as error:
        print(error)
assert time.monotonic() - started < 12
assert not ray.is_initialized()
"""


@pytest.mark.parametrize(("process", "what"), [("raylet", "node (raylet)"), ("gcs_server", "head (GCS)")])
def test_a_lost_ray_is_one_clear_error(process, what):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    run = subprocess.run([sys.executable, "-c", LOST, process], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "workers=1 with ray.gpus_per_worker=64: Ray sees" in run.stdout
    assert f"Ray is lost: its {what} at " in run.stdout and "resume=FOLDER" in run.stdout
