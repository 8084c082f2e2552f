"""The text representation: rounded and never clipped, read without a crash, and drawn inside its grammar."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CRYSTALS, random_conditions
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Element, Lattice, Structure

from policies.model import CrystalPolicy
from policies.representations import make
from policies.representations.asked import can_be_neutral
from policies.representations.base import Representation
from policies.representations.distances import MIN_DISTANCE, MIN_HEIGHT, MIN_VOLUME
from policies.representations.lattice import FLAT_MARGIN
from policies.representations.text_tables import ENDED
from policies.sampler import decode, sample
from rewards.condition import COMPOSITION
from rlgen.types import CrystalError, UserError

TEXT = make("text", max_atoms=20)
PUBLISHED = make("text", max_atoms=20, lengths=1, angles=0, coordinates=2)
WIDE = make("text", max_atoms=20, lengths=3, angles=2, coordinates=4)
MODES = pytest.mark.parametrize("text", [TEXT, PUBLISHED, WIDE], ids=["default", "published", "wide"])


def tiny_policy(text=TEXT, sharpness: float = 20.0) -> CrystalPolicy:
    torch.manual_seed(0)
    policy = CrystalPolicy.create(text, hidden_size=32, layers=2, heads=2, intermediate_size=64)
    with torch.no_grad():
        policy.embed.weight.mul_(sharpness)
    return policy.eval()


def said(ids, text=TEXT) -> str:
    return "".join(text.vocabulary[i] for i in ids if i > text.eos)


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(list(map(int, row))) for row in rows], batch_first=True)


# Writing and reading


def cubic(a: float, x: float = 0.0, angle: float = 90.0) -> Structure:
    return Structure(Lattice.from_parameters(a, a, a, 90, 90, angle), ["Na"], [[x, 0, 0]])


def test_rock_salt_is_written_as_by_hand():
    by_hand = "3.99 3.99 3.99\n60.0 60.0 60.0\nCl\n0.500 0.500 0.500\nNa\n0.000 0.000 0.000"
    assert said(TEXT.encode(CRYSTALS["rock salt"])) == by_hand
    assert said(PUBLISHED.encode(CRYSTALS["rock salt"]), PUBLISHED) == (
        "4.0 4.0 4.0\n60 60 60\nCl\n0.50 0.50 0.50\nNa\n0.00 0.00 0.00")


@pytest.mark.parametrize(
    ("structure", "default", "published"),
    [
        (cubic(5, angle=119.99999), "5.00 5.00 5.00\n90.0 90.0 120.0\nNa\n0.000 0.000 0.000",
         "5.0 5.0 5.0\n90 90 120\nNa\n0.00 0.00 0.00"),
        (cubic(4.996, 0.9999), "5.00 5.00 5.00\n90.0 90.0 90.0\nNa\n0.000 0.000 0.000",
         "5.0 5.0 5.0\n90 90 90\nNa\n0.00 0.00 0.00"),
        (cubic(12.345, 0.9994), "12.35 12.35 12.35\n90.0 90.0 90.0\nNa\n0.999 0.000 0.000",
         "12.3 12.3 12.3\n90 90 90\nNa\n0.00 0.00 0.00"),
        (cubic(5, -0.3), "5.00 5.00 5.00\n90.0 90.0 90.0\nNa\n0.700 0.000 0.000",
         "5.0 5.0 5.0\n90 90 90\nNa\n0.70 0.00 0.00"),
    ],
)
def test_numbers_are_rounded_to_the_nearest_and_never_truncated(structure, default, published):
    assert TEXT.write(structure) == default
    assert PUBLISHED.write(structure) == published


@pytest.mark.parametrize("structure", [cubic(0.9), cubic(127.999), cubic(5, angle=29), cubic(5, angle=151)])
def test_what_is_off_the_range_is_refused_and_not_clipped(structure):
    with pytest.raises(CrystalError, match="outside") as error:
        TEXT.write(structure)
    assert error.value.kind == "geometry"


@pytest.mark.parametrize(
    ("structure", "kind"),
    [
        (Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]), "chemistry"),
        (Structure(Lattice.cubic(4), ["X"], [[0, 0, 0]]), "chemistry"),
        (Structure(Lattice.cubic(1.2), ["H"], [[0, 0, 0]]), "geometry"),  # thinner than the grammar allows
        (Structure(Lattice.cubic(5), ["H", "He"], [[0, 0, 0], [0.05, 0, 0]]), "geometry"),  # too close
        (Structure(Lattice.cubic(30), ["H"] * 21, np.random.default_rng(0).random((21, 3))), "parse"),
    ],
)
def test_what_cannot_be_written_is_named(structure, kind):
    with pytest.raises(CrystalError) as error:
        TEXT.encode(structure)
    assert error.value.kind == kind


@MODES
def test_a_crystal_comes_back(crystal, text):
    ids = text.encode(crystal)
    back = text.decode(ids)
    assert StructureMatcher().fit(crystal, back)
    assert back == text.parse(said(ids, text)) == text.parse(said(ids, text) + "\n")
    assert said(ids, text) == text.write(back)
    numbers = list(back.atomic_numbers)
    assert numbers == sorted(numbers, reverse=True)
    assert len(ids) + text.prompt_length <= text.max_length


def test_every_description_is_written_the_same(crystal):
    rng = np.random.default_rng(0)
    others = [TEXT.encode(TEXT.random_equivalent(crystal, rng)) for _ in range(5)]
    assert others == [TEXT.encode(crystal)] * 5


def test_mp20_comes_back(mp20):
    back = [TEXT.decode(TEXT.encode(s)) for s in mp20]
    matcher = StructureMatcher()
    assert np.mean([matcher.fit(a, b) for a, b in zip(mp20, back, strict=True)]) >= 0.995


def test_representations_of_other_precision_have_another_version():
    assert len({text.version for text in (TEXT, PUBLISHED, WIDE, make("text", max_atoms=200))}) == 4
    assert make("text", **PUBLISHED.parameters).version == PUBLISHED.version
    with pytest.raises(UserError, match="coordinates=0"):
        make("text", coordinates=0)


def test_no_two_tokens_have_one_name():
    assert len(set(TEXT.vocabulary)) == len(TEXT.vocabulary)
    assert TEXT.vocabulary[TEXT.first["character"] :][: len(TEXT.characters)] == TEXT.characters


# What cannot be read

LATTICE = "4.00 4.00 4.00\n90.0 90.0 90.0\n"
ATOM, HYDROGEN = "Na\n0.000 0.000 0.000", "H\n0.000 0.000 0.000"


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("", "parse", "1 lines"),
        (LATTICE, "parse", "2 lines"),
        (LATTICE + "Na\n", "parse", "3 lines"),
        (f"{LATTICE}{ATOM}\nNa", "parse", "5 lines"),
        (f"{LATTICE}{ATOM}\n\n", "parse", "5 lines"),
        (LATTICE + "\n".join([ATOM] * 21), "parse", "21 atoms"),
        (LATTICE + "Na\n0.0 0.0", "parse", "three numbers"),
        (LATTICE + "Na\n0.0 0.0 -0.1", "parse", "three numbers"),
        (LATTICE + "Na\n0.0 0.0 nan", "parse", "three numbers"),
        (LATTICE + "Na\n0.0 0.0 1e5", "parse", "three numbers"),
        (LATTICE + "Na\n0.0 0.0 ٣", "parse", "three numbers"),
        (LATTICE + "Na\n0.0 0.0 0.0 ", "parse", "three numbers"),
        (LATTICE + "Nb2\n0.0 0.0 0.0", "chemistry", "'Nb2' is no element"),
        (LATTICE + "NA\n0.0 0.0 0.0", "chemistry", "'NA' is no element"),
        (LATTICE + "Na\n0.0 1.000 0.0", "geometry", "not below 1"),
        ("4 4 128\n90 90 90\n" + ATOM, "geometry", "lattice length"),
        ("4 0 4\n90 90 90\n" + ATOM, "geometry", "lattice length"),
        ("4 4 4\n90 0 90\n" + ATOM, "geometry", "lattice angle"),
        ("4 4 4\n60 60 120\n" + ATOM, "geometry", "no cell has the angles"),
    ],
)
def test_what_cannot_be_read_is_named(text, kind, says):
    with pytest.raises(CrystalError, match=says) as error:
        TEXT.parse(text)
    assert error.value.kind == kind


@pytest.mark.parametrize(
    ("ids", "says"),
    [([5, 6], "does not end"), ([10**6, 2], "1000000 where"), ([-1, 2], "-1 where"),
     ([len(TEXT.vocabulary) - 1, 2], "group where a character")],
)
def test_tokens_that_are_no_text_are_named(ids, says):
    with pytest.raises(CrystalError, match=says) as error:
        TEXT.decode(ids)
    assert error.value.kind == "parse"


def test_what_follows_the_end_is_not_read():
    ids = TEXT.tokens(LATTICE + ATOM)
    assert TEXT.decode([*ids, TEXT.pad, 7]) == TEXT.decode(ids)


def test_no_string_crashes_the_parser():
    rng = np.random.default_rng(0)
    symbols = [*TEXT.characters, "-", "e", "\r", "\t", "\0", "é", "٣", "²", "_", "\n", " ", "."]
    originals = [said(TEXT.encode(s)) for s in CRYSTALS.values()]
    kinds: set[str] = set()
    for i in range(100_000):
        if i % 2:
            characters = list(originals[i % len(originals)])
            for place in rng.integers(len(characters), size=int(rng.integers(1, 5))):
                characters[place] = symbols[rng.integers(len(symbols))] if rng.random() < 0.8 else ""
        else:
            characters = [symbols[j] for j in rng.integers(len(symbols), size=int(rng.integers(0, 60)))]
        try:
            TEXT.parse("".join(characters))
            kinds.add("read")
        except CrystalError as error:
            kinds.add(error.kind)
    assert kinds == {"read", "parse", "chemistry", "geometry"}


def test_no_tokens_crash_the_reader():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        ids = rng.integers(-2, len(TEXT.vocabulary) + 2, size=int(rng.integers(0, 100)))
        with pytest.raises(CrystalError):
            TEXT.decode([*ids, TEXT.eos])


# Another way to write it each epoch


@MODES
def test_augmentation_keeps_the_crystal(crystal, text):
    rng, ids = np.random.default_rng(0), np.array(text.encode(crystal), np.int32)
    before, original = text.decode(ids), ids.copy()
    drawn = [text.augment(ids, rng) for _ in range(20)]
    assert (ids == original).all()
    assert len({said(d, text) for d in drawn}) > 15
    for new in drawn:
        after = text.decode(new)
        assert new.dtype == ids.dtype and len(new) == len(ids)
        assert sorted(after.atomic_numbers) == sorted(before.atomic_numbers)
        assert np.allclose(np.sort(after.distance_matrix.ravel()), np.sort(before.distance_matrix.ravel()), atol=1e-8)
    if len(set(before.atomic_numbers)) > 1:
        assert len({tuple(text.decode(d).atomic_numbers) for d in drawn}) > 1


# Prompts


@pytest.mark.parametrize(
    ("condition", "expected", "length"),
    [
        ({}, "", 0),
        ({"space_group": 0, "element": None}, "", 0),
        ({"n_atoms": 7}, " 7 atoms.", 4),
        ({"space_group": 5, "n_atoms": 12, "element": "Na"}, " Space group 5. 12 atoms. Contains Na.", 5 + 5 + 5),
        ({"element": "Na", "n_atoms": 12, "space_group": 5}, " Contains Na. 12 atoms. Space group 5.", 5 + 5 + 5),
        ({"formula": "NaCl", "neutral": True}, "", 0),  # the grammar's matter
    ],
)
def test_prompts(condition, expected, length):
    ids = TEXT.prompt(condition)
    assert said(ids) == expected
    assert len(ids) == TEXT.prompt_length and ids[0] == 1
    assert all(i > TEXT.eos for i in ids[1 : 1 + length]) and ids[1 + length :] == [TEXT.pad] * (len(ids) - 1 - length)


def test_prompts_are_read_back():
    rng = np.random.default_rng(0)
    asked = [{k: c[k] for k in rng.permutation([*c]).tolist()} for c in random_conditions(500, rng)]
    assert len({tuple(c) for c in asked}) == 16  # every subset of three in every order
    group, n, z = TEXT.read_prompts(torch.tensor([TEXT.prompt(c) for c in asked]))
    for i, condition in enumerate(asked):
        symbol = Composition(condition["element"]).elements[0].Z if "element" in condition else 0
        assert (group[i], n[i], z[i]) == (condition.get("space_group", 0), condition.get("n_atoms", 0), symbol)


@pytest.mark.parametrize(
    ("condition", "says"),
    [({"colour": 1}, "known: space_group, n_atoms, element, formula"), ({"space_group": 231}, "1 to 230"),
     ({"n_atoms": 21}, "1 to 20"), ({"element": "Xx"}, "no element")],
)
def test_what_cannot_be_asked_for_is_the_users_mistake(condition, says):
    with pytest.raises(UserError, match=says):
        TEXT.prompt(condition)


def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone():
    policy = tiny_policy()
    asked = [{}, {"n_atoms": 3}, {"space_group": 225, "n_atoms": 12, "element": "Na"}, {"element": "O"}]
    rollout = sample(policy, asked, torch.Generator().manual_seed(0))
    together, _ = policy.token_logprobs(rollout.ids)
    for i, condition in enumerate(asked):
        length = TEXT.prompt_length + int(rollout.mask[i].sum())
        ids = torch.tensor([TEXT.prompt(condition) + rollout.ids[i, TEXT.prompt_length : length].tolist()])
        alone, _ = policy.token_logprobs(ids)
        assert (alone[0] - together[i, : alone.shape[1]]).abs().max() < 1e-4


# The grammar


def legal_after(written: str, condition: dict | None = None, text=TEXT) -> set[str]:
    ids = [*text.prompt(condition or {}), *map(text.vocabulary.index, written)]
    mask = text.masks(torch.tensor([ids]), [condition or {}])[0, -1]
    return {text.vocabulary[i] for i in mask.nonzero()[:, 0].tolist()}


DIGITS = set("0123456789")


@pytest.mark.parametrize(
    ("written", "condition", "expected"),
    [
        ("", {}, DIGITS - {"0"}),
        ("1", {}, DIGITS | {"."}),
        ("12", {}, set("01234567") | {"."}),  # 128 and more are too long
        ("13", {}, {"."}),
        ("4.0", {}, DIGITS),
        ("4.00", {}, {" "}),
        ("4.00 4.00 4.00", {}, {"\n"}),
        ("1.", {}, {"9"}),  # no cell is thinner than 1.9 Å
        ("2.00 2.00 ", {"n_atoms": 20}, set("23456789") | {"1"}),  # 20 atoms take 60 Å3: at least 15 Å
        ("2.00 2.00 1", {"n_atoms": 20}, set("56789") | set("012")),  # and 100 to 127
        ("4.00 4.00 4.00\n", {}, set("3456789") | {"1"}),
        ("4.00 4.00 4.00\n1", {}, set("012345")),
        ("4.00 4.00 4.00\n15", {}, {"0"}),
        ("4.00 4.00 4.00\n150.", {}, {"0"}),
        ("4.00 2.99 4.00\n1", {}, set("01234")),
        ("4.00 2.99 4.00\n14", {}, {"0"}),  # more than 140.5 leaves b a height under 1.9 Å
        (LATTICE, {}, set("ABCDEFGHIKLMNOPRSTUVWXYZ")),
        (LATTICE + "N", {}, set("abdehiop") | {"\n"}),
        (LATTICE + "Na", {}, {"\n"}),
        (LATTICE + "Na\n", {}, {"0"}),
        (LATTICE + "Na\n0", {}, {"."}),
        (LATTICE + "Na\n0.00", {}, DIGITS),
        (LATTICE + ATOM, {}, {"\n", "<eos>"}),
        (LATTICE + ATOM, {"n_atoms": 1}, {"<eos>"}),
        (LATTICE + ATOM, {"n_atoms": 2}, {"\n"}),
        (LATTICE + ATOM, {"element": "Cl"}, {"\n"}),
        (f"{LATTICE}{ATOM}\n", {"element": "Cl", "n_atoms": 2}, {"C"}),
        (f"{LATTICE}{ATOM}\nC", {"element": "Cl", "n_atoms": 2}, {"l"}),
        (LATTICE + ATOM, {"formula": "NaCl"}, {"\n"}),
        (f"{LATTICE}{ATOM}\n{ATOM[:-1]}0", {"formula": "NaCl", "n_atoms": 4}, {"\n"}),
        (f"{LATTICE}{ATOM}\n", {"formula": "NaCl", "max_atoms": 3}, {"C"}),
        (f"{LATTICE}{ATOM}\n", {"formula": "NaCl"}, {"C", "N"}),
        (LATTICE + ATOM, {"neutral": True}, {"\n"}),
        (LATTICE, {"elements": "Li-La"}, {"L"}),
        (LATTICE + "L", {"elements": "Li-La"}, {"a", "i"}),
        (f"{LATTICE}{ATOM}\nNa\n0.000 0.000 ", {}, {"0"}),
        (f"{LATTICE}{HYDROGEN}\nH\n0.000 0.000 0.", {}, set("12345678")),  # half an Å of 4 Å is 0.125
        (f"{LATTICE}{HYDROGEN}\nH\n0.000 0.000 0.1", {}, set("23456789")),
        (f"{LATTICE}{HYDROGEN}\nH\n0.000 0.000 0.12", {}, set("56789")),
        (f"{LATTICE}{ATOM}\nNa\n0.000 0.000 0.", {}, set("45")),  # 0.6 of two radii of 1.66 Å is 1.992 Å of 4 Å
        (f"{LATTICE}{ATOM}\nNa\n0.000 0.000 0.49", {}, set("89")),
    ],
)
def test_the_grammar_by_hand(written, condition, expected):
    assert legal_after(written, condition) == expected


def truths(structure: Structure) -> dict:
    back = TEXT.decode(TEXT.encode(structure))
    return {"n_atoms": len(back), "element": back[0].specie.symbol}


def assert_legal(structures: list[Structure], text=TEXT) -> None:
    """Each crystal's own sequence, also augmented, is legal under its prompt, its formula, and under nothing."""
    rng = np.random.default_rng(0)
    rows, asked = [], []
    for structure in structures:
        ids = text.encode(structure)
        truth = truths(structure)
        for condition in ({}, truth, {"formula": structure.composition.reduced_formula}):
            written = text.augment(np.array(ids), rng) if condition else ids
            rows.append([*text.prompt(condition), *written])
            asked.append(condition)
    ids = padded(rows)
    legal = text.masks(ids[:, :-1], asked).gather(2, ids[:, text.prompt_length :, None])[..., 0]
    assert legal.all(), [said(rows[i]) for i in (~legal.all(1)).nonzero()[:2, 0].tolist()]


@MODES
def test_built_crystals_are_legal(text):
    assert_legal(list(CRYSTALS.values()), text)


def test_mp20_is_legal(mp20):
    assert_legal(mp20)


@MODES
def test_masks_of_whole_sequences_are_those_of_the_states(text):
    conditions = random_conditions(16, np.random.default_rng(0), keep=0.5)
    ids = sample(tiny_policy(text, 5.0), conditions, torch.Generator().manual_seed(0)).ids
    step_by_step = Representation.masks(text, ids)
    assert torch.equal(text.masks(ids), step_by_step)
    for cut in range(text.prompt_length, ids.shape[1], 31):
        assert torch.equal(text.masks(ids[:, :cut]), step_by_step[:, : cut - text.prompt_length + 1])


def test_masks_do_not_hang_on_the_precision_of_training():
    ids = padded([[*TEXT.prompt({}), *TEXT.encode(s)] for s in CRYSTALS.values()])
    with torch.autocast("cpu", torch.bfloat16):
        half = TEXT.masks(ids)
    assert torch.equal(half, TEXT.masks(ids))


def test_gamma_is_allowed_just_where_the_cell_is_thick_and_roomy_enough():
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths = np.round(rng.choice([1.9, 2.0, 2.4, 4.0, 9.0], 3), 2)
        alpha, beta = np.round(rng.uniform(60, 120, 2), 1)
        start = " ".join(f"{x:.2f}" for x in lengths) + "\n"
        if f"{beta:.1f}"[-1] not in legal_after(f"{start}{alpha:.1f} {beta:.1f} "[:-2]):
            continue
        gamma = np.arange(300, 1501) / 10
        cos = np.cos(np.radians([np.full_like(gamma, alpha), np.full_like(gamma, beta), gamma]))
        flat = np.sqrt(np.maximum(1 - (cos**2).sum(0) + 2 * cos.prod(0), 0))
        heights = lengths[:, None] * flat / np.sqrt(1 - cos**2)
        good = (heights.min(0) >= MIN_HEIGHT) & (lengths.prod() * flat >= MIN_VOLUME)
        good &= gamma >= abs(alpha - beta) + FLAT_MARGIN
        good &= gamma <= min(alpha + beta, 360 - alpha - beta) - FLAT_MARGIN
        tens = {f"{g:.1f}"[0] for g in gamma[good]}
        assert legal_after(f"{start}{alpha:.1f} {beta:.1f} ") == tens


def walk(text, conditions: list[dict], choose) -> list[Structure]:
    """Go through the grammar, each next token as `choose` takes it from the legal ones (B, V)."""
    state = text.start(torch.tensor([text.prompt(c) for c in conditions]), conditions)
    written = []
    while not (state.field == ENDED).all():
        legal = state.legal()
        assert legal.any(1).all(), said(torch.stack(written, 1)[(~legal.any(1)).nonzero()[0, 0]].tolist(), text)
        written.append(choose(legal))
        state.advance(written[-1])
    return [text.decode(row) for row in torch.stack(written, 1).tolist()]


def assert_apart(crystal: Structure) -> None:
    assert min(crystal.lattice.volume / np.array([np.linalg.norm(np.cross(*np.delete(crystal.lattice.matrix, i, 0)))
                                                  for i in range(3)])) > MIN_HEIGHT * (1 - 1e-5)
    assert crystal.volume >= MIN_VOLUME * len(crystal)
    distances = crystal.distance_matrix[np.triu_indices(len(crystal), 1)]
    assert distances.min(initial=9) > MIN_DISTANCE - 1e-4


@MODES
def test_there_is_no_way_into_a_dead_end(text):
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    for sharpness in (0.0, 2.0, 4.0):
        conditions = random_conditions(80, rng, keep=0.5)
        liking = (torch.randn(len(text.vocabulary), generator=generator) * sharpness).exp()
        crystals = walk(text, conditions, lambda legal, liking=liking: torch.multinomial(
            legal * liking, 1, generator=generator)[:, 0])
        for crystal, asked in zip(crystals, conditions, strict=True):
            assert len(crystal) == asked.get("n_atoms", len(crystal))
            assert asked.get("element", crystal[0].specie.symbol) in crystal.symbol_set


@pytest.mark.parametrize("last", [False, True])
@MODES
def test_the_smallest_and_the_largest_numbers_can_be_completed(text, last):
    def extreme(legal: torch.Tensor) -> torch.Tensor:
        order = torch.arange(legal.shape[1]) + 1
        return (legal * (order if last else len(legal[0]) - order + 1)).argmax(1)

    walk(text, [{"n_atoms": n} for n in range(1, 21)], extreme)


HARD = [
    {"formula": "NaCl"}, {"formula": "SrTiO3", "n_atoms": 10}, {"formula": "Al2O3", "max_atoms": 12, "neutral": True},
    {"elements": "Li-Fe-O"}, {"elements": "Li-Fe-O", "neutral": True}, {"neutral": True, "n_atoms": 7, "element": "O"},
    {"chemical_system": "Li-Fe-P-O", "n_atoms": 4}, {"chemical_system": "Na-Cl", "neutral": True, "max_atoms": 6},
    {"element": "O-Li-Fe", "max_atoms": 5}, {"element": "Ti-O", "elements": "Ba-Ti-O", "neutral": True, "n_atoms": 9},
    {"max_atoms": 3}, {"neutral": True}, {"elements": "Na-Cl", "neutral": True, "element": "Cl"}, {"n_atoms": 5}, {},
]


@MODES
def test_all_that_a_random_policy_writes_is_as_asked(text):
    policy = tiny_policy(text)
    conditions = HARD * 6
    rollout = sample(policy, conditions, torch.Generator().manual_seed(0))
    for crystal, asked in zip(decode(policy, rollout), conditions, strict=True):
        assert isinstance(crystal, Structure), crystal
        assert_apart(crystal)
        assert len(crystal) == asked.get("n_atoms", len(crystal)) <= asked.get("max_atoms", 20)
        assert all(COMPOSITION[key](crystal, value) for key, value in asked.items() if key in COMPOSITION)
        if asked.get("neutral"):
            amounts = {e.Z: int(n) for e, n in crystal.composition.items()}
            assert can_be_neutral(dict(amounts))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_recomputed_ones(temperature):
    policy = tiny_policy()
    rollout = sample(policy, HARD * 3, torch.Generator().manual_seed(1), temperature=temperature)
    again, _ = policy.token_logprobs(rollout.ids, temperature, rollout.conditions)
    assert (rollout.logprobs - again)[rollout.mask].abs().max() < 1e-4
    without, _ = policy.token_logprobs(rollout.ids, temperature)
    assert (rollout.logprobs - without)[rollout.mask].abs().max() > 0.1


@pytest.mark.parametrize("condition", [{"elements": "Na", "neutral": True}, {"formula": "NaCl", "max_atoms": 1},
                                       {"elements": "Na-Cl", "neutral": True, "n_atoms": 3},
                                       {"chemical_system": "Na-K-O", "n_atoms": 2},
                                       {"element": "-".join(Element.from_Z(z).symbol for z in range(1, 22))}])
def test_what_no_crystal_can_meet_is_the_users_mistake(condition):
    with pytest.raises(UserError):
        TEXT.start(torch.tensor([TEXT.prompt(condition)]), [condition])


def test_crowded_lines_leave_what_is_free():
    # A column of atoms 0.95 Å apart along c in a cell of 1.9 Å: halfway between two, nothing is free.
    start = "9.00 9.00 1.90\n90.0 90.0 90.0\nH\n0.000 0.000 0.000\n"
    assert legal_after(start + "H\n0.000 0.000 0.") == set("234567")
    crowded = start + "H\n0.000 0.000 0.500\nH\n0.000 0.000 0."
    assert legal_after(crowded) == DIGITS  # no value is free: all are allowed
