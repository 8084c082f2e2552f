"""The cache of relaxations: the same bits whatever the company, shared by processes, and never in the way."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from rewards.stability import Stability
from rlgen import counters, tracking
from rlgen.energies import PointResult, cache, known, load_potential
from rlgen.energies import store as stores
from rlgen.energies.relax import Relaxation
from rlgen.energies.store import FILE, Store
from rlgen.types import RewardBreakdown

ISOLATED = Structure(Lattice.cubic(20), ["Na"], [[0, 0, 0]])
DISORDERED = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path))
    counters.drain()
    return tmp_path / FILE


@pytest.fixture(scope="module")
def potential():
    return load_potential("chgnet")


@pytest.fixture(scope="module")
def crystals() -> list[Structure]:
    rng = np.random.default_rng(0)
    cells = [known.cell("NaCl").get_primitive_structure(), known.cell("TiO2"), known.cell("MgO")]
    found = []
    for cell in cells:
        lattice = cell.lattice.matrix @ (np.eye(3) + rng.normal(0, 0.01, (3, 3)))
        found.append(Structure(Lattice(lattice), cell.species, cell.frac_coords + rng.normal(0, 0.01, (len(cell), 3))))
    return found


def counted() -> tuple[int, int]:
    drained = counters.drain()
    return drained["cache_hits"], drained["cache_misses"]


def points(structures, potential) -> list[Relaxation]:
    """Relaxations of no steps, the cheapest results that the cache has."""
    return cache.relaxations(structures, potential, fmax=0.1, steps=0)


def same(one, two) -> bool:
    return all(
        all(getattr(a, name) == getattr(b, name) for name in Relaxation.__slots__)
        and (a.structure.frac_coords == b.structure.frac_coords).all()
        and (a.structure.lattice.matrix == b.structure.lattice.matrix).all()
        for a, b in zip(one, two, strict=True)
    )


def test_a_second_look_computes_nothing(potential, crystals, monkeypatch):
    first = points([*crystals, ISOLATED, DISORDERED], potential)
    assert counted() == (0, 5)
    monkeypatch.setattr(type(potential), "evaluate_cells", None)
    second = points([DISORDERED, ISOLATED, *crystals[::-1]], potential)[::-1]
    assert counted() == (5, 0)
    assert same(second[:3], first[:3])
    assert [point.error for point in second[3:]] == [point.error for point in first[3:]]
    assert second[3].error.startswith("isolated") and second[4].error.startswith("disorder")


def test_geometry_and_forces_come_back_as_they_were(potential, crystals):
    first, second = (cache.relaxations(crystals[:2], potential, fmax=0.1, steps=1) for _ in range(2))
    assert counted() == (2, 2)
    assert same(first, second) and all(result.max_force > 0 for result in second)
    assert points(crystals[:1], potential)[0].steps == 0  # another result, not half of that one
    assert counted() == (0, 1)


def test_given_up_for_one_is_not_given_up_for_another(potential, crystals):
    def steps(wanted):
        return [r.steps for r in cache.relaxations(crystals[:2], potential, fmax=1e-5, steps=6, wanted=wanted)]

    assert steps([-99.0, 99.0]) == [4, 6] and steps(None) == [6, 6]
    assert counted() == (0, 4)
    assert steps([-99.0, 99.0]) == [4, 6]
    assert counted() == (2, 0)


def test_results_do_not_depend_on_the_company_nor_on_what_is_cached(potential, crystals, tmp_path, monkeypatch):
    """What exact resuming needs: an empty cache, a full one, and any order give the same bits."""
    together = cache.relaxations(crystals, potential, fmax=0.1, steps=8)
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path / "other"))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = [cache.relaxations([c], potential, fmax=0.1, steps=8)[0] for c in crystals[::-1]][::-1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert same(together, alone)
    assert same(together, cache.relaxations(crystals, potential, fmax=0.1, steps=8))


def test_another_process_computes_the_same(potential, crystals, tmp_path, monkeypatch):
    mine = points(crystals[:1], potential)[0]
    crystals[0].to(str(tmp_path / "crystal.json"))
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path / "theirs"))
    code = (
        "from pymatgen.core import Structure; from rlgen.energies import cache, load_potential; "
        f"crystal = Structure.from_file({str(tmp_path / 'crystal.json')!r}); "
        "cache.relaxations([crystal], load_potential('chgnet'), fmax=0.1, steps=0)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    counters.drain()
    assert points(crystals[:1], potential)[0].energy == mine.energy
    assert counted() == (1, 0)


def test_other_settings_and_potentials_are_other_results(potential, crystals, monkeypatch):
    cache.relaxations(crystals[:1], potential, fmax=0.1, steps=1)
    for other in ({"steps": 2}, {"fmax": 0.2}, {"fixed_cell": True}, {"symmetry": True}):
        cache.relaxations(crystals[:1], potential, **{"fmax": 0.1, "steps": 1, **other})
    monkeypatch.setattr(potential, "scale", "another")
    cache.relaxations(crystals[:1], potential, fmax=0.1, steps=1)
    assert counted() == (0, 6)
    moved = crystals[0].copy().translate_sites([0], [1e-9, 0, 0])
    cache.relaxations([moved], potential, fmax=0.1, steps=1)
    assert counted() == (0, 1)


def test_what_may_come_out_otherwise_is_not_kept(potential, crystals, monkeypatch):
    failed = PointResult.failed("network: out of memory")
    monkeypatch.setattr(potential, "evaluate_cells", lambda cells, forces: [failed] * len(cells))
    assert points(crystals[:1], potential)[0].error == failed.error
    monkeypatch.undo()
    counters.drain()
    assert points(crystals[:1], potential)[0].error is None
    assert counted() == (0, 1)


def test_what_ran_out_of_time_is_tried_again_with_more(potential, crystals):
    def relaxed(seconds):
        return cache.relaxations(crystals[:1], potential, fmax=1e-4, steps=3, seconds=seconds)[0]

    assert [relaxed(0.001).timed_out, relaxed(0.001).timed_out, relaxed(None).timed_out] == [True, True, False]
    assert counted() == (1, 2)
    assert relaxed(0.001).steps == 3 and counted() == (1, 0)


def test_a_broken_file_is_moved_aside(own_cache, caplog):
    own_cache.write_bytes(b"no database" * 1000)
    store = Store(own_cache)
    with caplog.at_level(logging.WARNING):
        assert store.get([b"a"]) == {}
    assert "broken" in caplog.text and len(list(own_cache.parent.glob(f"{FILE}.broken-*"))) == 1
    store.put({b"a": "1"})
    assert store.get([b"a", b"b"]) == {b"a": "1"}


def test_a_file_that_breaks_in_use_is_moved_aside_once(own_cache):
    one, two = Store(own_cache), Store(own_cache)
    for store in (one, two):
        store.put({bytes([i]) * 32: "x" * 1000 for i in range(200)})
    with sqlite3.connect(own_cache) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with own_cache.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 100_000)
    keys = [bytes([i]) * 32 for i in range(200)]
    fresh = Store(own_cache)
    assert fresh.get(keys) == {}
    fresh.put({b"new": "1"})
    for store in (one, two):  # they still hold the old file
        for _ in range(3):
            store.put({b"other": "2"})
        assert store.get([b"new", b"other"]) == {b"new": "1", b"other": "2"}
    assert len(list(own_cache.parent.glob(f"{FILE}.broken-*"))) == 1


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path, caplog, potential, crystals, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert points(crystals[:1], potential)[0].error is None
    assert caplog.text.count("going on without this cache") == 1
    assert counted() == (0, 2)


def test_processes_write_at_once(own_cache):
    code = (
        "import sys; from pathlib import Path; from rlgen.energies.store import Store\n"
        "store, start = Store(Path(sys.argv[1])), int(sys.argv[2])\n"
        "for i in range(start, start + 100): store.put({i.to_bytes(4): str(i)})"
    )
    starts = ("0", "50", "100")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(own_cache), start]) for start in starts]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    keys = [i.to_bytes(4) for i in range(200)]
    assert Store(own_cache).get(keys) == {key: str(i) for i, key in enumerate(keys)}


def test_stability_uses_it_for_relaxations(crystals):
    settings = {"energy": "chgnet", "mode": "relax", "steps": 3, "max_force": 50.0}
    reward = Stability(**settings)
    first = reward.measure(crystals, [{}] * 3)
    assert counted() == (0, 3) and np.isfinite(first).all()
    np.testing.assert_array_equal(reward.measure(crystals[::-1], [{}] * 3)[::-1], first)
    assert counted() == (3, 0)
    without = Stability(**settings, cache=False).measure(crystals, [{}] * 3)
    as_written = Stability("chgnet").measure(crystals, [{}] * 3)
    assert counted() == (0, 0)
    np.testing.assert_allclose(without, first, atol=1e-5)
    assert (np.abs(as_written - first) > 1e-3).all()  # single points are not what relaxed


def test_the_curves_show_the_hit_rate():
    empty = RewardBreakdown((), np.empty((1, 0)), np.empty((1, 0)), np.ones(1), np.array(["ok"]), [""])
    assert "cache/hit_rate" not in tracking.breakdown_scalars(empty)
    empty.counters = {"cache_hits": 1, "cache_misses": 3}
    assert tracking.breakdown_scalars(empty)["cache/hit_rate"] == 0.25


def test_one_store_for_a_process(own_cache):
    assert stores.store() is stores.store()
    assert stores.store().path == own_cache
