"""Crystals as batches of tokens: every one once an epoch, the same after a resume, and none lost in silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import CRYSTALS
from pymatgen.core import Element, Lattice, Structure

from policies.representations import make, symmetry
from rlgen import counters, encoded
from rlgen.conditions import CATEGORIES, Transform
from rlgen.data import Record
from rlgen.encoded import Encoded, encode
from rlgen.types import CrystalError, UserError

ATOMS = make("atoms", max_atoms=20)


@pytest.fixture
def records() -> list[Record]:
    """The built crystals at five sizes each."""
    return [Record(f"{name} {scale}", Structure(Lattice(s.lattice.matrix * scale), s.species, s.frac_coords))
            for scale in (0.96, 0.98, 1.0, 1.02, 1.04) for name, s in CRYSTALS.items()]  # fmt: skip


@pytest.fixture
def split(records) -> Encoded:
    return encode(records, ATOMS)


def test_every_crystal_is_written_in_order(records, split):
    assert len(split) == len(records) == 50 and not split.failures
    assert [ids.tolist() for ids in split.ids] == [ATOMS.encode(r.structure) for r in records]
    assert split.atoms == sum(len(r.structure.get_primitive_structure()) for r in records)
    expected = [{site.specie.Z for site in r.structure} for r in records]
    assert [set(row[row > 0].tolist()) for row in split.prompts.elements] == expected
    groups = [225, 227, 221, 194, 186, 152, 136, 62, 14, 1]
    assert split.prompts.space_group.tolist() == groups * 5


@pytest.mark.parametrize("size", [1, 7, 16, 50, 64])
def test_an_epoch_is_every_crystal_once(split, size):
    batches = split.batches(size, epoch=3, seed=1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(50))
    assert max(map(len, batches)) <= size and len(batches) == -(-50 // size)


def test_batches_hang_on_seed_and_epoch_alone(split):
    def plan(seed, epoch):
        return [rows.tolist() for rows in split.batches(7, epoch, seed)]

    assert plan(1, 0) == plan(1, 0)
    assert plan(1, 0) != plan(1, 1) and plan(1, 0) != plan(2, 0)


def test_batches_hold_crystals_of_similar_length(split):
    lengths = np.array([len(ids) for ids in split.ids])
    widths = [np.ptp(lengths[rows]) for rows in split.batches(5, 0, 0)]
    assert np.mean(widths) < 0.3 * np.ptp(lengths)


@pytest.mark.parametrize("start", [1, 6, 7, 8, 20])
def test_batches_go_on_where_they_were(split, start):
    whole = [rows.tolist() for rows in islice(split.epochs(8, 0), 30)]
    rest = [rows.tolist() for rows in islice(split.epochs(8, 0, start), 30 - start)]
    assert len(split.batches(8, 0, 0)) == 7 and rest == whole[start:]
    assert whole[:7] != whole[7:14]


def test_a_batch_is_prompt_crystal_and_padding(split):
    rows = [0, 7, 9, 30]
    ids, labels = split.batch(rows, ATOMS, np.random.default_rng(0), dropout=0.0)
    p = ATOMS.prompt_length
    assert ids.dtype == labels.dtype == torch.long
    assert ids.shape == labels.shape == (4, p + max(len(split.ids[i]) for i in rows))
    for row, i in enumerate(rows):
        n = len(split.ids[i])
        assert ids[row, p : p + n].tolist() == labels[row, p : p + n].tolist() == split.ids[i].tolist()
        assert (ids[row, p + n :] == ATOMS.pad).all()
        assert (labels[row, :p] == -100).all() and (labels[row, p + n :] == -100).all()


def test_prompts_tell_the_truth(split):
    seen: dict[int, set[str]] = {}
    for seed in range(30):
        ids, _ = split.batch(range(50), ATOMS, np.random.default_rng(seed), dropout=0.0)
        for i, (_, group, atoms, element) in enumerate(ids[:, :4].tolist()):
            assert group - ATOMS.first["space_group"] == split.prompts.space_group[i]
            assert atoms - ATOMS.first["n_atoms"] == split.prompts.n_atoms[i]
            seen.setdefault(i, set()).add(ATOMS.vocabulary[element])
    # Each element of a crystal is asked for at times, and no other.
    for i, row in enumerate(split.prompts.elements):
        assert seen[i] == {Element.from_Z(int(z)).symbol for z in row if z}


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.6, 1.0])
def test_properties_are_left_out_at_the_given_rate(split, dropout):
    rng = np.random.default_rng(0)
    ids = torch.cat([split.batch(range(50), ATOMS, rng, dropout)[0][:, :4] for _ in range(40)])
    unknown = torch.tensor([ATOMS.first[name] for name in ("space_group", "n_atoms", "element")])
    missing = ids[:, 1:] == unknown
    assert missing.double().mean(0).tolist() == pytest.approx([dropout] * 3, abs=0.04)
    # One is left out whatever becomes of the others.
    assert float(missing.all(1).double().mean()) == pytest.approx(dropout**3, abs=0.04)


def test_what_a_policy_wrote_is_always_told_its_energy(records):
    """Beside the data, in every epoch; the data's crystals, and all else, are left out at their rates."""
    told_on = {"density": Transform("linear", 0, 20), "e_above_hull": Transform("linear", 0, 1),
               "stability": CATEGORIES["stability"]}
    rep = make("atoms", max_atoms=20, conditions={name: scale.to_dict() for name, scale in told_on.items()})
    known = {"density": np.linspace(1, 19, 50), "e_above_hull": np.full(50, 0.3), "stability": np.full(50, 0.3)}
    real, wrote = (encode(part, rep, {name: values[: len(part)] for name, values in known.items()})
                   for part in (records[:20], records[20:]))
    both = replace(real, hindsight=wrote)
    assert len(both) == 20 and sorted(np.concatenate(both.batches(8, 0, 0)).tolist()) == list(range(50))
    rng, told = np.random.default_rng(0), {name: [] for name in known}
    places = {name: 4 + k for k, name in enumerate(rep.conditions)}
    for _ in range(60):
        ids, labels = both.batch(range(50), rep, rng, dropout=0.1, property_dropout=0.5)
        for name, column in places.items():
            told[name].append(ids[:, column] != rep.vocabulary.index(f"{name}?"))
        if _ == 0:
            answers = [row[row >= 0].tolist() for row in labels]
            assert answers == [i.tolist() for i in [*real.ids, *wrote.ids]]
    shares = {name: torch.stack(seen).double().mean(0) for name, seen in told.items()}
    for name in known:  # half of the prompts tell no property, the others each with a chance of a half
        assert float(shares[name][:20].mean()) == pytest.approx(0.25, abs=0.05)
    assert float(shares["density"][20:].mean()) == pytest.approx(0.25, abs=0.05)
    either = torch.stack([a | b for a, b in zip(told["e_above_hull"], told["stability"], strict=True)])[:, 20:]
    assert bool(either.all())
    for name in ("e_above_hull", "stability"):  # one of the two at random where neither was kept
        assert float(shares[name][20:].mean()) == pytest.approx(0.25 + (0.5 + 0.5 * 0.25) / 2, abs=0.05)


def test_sentences_come_in_every_order_and_subset(records):
    text = make("text", max_atoms=20)
    split, rng, seen = encode(records[:10], text), np.random.default_rng(0), set()
    for _ in range(20):
        ids, _ = split.batch(range(10), text, rng, dropout=0.3)
        for row, group, n in zip(ids[:, : text.prompt_length], split.prompts.space_group, split.prompts.n_atoms,
                                 strict=True):
            told = [int(x[0]) for x in text.read_prompts(row[None])]
            assert told[0] in (0, group) and told[1] in (0, n)
            words = [text.vocabulary[i] for i in row.tolist()]
            seen.add(tuple(w for w in words if w in (" group", " atoms", " Contains")))
    assert len(seen) == 16


# The cache


def test_the_second_time_is_read_from_the_cache(records, split, monkeypatch):
    def forbidden(*_):
        raise AssertionError("encoded anew")

    monkeypatch.setattr(encoded, "_encode_all", forbidden)
    again = encode(records, ATOMS)
    assert [i.tolist() for i in again.ids] == [i.tolist() for i in split.ids]
    for name in ("space_group", "n_atoms", "elements"):
        first, second = getattr(split.prompts, name), getattr(again.prompts, name)
        assert np.array_equal(first, second) and first.dtype == second.dtype
    assert again.failures == split.failures
    for others, representation in ((records[1:], ATOMS), (records[::-1], ATOMS), (records, make("atoms"))):
        with pytest.raises(AssertionError, match="anew"):
            encode(others, representation)


def test_several_processes_write_the_same(records, split, monkeypatch, tmp_path):
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path))
    many = encode(records * 6, ATOMS, processes=2)  # more than the 256 that one process takes at a time
    assert [i.tolist() for i in many.ids] == [i.tolist() for i in split.ids] * 6


# What cannot be written

SHORT = Record("short", Structure(Lattice.cubic(0.7), ["H"], [[0, 0, 0]]))
LONG = Record("long", Structure(Lattice.orthorhombic(4, 5, 200), ["Na"], [[0, 0, 0]]))
LARGE = Record("large", Structure(Lattice.cubic(20), ["H"] * 21, np.random.default_rng(0).random((21, 3))))


def test_what_cannot_be_written_is_counted(records):
    split = encode([SHORT, *records[:3], LARGE, *records[3:5], LONG], ATOMS)
    assert split.failures == Counter(geometry=2, parse=1)
    assert [i.tolist() for i in split.ids] == [ATOMS.encode(r.structure) for r in records[:5]]
    assert encode([SHORT, *records[:3], LARGE, *records[3:5], LONG], ATOMS).failures == split.failures  # cached too


def test_another_tolerance_is_counted(records, monkeypatch, tmp_path):
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path))
    canonical, seen = symmetry._canonical, []

    def fails_once(dataset):
        seen.append(dataset.symprec)
        if len(seen) == 2:
            raise CrystalError("symmetry", "made up")
        return canonical(dataset)

    monkeypatch.setattr(symmetry, "_canonical", fails_once)
    orbits = make("orbits")
    counters.drain()
    counters.count("symprec/0.1", 5)  # of others in this process
    counters.count("event")
    for _ in range(2):  # the second time from the cache
        assert encode(records[:3], orbits).symprecs == Counter({0.1: 1})
    assert counters.drain() == {"event": 1}
    assert seen == [0.01, 0.01, 0.1, 0.01]


def test_nothing_that_can_be_written_is_the_users_mistake():
    for _ in range(2):  # the cached answer is as clear
        with pytest.raises(UserError, match=r"none of 2 crystals can be written as atoms.*'geometry': 1"):
            encode([SHORT, LARGE], ATOMS)
