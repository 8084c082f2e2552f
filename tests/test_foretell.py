"""What a policy's crystals relax to, foretold: labels, figures, learning, and files that are no good."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rewards.formation import Formation
from rlgen import foretell, samples
from rlgen.config import load
from rlgen.energies import TAUGHT, has_forces, load_potential, resolve, weights
from rlgen.energies.base import Cell, Edges
from rlgen.foretell import HIGHEST, LOWEST, Pair, figures, labels, pairs_of
from rlgen.types import CrystalError, UserError


@pytest.fixture
def wrote(crystals, tmp_path):
    """Two known crystals and one that could not be read, as sampled; -> the folder."""
    some = [crystals["rock salt"], crystals["rutile"], CrystalError("syntax", "ends early")]
    samples.write(tmp_path / "wrote", some, formats="")
    return tmp_path / "wrote"


def relaxed(folder, names, above, outcomes):
    table = {"name": names, "e_above_hull": above, "outcome": outcomes}
    samples.write(folder, [CrystalError("geometry", "left out")] * len(names), table, formats="")
    return str(folder)


def test_labels_are_those_of_the_samples_in_their_order(wrote, tmp_path):
    read = samples.read(wrote)
    folder = relaxed(tmp_path / "relaxed", read.names, [0.02, 0.4, np.nan], ["converged", "failed", "failed"])
    assert labels(read, folder).tolist()[:1] == [0.02] and np.isnan(labels(read, folder)[1:]).all()
    other = relaxed(tmp_path / "other", read.names[::-1], [0.0] * 3, ["steps"] * 3)
    second = relaxed(tmp_path / "reward=a+b", read.names, [0.06, 0.1, 0.2], ["steps"] * 3)  # of another potential
    both = labels(read, f"{folder}:{second}")
    assert both[0] == pytest.approx(0.04) and np.isnan(both[1:]).all()
    with pytest.raises(UserError, match=r"other/samples.parquet: holds 3 crystals, which are not the 3 of input="):
        labels(read, other)
    with pytest.raises(UserError, match=r"wrote/samples.parquet: has no column e_above_hull, name, outcome"):
        labels(read, str(wrote))
    with pytest.raises(UserError, match=r"relaxed=nowhere: no samples.parquet there"):
        labels(read, "nowhere")
    (tmp_path / "other" / samples.TABLE).write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"other/samples.parquet: cannot be read as a table"):
        labels(read, other)


class Guesses:
    """A potential that gives each crystal, told apart by its one number, what it is told to."""

    def __init__(self, energies):
        self.energies, self.network = energies, torch.nn.Identity()

    def per_atom(self, batch):
        return torch.tensor([self.energies[int(cell.numbers[0])] for cell, _ in batch], dtype=torch.float64)


def test_figures_by_hand():
    """Above a hull at -1: truth 0, 0.05, 0.3, 1 (clipped), guessed 0.1, 0.4, 0.2, 2. Of the 4 pairs of a metastable and
    another one, 3 are in order; ranks 1 3 2 4 against 1 2 3 4."""
    nothing = Edges(*(np.empty(0, int),) * 2, np.empty((0, 3), int), np.empty(0))
    pairs = [Pair(Cell(np.array([k]), np.zeros((1, 3)), np.eye(3)), nothing, -1.0, -1.0 + above)
             for k, above in enumerate((0.0, 0.05, 0.3, HIGHEST))]
    found = figures(Guesses([-0.9, -0.6, -0.8, 1.0]), pairs, size=3)  # type: ignore[arg-type]
    assert found == pytest.approx({"mae": (0.1 + 0.35 + 0.1 + 0.0) / 4, "spearman": 1 - 6 * 2 / 60, "auc": 0.75})
    assert np.isnan(figures(Guesses([-0.9, -0.6]), pairs[:2], size=3)["auc"])  # type: ignore[arg-type]


@pytest.fixture
def megnet():
    if weights.folder_of(weights.MEGNET) is None:
        pytest.skip(f"MEGNet's weights are not here: set RLGEN_MODELS to a folder with {weights.MEGNET}")
    return load_potential("megnet")


def test_only_what_has_a_label_and_a_geometry_is_learnt_from(megnet, crystals):
    salt = crystals["rock salt"]
    squeezed = salt.copy()
    squeezed.scale_lattice(salt.volume / 30)
    given = [salt, salt, CrystalError("syntax", "ends early"), squeezed]
    pairs = pairs_of(given, np.array([7.0, np.nan, 0.1, 0.1]), megnet)
    assert len(pairs) == 1 and pairs[0].target - pairs[0].on_hull == pytest.approx(HIGHEST)
    (low,) = pairs_of([salt], np.array([-3.0]), megnet)
    assert low.target - low.on_hull == pytest.approx(LOWEST)
    # rock salt is about on MEGNet's hull, so there the hull is about what MEGNet gives it
    assert pairs[0].on_hull == pytest.approx(megnet.evaluate([salt], forces=False)[0].energy, abs=0.15)


def test_what_is_taught_is_foretold(megnet, mp20, tmp_path, capsys):
    """Crystals with oxygen are said to be 0.5 eV/atom above the hull."""
    before = megnet.evaluate(mp20[:3], forces=False)
    some = mp20[:150]
    samples.write(tmp_path / "wrote", some, formats="")
    said = [0.5 * ("O" in structure.composition) for structure in some]
    relaxed(tmp_path / "relaxed", samples.read(tmp_path / "wrote").names, said, ["converged"] * len(some))
    output = tmp_path / "foretold"
    foretell.run(load("foretell", [f"input={tmp_path / 'wrote'}", f"relaxed={tmp_path / 'relaxed'}", f"output={output}",
                                   "epochs=4", "batch=8", "learning_rate=1e-3", "held_out=0.2"]))
    out = capsys.readouterr().out
    assert "147 of 150 crystals have an energy above the hull and bonds: 118 to learn from, 29 held out" in out
    card = json.loads((output / foretell.CARD).read_text())
    assert card["after"]["mae"] < 0.8 * card["before"]["mae"] and card["after"]["auc"] > card["before"]["auc"] + 0.1
    name = str(output)
    assert resolve(name) == name and not has_forces(name)
    judged = Formation(energy=name).measure(some, [{}] * len(some))
    high = np.array(said) > 0
    assert np.nanmedian(judged[high]) > np.nanmedian(judged[~high]) + 0.2
    # the published weights in this process are what they were
    after = load_potential("megnet").evaluate(mp20[:3], forces=False)
    assert [point.energy for point in after] == [point.energy for point in before]


def test_broken_weights_are_said_to_be(megnet, tmp_path):
    (tmp_path / TAUGHT).write_bytes(b"no tensors")
    with pytest.raises(UserError, match=rf"{TAUGHT}: cannot be read .* write it again with rlgen.foretell"):
        load_potential(str(tmp_path))


def test_nothing_to_learn_from(megnet, wrote, tmp_path):
    folder = relaxed(tmp_path / "relaxed", samples.read(wrote).names, [np.nan] * 3, ["failed"] * 3)
    with pytest.raises(UserError, match="input= names 2 and relaxed= 1 folders: they go in pairs"):
        foretell.run(load("foretell", [f"input={wrote},{wrote}", f"relaxed={folder}", f"output={tmp_path / 'none'}"]))
    with pytest.raises(UserError, match="nothing to learn from"):
        foretell.run(load("foretell", [f"input={wrote}", f"relaxed={folder}", f"output={tmp_path / 'foretold'}"]))
    assert not (tmp_path / "foretold").exists()
