"""Infilling: what is known is kept exactly, what is masked is masked by site, and answers keep to their list."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CRYSTALS
from conftest import tiny_policy as atoms_policy
from pymatgen.core import Element, Lattice, Structure

from policies.model import CrystalPolicy
from policies.representations import make
from rlgen import infill as module
from rlgen.infill import Mask, infill, similar
from rlgen.spacegroup import from_spacegroup
from rlgen.types import CrystalError, UserError

CALCITE = from_spacegroup(
    "R-3c", Lattice.hexagonal(4.99, 17.06), ["Ca", "C", "O"], [[0, 0, 0], [0, 0, 0.25], [0.2568, 0, 0.25]]
).get_primitive_structure()
PEROVSKITE = CRYSTALS["perovskite"]


def tiny_policy(**options) -> CrystalPolicy:
    torch.manual_seed(0)
    policy = CrystalPolicy.create(make("text", max_atoms=20, **options), hidden_size=32, layers=2, heads=2,
                                  intermediate_size=64)
    with torch.no_grad():
        policy.embed.weight.mul_(20)
    return policy.eval()


POLICY = tiny_policy()


def draw(structure: Structure, mask: str, n: int = 4, seed: int = 0, policy: CrystalPolicy = POLICY, **options
         ) -> list[Structure]:
    found = infill(policy, structure, mask, n, torch.Generator().manual_seed(seed), **options)
    assert len(found) == n
    return found  # type: ignore[return-value]


def symbols(structure: Structure) -> list[str]:
    return [site.specie.symbol for site in structure]


# What is asked


def test_carbon_is_not_calcium():
    sites = Mask.of("element:C", CALCITE).sites
    assert [CALCITE[i].specie.symbol for i in sites] == ["C", "C"]
    for found in draw(CALCITE, "element:C"):
        assert [s for s, o in zip(symbols(found), symbols(CALCITE), strict=True) if o in ("Ca", "O")] == [
            s for s in symbols(CALCITE) if s in ("Ca", "O")]


@pytest.mark.parametrize(
    ("text", "kind", "sites"),
    [("element:O", "element", (2, 3, 4)), ("coordinates:O", "coordinates", (2, 3, 4)), ("element:3", "element", (3,)),
     ("coordinates:4,0,4", "coordinates", (0, 4)), ("lattice", "lattice", ())],
)
def test_masks_name_sites(text, kind, sites):
    assert Mask.of(text, PEROVSKITE) == Mask(kind, sites)


@pytest.mark.parametrize("text", ["", "element", "element:", "lattice:1", "colour:Ca", "element:Ca", "element:5",
                                  "coordinates:-1", "coordinates:1-2", "coordinates:Xx"])
def test_masks_of_what_is_not_there_are_the_users_mistake(text):
    with pytest.raises(UserError, match="mask="):
        Mask.of(text, PEROVSKITE)


def test_similar_elements_have_similar_ionic_radii():
    found = similar("Ca")
    assert Element("Ca").Z in found and 5 < len(found) < 40
    own = Element("Ca").average_ionic_radius
    assert all(abs(Element.from_Z(z).average_ionic_radius - own) <= 0.1 + 1e-9 for z in found)
    assert Element("Cs").Z not in found
    assert similar("Ca", 0.0) < similar("Ca", 0.2)
    assert Element("He").Z in similar("He")  # it has no ionic radius


# What comes back


def test_an_element_is_replaced_by_one_of_the_list_and_the_rest_is_kept_exactly():
    allowed = {Element(s).Z for s in ("Sr", "Ba", "K", "B")}
    found = draw(PEROVSKITE, "element:Sr", n=12, elements=allowed, draws=2)
    assert all(f[0].specie.Z in allowed for f in found) and len({f[0].specie.symbol for f in found}) > 1
    for f in found:
        assert f.lattice == PEROVSKITE.lattice and symbols(f)[1:] == symbols(PEROVSKITE)[1:]
        assert np.array_equal(f.frac_coords, PEROVSKITE.frac_coords)


def test_the_default_list_is_of_similar_elements():
    assert {f[0].specie.Z for f in draw(PEROVSKITE, "element:Sr", n=8, draws=1)} <= similar("Sr")


def test_all_sites_of_a_masked_element_get_the_same_one():
    found = draw(PEROVSKITE, "element:O", n=8, draws=2)
    assert all(len(set(symbols(f)[2:])) == 1 and symbols(f)[:2] == ["Sr", "Ti"] for f in found)
    assert len({symbols(f)[2] for f in found}) > 1


@pytest.mark.parametrize("mask", ["coordinates:0", "coordinates:1,3", "coordinates:O"])
def test_coordinates_are_drawn_and_the_rest_is_kept_exactly(mask):
    sites = list(Mask.of(mask, PEROVSKITE).sites)
    others = [i for i in range(5) if i not in sites]
    for f in draw(PEROVSKITE, mask):
        assert f.lattice == PEROVSKITE.lattice and symbols(f) == symbols(PEROVSKITE)
        assert np.array_equal(f.frac_coords[others], PEROVSKITE.frac_coords[others])
        assert not np.allclose(f.frac_coords[sites], PEROVSKITE.frac_coords[sites])
        assert f.distance_matrix[np.triu_indices(5, 1)].min() > 0.49


def test_the_lattice_is_drawn_and_the_atoms_are_kept_exactly():
    found = draw(PEROVSKITE, "lattice")
    assert len({f.lattice.abc for f in found}) > 1
    for f in found:
        assert symbols(f) == symbols(PEROVSKITE) and np.array_equal(f.frac_coords, PEROVSKITE.frac_coords)
        assert f.distance_matrix[np.triu_indices(5, 1)].min() > 0.49


@pytest.mark.parametrize("options", [{"lengths": 1, "angles": 0, "coordinates": 2}, {"angles": 2, "coordinates": 4}])
def test_other_precisions_fill_in_too(options):
    policy = tiny_policy(**options)
    for mask in ("element:O", "coordinates:2", "lattice"):
        assert all(isinstance(f, Structure) for f in draw(PEROVSKITE, mask, n=2, policy=policy))


def test_the_seed_decides():
    one, same, other = (draw(PEROVSKITE, "coordinates:0", seed=seed) for seed in (0, 0, 1))
    assert one == same != other


def test_what_is_only_nearly_on_the_grid_is_kept_as_it_is():
    odd = Structure(Lattice.from_parameters(3.90512, 4.0001, 4.1, 90.004, 89.99, 90), PEROVSKITE.species,
                    PEROVSKITE.frac_coords + 0.00012345)
    f = draw(odd, "element:Ti", n=1)[0]
    assert f.lattice == odd.lattice and np.array_equal(f.frac_coords, odd.frac_coords)


# Which of the draws is kept


def test_draws_that_fit_what_follows_are_kept_in_proportion():
    # Log-weights of 0 and log 3: a quarter and three quarters.
    weights = torch.tensor([[0.0, float(np.log(3)), -torch.inf]]).expand(4000, 3)
    kept = np.array(module._resample(weights, torch.Generator().manual_seed(0))) - 3 * np.arange(4000)
    assert set(kept) == {0, 1} and abs(kept.mean() - 0.75) < 0.03


def test_draws_of_which_none_fits_are_errors():
    assert module._resample(torch.full((2, 3), -torch.inf), torch.Generator()) == [None, None]


def test_the_lattice_follows_its_distribution_given_the_atoms():
    # The likelier the atoms are after a lattice, the more of it is kept: by many draws the mean weight rises.
    def likelihood(draws: int) -> float:
        policy, rep = POLICY, POLICY.representation
        found = draw(PEROVSKITE, "lattice", n=16, draws=draws)
        rows = [rep.prompt({"n_atoms": 5}) + rep.tokens(rep.write(f)) for f in found]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        logp, _ = policy.token_logprobs(ids, 1.0, [{}] * 16)
        ends = (ids[:, rep.prompt_length :] == rep.vocabulary.index("\n")).int().cumsum(1)
        return float(logp.detach().masked_fill((ends < 2) | (ids[:, rep.prompt_length :] == rep.pad), 0).sum(1).mean())

    assert likelihood(16) > likelihood(1)


# What cannot be served


def test_other_representations_cannot_fill_in():
    with pytest.raises(UserError, match="'atoms' cannot fill in"):
        draw(PEROVSKITE, "lattice", policy=atoms_policy())


@pytest.mark.parametrize(
    ("structure", "kind"),
    [(Structure(Lattice.cubic(200), ["H", "O"], [[0, 0, 0], [0.5, 0, 0]]), "geometry"),
     (Structure(Lattice.cubic(4), ["H", "O"], [[0, 0, 0], [0.05, 0, 0]]), "geometry"),
     (Structure(Lattice.cubic(4), [{"H": 0.5}, "O"], [[0, 0, 0], [0.5, 0, 0]]), "chemistry"),
     (Structure(Lattice.cubic(40), ["O"] * 21, np.random.default_rng(0).random((21, 3))), "parse")],
)
def test_crystals_that_cannot_be_written_are_named(structure, kind):
    with pytest.raises(CrystalError) as error:
        draw(structure, "element:1")
    assert error.value.kind == kind
