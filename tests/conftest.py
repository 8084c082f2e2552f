"""Shared fixtures: a cache of the tests' own, crystals of every system, a tiny policy, and MP-20 where it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from rlgen.spacegroup import from_spacegroup

# Three processes run the tests, on as few as two cores: some wait for Ray or for other processes. More threads each
# would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

THIRD = 1 / 3


@pytest.fixture(autouse=True, scope="session")
def rlgen_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or fills the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLGEN_CACHE", str(folder))
        yield folder


def _quartz() -> Structure:
    """Right-handed alpha-quartz, P3_121."""
    return from_spacegroup(
        "P3_121", Lattice.hexagonal(4.916, 5.405), ["Si", "O"], [[0.4697, 0, THIRD], [0.4135, 0.2669, 0.4524]]
    )


def _crystals() -> dict[str, Structure]:
    build = from_spacegroup
    monoclinic = Lattice.from_parameters(5.15, 5.21, 5.32, 90, 99.2, 90)
    triclinic = Lattice.from_parameters(4.1, 5.2, 6.3, 81, 95, 107)
    return {
        "rock salt": build("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        "diamond": build("Fd-3m", Lattice.cubic(5.43), ["Si"], [[0, 0, 0]]),
        "perovskite": build(
            "Pm-3m", Lattice.cubic(3.905), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
        ),
        "hcp": build("P6_3/mmc", Lattice.hexagonal(3.209, 5.211), ["Mg"], [[THIRD, 2 * THIRD, 0.25]]),
        "wurtzite": build(
            "P6_3mc", Lattice.hexagonal(3.25, 5.207), ["Zn", "O"], [[THIRD, 2 * THIRD, 0], [THIRD, 2 * THIRD, 0.382]]
        ),
        "quartz": _quartz(),
        "rutile": build("P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.3053, 0.3053, 0]]),
        "GdFeO3": build(
            "Pnma",
            Lattice.orthorhombic(5.44, 7.64, 5.38),
            ["Ca", "Ti", "O", "O"],
            [[0.0357, 0.25, 0.9932], [0, 0, 0.5], [0.4838, 0.25, 0.0711], [0.2892, 0.0373, 0.7108]],
        ),
        "baddeleyite": build(
            "P2_1/c",
            monoclinic,
            ["Zr", "O", "O"],
            [[0.2754, 0.0395, 0.2083], [0.07, 0.3317, 0.3447], [0.4496, 0.7569, 0.4792]],
        ),
        "triclinic": Structure(triclinic, ["Li", "Mn", "O"], np.eye(3) * [0.11, 0.42, 0.53]),
    }


CRYSTALS = _crystals()


@pytest.fixture(params=CRYSTALS)
def crystal(request: pytest.FixtureRequest) -> Structure:
    """Each of the built crystals in turn."""
    return CRYSTALS[request.param].copy()


@pytest.fixture
def crystals() -> dict[str, Structure]:
    """Built crystals of all crystal systems, by name."""
    return {name: structure.copy() for name, structure in CRYSTALS.items()}


@pytest.fixture(scope="session")
def mp20(rlgen_cache: Path) -> list[Structure]:
    """150 crystals of MP-20: the first 50 of each split."""
    folder = os.environ.get("RLGEN_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MP-20 is not here: set RLGEN_DATA to the folder that holds it")
    from rlgen import data

    return [record.structure for record in data.load("mp20", limit=50)]


def tiny_policy(seed: int = 0, max_atoms: int = 20, sharpness: float = 20.0):
    """A random policy of two layers. sharpness: its embeddings are scaled by it, so that it prefers some tokens."""
    import torch

    from policies.model import CrystalPolicy
    from policies.representations import make

    torch.manual_seed(seed)
    representation = make("atoms", max_atoms=max_atoms)
    policy = CrystalPolicy.create(representation, hidden_size=32, layers=2, heads=2, intermediate_size=64)
    with torch.no_grad():
        policy.embed.weight.mul_(sharpness)
    return policy.eval()


@pytest.fixture
def policy():
    return tiny_policy()


def random_conditions(n: int, rng: np.random.Generator, max_atoms: int = 20, keep: float = 0.7) -> list[dict]:
    """Conditions without regard to whether they make sense; each property is there with probability `keep`."""
    from pymatgen.core import Element

    rows = [
        {
            "space_group": int(rng.integers(1, 231)),
            "n_atoms": int(rng.integers(1, max_atoms + 1)),
            "element": Element.from_Z(int(rng.integers(1, 119))).symbol,
        }
        for _ in range(n)
    ]
    return [{k: v for k, v in row.items() if rng.random() < keep} for row in rows]
