"""Band gaps: the published values that the predictor must give, and its refusal where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import CRYSTALS
from pymatgen.core import Lattice, Structure

from rlgen.energies.weights import folder_of
from rlgen.predictors import predictor_of
from rlgen.predictors.megnet import CHECKPOINT, KNOWN, BandGap, _known
from rlgen.types import UserError


@pytest.fixture(scope="module")
def gaps() -> BandGap:
    if folder_of(CHECKPOINT) is None:
        pytest.skip(f"{CHECKPOINT} is not here: set RLGEN_MODELS to the folder that holds it")
    model = predictor_of("band_gap")
    assert isinstance(model, BandGap)
    return model


@pytest.fixture
def as_found(gaps):
    """The way of evaluating is put back after a test."""
    yield gaps
    gaps.evaluate_with(2, True)


def test_known_gaps(gaps):
    found, reasons = gaps.predict([_known(formula) for formula in KNOWN])
    assert np.abs(found - list(KNOWN.values())).max() < 0.15 and reasons == [""] * 4
    metals = [CRYSTALS["hcp"], Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])]
    assert gaps.predict(metals)[0].max() < 0.05


def test_as_matgl_would_evaluate_it_compounds_are_wrong(as_found):
    """Why the way of evaluating has to be found: magnesia has 4.4 eV."""
    found = {}
    for way in ((2, True), (3, True), (2, False), (3, False)):
        as_found.evaluate_with(*way)
        found[way] = float(as_found.predict([_known("MgO")])[0][0])
    assert found == pytest.approx({(2, True): 4.34, (3, True): 0.40, (2, False): 3.04, (3, False): 0.0}, abs=0.01)


def test_other_weights_under_its_name_are_refused(as_found):
    layer = as_found._model.output_proj.layers[0].weight
    before = layer.clone()
    try:
        layer.mul_(1.5)
        with pytest.raises(UserError, match="misses the known gaps of NaCl, MgO, TiO2, Si by"):
            as_found._settle()
    finally:
        layer.copy_(before)


def test_a_crystal_has_the_same_gap_in_any_company(gaps, crystals):
    some = list(crystals.values())
    together, reasons = gaps.predict(some)
    assert reasons == [""] * len(some)
    alone = [gaps.predict([structure])[0][0] for structure in some]
    assert together == pytest.approx(alone, abs=1e-4)
    assert gaps.predict(some[::-1])[0][::-1] == pytest.approx(alone, abs=1e-4)
    assert gaps.predict([s * (2, 1, 1) for s in some])[0] == pytest.approx(alone, abs=1e-3)


def test_what_it_cannot_judge_has_a_reason(gaps):
    polonium = Structure(Lattice.cubic(3.35), ["Po"], [[0, 0, 0]])
    lonely = Structure(Lattice.cubic(9), ["Na"], [[0, 0, 0]])
    close = Structure(Lattice.cubic(5), ["Na", "Cl"], [[0, 0, 0], [0.05, 0, 0]])
    values, reasons = gaps.predict([polonium, _known("MgO"), lonely, close])
    assert np.isnan(values).tolist() == [True, False, True, True]
    assert [reason.split(":")[0] for reason in reasons] == ["element", "", "isolated", "overlap"]


def test_published_gaps_of_mp20(gaps, mp20):
    from rlgen import data

    records = [record for record in data.load("mp20", limit=200).splits["val"] if "band_gap" in record.properties]
    published = np.array([record.properties["band_gap"] for record in records])
    found, _ = gaps.predict([record.structure for record in records])
    assert len(records) > 100 and np.isfinite(found).all()
    assert np.abs(found - published).mean() < 0.2 and np.corrcoef(found, published)[0, 1] > 0.9
    assert ((found > 0.1) == (published > 0.1)).mean() > 0.9


def test_as_a_reward_it_is_kept_and_missed_values_fail(gaps):
    from rewards import make
    from rlgen.reward_pool import RewardPool

    lonely = Structure(Lattice.cubic(7), ["Na"], [[0, 0, 0]])
    with RewardPool([make("condition")], "condition", workers=0) as pool:
        scored = pool.score([_known("MgO"), _known("Si"), lonely], [{"band_gap": 4.3}] * 3)
    assert scored.status.tolist() == ["ok", "ok", "failed"] and scored.total[2] == 0
    assert scored.total[0] == 1 and scored.total[1] < 0.2
    assert scored.extra["measured_band_gap"][:2] == pytest.approx([4.34, 0.67], abs=0.01)
