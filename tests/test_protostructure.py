"""What labels say of crystals: of textbook ones by hand, and the same prototype whatever the chemistry."""

import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from rlgen import reference
from rlgen.protostructure import Protostructure, read_label


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("AB_cF8_225_a_b:Cl-Na", (225, "AB_cF8_225_a_b", 2, ("Cl", "Na"), "ClNa")),
        ("A3BC_cP5_221_c_a_b:O-Sr-Ti", (221, "ABC3_cP5_221_a_b_c", 5, ("O", "Sr", "Ti"), "O3SrTi")),
        ("A2B_hP9_152_c_a:O-Si", (152, "AB2_hP9_152_a_c", 9, ("O", "Si"), "O2Si")),
        ("A_cI2_229_a:Fe", (229, "A_cI2_229_a", 1, ("Fe",), "Fe")),
        ("A_hR6_166_c:Bi", (166, "A_hR6_166_c", 2, ("Bi",), "Bi")),
    ],
)
def test_parts_of_textbook_labels(label, parts):
    assert read_label(label) == Protostructure(*parts)


def test_symmetry_that_could_not_be_determined():
    assert read_label("FeO|unlabelled") is None


def test_prototypes_do_not_depend_on_which_element_is_a():
    fluorite, antifluorite = read_label("A2B_cF12_225_c_a:F-Sr"), read_label("AB2_cF12_225_a_c:O-Rb")
    half_heusler = {read_label(f"ABC_cF12_216_{order}:X-Y-Z").prototype for order in ("a_b_c", "b_a_c", "c_a_b")}
    assert fluorite.prototype == antifluorite.prototype == "AB2_cF12_225_a_c" and len(half_heusler) == 1


def test_every_label_of_mp20_can_be_read():
    labels = pq.read_table(reference._SHIPPED, columns=["label"])["label"].to_pylist()[::20]
    found = [read_label(label) for label in labels]
    assert all(one is not None and 1 <= one.n_atoms <= 20 and one.elements == tuple(sorted(one.elements))
               for one in found)
    assert len({one.prototype for one in found}) < len(found)


def test_pymatgens_prototypes_come_whole_without_the_seconds_of_a_bibtex_parser():
    code = ("import sys; from rlgen.protostructure import library; from pymatgen.util import provenance;"
            "whole = all(entry['snl'].references for entry in library().AFLOW_PROTOTYPE_LIBRARY);"
            "print(whole, 'pybtex' in sys.modules, provenance.is_valid_bibtex('@nonsense'))")
    output = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.split() == ["True", "False", "False"]
