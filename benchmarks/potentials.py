"""Structures per second of each potential: `python benchmarks/potentials.py energies=m3gnet,chgnet threads=1,2 n=64`.

Single points of MP-20 crystals, energy only and with forces and stress, in batches and one by one, against a named
baseline in the same run: the library's own ASE calculator, one crystal after the other, which always computes forces.
Times are the least of `repeats=` rounds in which all take turns. (A potential that is an ASE calculator itself is
evaluated one by one, as ASE does: its ratio is 1.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

MATGLS = "matgl's PESCalculator"
BASELINES = {"chgnet": "chgnet's CHGNetCalculator", "m3gnet": MATGLS, "tensornet": MATGLS}


def crystals(n: int) -> list[Any]:
    """n crystals of MP-20's val split, sorted by size as a caller with many would."""
    import numpy as np

    from rlgen.data import load

    records = load("mp20").splits["val"]
    chosen = np.random.default_rng(0).permutation(len(records))[:n]
    return sorted((records[i].structure for i in chosen), key=len)


def calculator_of(name: str) -> Any:
    """The baseline: the ASE calculator that the potential's own library offers."""
    if name == "chgnet":
        from chgnet.model.dynamics import CHGNetCalculator

        with redirect_stdout(StringIO()):
            return CHGNetCalculator(use_device="cpu")
    import matgl
    from matgl.ext.ase import PESCalculator

    from rlgen.energies.weights import M3GNET, TENSORNET, folder_of

    folder = folder_of({"m3gnet": M3GNET, "tensornet": TENSORNET}[name])
    return PESCalculator(matgl.load_model(str(folder)), stress_unit="eV/A3")


def measure(name: str, threads: int, n: int, repeats: int) -> dict[str, float]:
    """Structures per second by way of evaluating, in this process."""
    import torch

    from rlgen.energies import load_potential

    torch.set_num_threads(threads)
    potential, calculator, structures = load_potential(name), calculator_of(name), crystals(n)
    atoms = [structure.to_ase_atoms() for structure in structures]

    def baseline() -> None:
        for one in atoms:
            one.calc = calculator
            one.get_forces(), one.get_stress(), one.get_potential_energy()
            one.calc = None

    def one_by_one(forces: bool) -> None:
        for structure in structures:
            potential.evaluate([structure], forces=forces)

    ways: dict[str, Callable[[], Any]] = {
        "baseline": baseline,
        "forces, one by one": lambda: one_by_one(True),
        "forces": lambda: potential.evaluate(structures, forces=True),
        "energy, one by one": lambda: one_by_one(False),
        "energy": lambda: potential.evaluate(structures, forces=False),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats + 1):  # the first round warms up what compiles itself
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            best[way] = min(best[way], time.perf_counter() - start)
    return {way: n / seconds for way, seconds in best.items()}


def main(energies: str = "chgnet,m3gnet,tensornet", threads: str = "1,2", n: str = "48", repeats: str = "2") -> None:
    columns = ["baseline", "forces, one by one", "forces", "energy, one by one", "energy"]
    print("| | cores | " + " | ".join(columns) + " |\n|---|---:|" + "---:|" * len(columns))
    for name in energies.split(","):
        for count in threads.split(","):
            # A new process each: the number of OpenMP's threads is read once.
            env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
            env |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
            command = [sys.executable, "-W", "ignore", __file__, "measure", name, count, n, repeats]
            output = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
            rates = json.loads(output.splitlines()[-1])
            shown = [f"{rates[c]:.0f} ({rates[c] / rates['baseline']:.1f}×)" for c in columns]
            print(f"| {name} | {count} | " + " | ".join(shown) + " |", flush=True)
    print("\nStructures per second, and the ratio to the baseline: "
          + "; ".join(f"{baseline} ({name})" for name, baseline in BASELINES.items())
          + "; one crystal after the other, with forces.")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(sys.argv[2], *map(int, sys.argv[3:]))))
    else:
        main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
