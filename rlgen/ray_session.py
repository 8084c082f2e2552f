"""Ray for the reward workers: started for this process alone, or joined where it runs already."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.base import Reward
from rlgen.settings import RayConfig
from rlgen.types import UserError

#: A joined cluster may start its head anew; Ray itself ends this process after 60 s without one, without a word.
_HEAD_AWAY_S = 45.0
_HEAD, _NODE = "head (GCS)", "node (raylet)"


class RaySession:
    """The Ray that this process uses, as `ray`. It is ended by `close` only if it was started or joined here.

    A Ray that this process is connected to already is used as it is; else `settings.address` says which to join, and
    without one a Ray with room for `workers` starts. UserError: nothing answers at the address, or no such GPUs.
    """

    def __init__(self, settings: RayConfig, workers: int, rewards: Sequence[Reward]):
        # Ray reads these when it is imported. Without the second it hides the GPU from actors that reserve none; the
        # rewards' potentials share the device that this process sees. Without the third workers give way to all else
        # on the machine (nice 15), while the run waits for them.
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_worker_niceness"):
            os.environ.setdefault(name, "0")
        import ray

        self.ray: Any = ray
        self.gone = False
        self._ask = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
        self._connected_here = not ray.is_initialized()
        # Nobody starts again what this process started, nor a node that died.
        self._patience = {_HEAD: 0.0 if self._connected_here and settings.address is None else _HEAD_AWAY_S, _NODE: 0.0}
        if self._connected_here and settings.address is not None:
            self._join(settings.address, rewards)
        elif self._connected_here:
            ray.init(
                address="local",  # whatever RAY_ADDRESS says
                num_cpus=max(1, math.ceil(workers * settings.cpus_per_worker)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=100 * 1024**2,
            )
            if workers * settings.gpus_per_worker > (gpus := ray.cluster_resources().get("GPU", 0)):
                ray.shutdown()
                asked = f"workers={workers} with ray.gpus_per_worker={settings.gpus_per_worker:g}"
                raise UserError(f"{asked}: Ray sees {gpus:g} GPUs here; give a share, such as 0.25, or fewer workers")
        self._vital = self._addresses()
        self._refused: dict[str, float] = {}

    def _join(self, address: str, rewards: Sequence[Reward]) -> None:
        # The files of a user's own rewards travel: the other machines need not have them. Ray fails over an empty list.
        env = {"py_modules": modules} if (modules := user_modules(rewards)) else {}
        host, _, port = address.rpartition(":")
        try:
            if host and port.isdigit() and "/" not in host:
                socket.create_connection((host, int(port)), timeout=10).close()  # Ray would try for many minutes
            self.ray.init(address=address, runtime_env=env, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:  # no answer, another version of Ray, no address
            hint = "; if the cluster asks for a token, set RAY_AUTH_MODE=token (docs/scaling.md)"
            raise UserError(f"ray.address={address}: {str(error).strip().splitlines()[0]}{hint}") from error

    def options(self) -> dict[str, Any]:
        """Of a worker's actor: its share, anywhere in the cluster, and an environment in which rewards are found."""
        # One thread per core that a worker reserves: two spinning thread pools on the same cores stall each other.
        threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
        env = {
            **dict.fromkeys(threads, str(max(1, int(self._ask["CPU"])))),
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "0",
            # Ray tells workers the script's folder, not the rest of the path: a user's own reward would not be found.
            "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
            **{k: v for k, v in os.environ.items() if k.startswith("RLGEN_")},
        }
        return {
            "num_cpus": self._ask["CPU"],
            "num_gpus": self._ask["GPU"],
            "max_restarts": 0,  # a worker's replacement is ours to count and to warm up
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": env},
        }

    def room(self) -> str:
        """What a worker asks for and what there is, for the message that none starts."""
        total, free = self.ray.cluster_resources(), self.ray.available_resources()
        parts = [f"{ask:g} {name} ({free.get(name, 0):g} of {total.get(name, 0):g} free)"
                 for name, ask in self._ask.items() if ask]
        return f"each asks for {' and '.join(parts)}" if parts else "Ray gave no reason"

    def check(self) -> None:
        """UserError if Ray itself is gone: its workers would never answer, and nothing else would say so."""
        for what, address in self._vital.items():
            try:
                socket.create_connection(address, timeout=2).close()
            except ConnectionRefusedError:
                since = self._refused.setdefault(what, time.monotonic())
                if time.monotonic() - since >= self._patience[what]:
                    self.gone = True
                    raise UserError(
                        f"Ray is lost: its {what} at {address[0]}:{address[1]} has ended. Start the command again; a "
                        "run goes on from its last checkpoint with resume=FOLDER"
                    ) from None
            except OSError:  # slow is not gone
                pass
            else:
                self._refused.pop(what, None)

    def _addresses(self) -> dict[str, tuple[str, int]]:
        """Where Ray's head (GCS) and the node of this process (raylet) listen."""
        context = self.ray.get_runtime_context()
        host, _, port = context.gcs_address.rpartition(":")
        here = next(node for node in self.ray.nodes() if node["NodeID"] == context.get_node_id())
        return {_HEAD: (host, int(port)), _NODE: (here["NodeManagerAddress"], here["NodeManagerPort"])}

    def close(self) -> None:
        if self._connected_here and self.ray.is_initialized():
            self.ray.shutdown()


def user_modules(rewards: Sequence[Reward]) -> list[str]:
    """Files and packages of rewards that are not installed, to be sent to the machines of a cluster."""
    installed = [Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib")]
    found = []
    for name in sorted({type(reward).__module__.partition(".")[0] for reward in rewards}):
        file = getattr(sys.modules[name], "__file__", None)
        # Ray sends what __main__ defines by itself; every machine has rlgen.
        if name in ("__main__", "rewards", "rlgen") or file is None:
            continue
        path = Path(file).resolve()
        if not any(path.is_relative_to(folder) for folder in installed):
            found.append(str(path.parent if path.name == "__init__.py" else path))
    return found
