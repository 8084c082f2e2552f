"""The page of an evaluation: it holds everything, loads nothing, and a browser draws it."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from conftest import CRYSTALS
from pymatgen.core import Structure

from policies.representations.base import MAX_Z
from rlgen import evaluation
from rlgen.evaluation import Evaluation, summarise
from rlgen.hull import Hull
from rlgen.report import diagrams
from rlgen.report.page import Page, _element, best, curves
from rlgen.types import CrystalError

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DEFINITIONS = vars(evaluation.FIELD)
NOTES = {
    "scale": "toy", "hull": "a hull <of toys>", "reference": "x", "novelty": "labels", "unique": "a matcher",
    "samples": 11, "relaxed": True, "fmax": 0.1, "steps": 5, "seed": 3, "definitions": DEFINITIONS,
}  # fmt: skip


def judged(shift: float) -> tuple[Evaluation, list]:
    """The built crystals as samples, and one that could not be decoded, with made-up energies from `shift` on."""
    crystals = [*CRYSTALS.values(), CrystalError("parse", "ends </script><b>early")]
    n = len(crystals)
    drawn = [isinstance(c, Structure) for c in crystals]
    sites = [evaluation.describe(c) if ok else None for c, ok in zip(crystals, drawn, strict=True)]
    table = pd.DataFrame({
        "formula": [c.reduced_formula if ok else None for c, ok in zip(crystals, drawn, strict=True)],
        "status": ["ok" if ok else "invalid" for ok in drawn],
        "reason": ["" if ok else str(crystals[-1]) for ok in drawn],
        "valid": drawn, "apart": drawn, "radii_apart": drawn, "neutral": drawn, "unique": drawn, "novel": drawn,
        "e_above_hull": [shift + 0.02 * i if ok else math.nan for i, ok in enumerate(drawn)],
        "e_above_hull_written": [0.5] * n, "displacement": [0.01 * i for i in range(n)],
        "space_group": pd.array([s and s.space_group for s in sites], dtype="Int64"),
        "prototype": pd.array([s and s.prototype for s in sites], dtype="string"),
        "n_atoms": pd.array([s and s.n_atoms for s in sites], dtype="Int64"),
        "chemical_system": pd.array([c.chemical_system if ok else None for c, ok in zip(crystals, drawn, strict=True)],
                                    dtype="string"),
        "density": [float(c.density) if ok else math.nan for c, ok in zip(crystals, drawn, strict=True)],
        "n_elements": pd.array([len(c.composition) if ok else None for c, ok in zip(crystals, drawn, strict=True)],
                               dtype="Int64"),
    })  # fmt: skip
    table["sun"] = table["valid"] & (table["e_above_hull"] <= 0.1)
    return Evaluation(table, summarise(table), {"invalid: parse": 1}, NOTES), crystals


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    lines = [{"step": s, "reward/total": 0.01 * s, "policy/kl": None if s == 3 else 0.1, "time/step": 1}
             for s in range(1, 9)]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.yaml").write_text("steps: 8\n")
    (before, crystals), (after, _) = judged(0.05), judged(-0.02)
    energies = {str(element): -1.0 for crystal in CRYSTALS.values() for element in crystal.elements}
    energies |= {"Cl": -2.0, "NaCl": -2.0, "Na3Cl": -1.2, "Si": -5.0, "O": -3.0, "SiO2": -5.0, "Ti": -7.0,
                 "TiO2": -6.0, "SrO": -4.0, "SrTiO3": -6.2}  # fmt: skip
    gap = pd.DataFrame({"band_gap": np.linspace(0, 5, 11), "index": range(11)})
    evaluations = {"before": before, "after <run>": after}
    return Page("Toys & crystals", evaluations, dict.fromkeys(evaluations, crystals), {"after <run>": gap},
                Hull("toy", energies), "input: somewhere\n", run)  # fmt: skip


def test_the_page_is_whole(page, tmp_path):
    page.write(tmp_path / "new" / "report.html")
    text = (tmp_path / "new" / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(|fetch\(|XMLHttpRequest""", text)
    assert "<!--" not in text and text.count("</script>") == 3  # no text of a sample ends a script
    for words in ("Toys &amp; crystals", "after &lt;run&gt;", "a hull &lt;of toys&gt;", "S.U.N. (≤ 0.1 eV/atom)",
                  "steps: 8", "input: somewhere", "pymatgen 20", "seed"):  # fmt: skip
        assert words in text, words
    HTMLParser().feed(text)


def test_the_data_is_that_of_the_samples(page):
    data = page.data()
    json.dumps(data, allow_nan=False)
    assert [one["name"] for one in data["evaluations"]] == ["before", "after <run>"]
    after = data["evaluations"][1]
    assert after["columns"]["e_above_hull"][:2] == [-0.02, 0.0] and after["columns"]["e_above_hull"][-1] is None
    assert after["crystals"][-1] is None and len(after["crystals"]) == 11
    assert data["properties"] == ["band_gap"] and data["evaluations"][0]["columns"]["band_gap"] == [None] * 11
    assert data["thresholds"] == [0.0, 0.1] and set(data["elements"]) >= {11, 17}
    assert data["elements"][8][:2] == ["O", "#ff0d0d"] and len(data["periodic_table"]) == 103


def test_the_best_are_of_different_prototypes_first():
    _, crystals = judged(0)
    table = pd.DataFrame({"sun": [True, True, True, False, True], "e_above_hull": [0.01, 0.0, 0.02, -1, 0.05],
                          "prototype": ["a", "a", "b", "c", None]})  # fmt: skip
    assert best(table, crystals[:5]) == [1, 2, 0, 4]
    assert best(table, [CrystalError("parse", "")] * 5) == []


def test_every_element_that_can_be_written_has_a_colour():
    drawn = [_element(z) for z in range(1, MAX_Z + 1)]
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) and radius > 0 for _, colour, radius in drawn)


def test_curves_are_thinned_and_leave_out_times(page, tmp_path):
    found = {curve["name"]: curve for curve in curves(page.run)}
    assert list(found) == ["reward/total", "policy/kl"]
    assert found["policy/kl"]["steps"] == [1, 2, 4, 5, 6, 7, 8]
    lines = [json.dumps({"step": s, "x": s}) for s in range(1, 3001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (curve,) = curves(tmp_path)
    assert len(curve["steps"]) == 300 and curve["values"][0] == 5.5 and curve["values"] == curve["steps"]
    assert list(curves(tmp_path / "none")) == []


def test_phase_diagrams_show_what_is_known(page):
    table = page.evaluations["after <run>"].samples
    salt = diagrams.diagram("Cl-Na", table[table["formula"] == "NaCl"], page.hull)
    points = {(p["formula"], p["sample"]): p for p in salt["points"]}
    # NaCl: −2 − (−1.5) = −0.5; Na3Cl: −1.2 − (−1.25) = +0.05; the sample lies 0.02 below NaCl.
    assert points[("NaCl", None)]["energy"] == pytest.approx(-0.5) and points[("NaCl", None)]["stable"]
    assert points[("Na3Cl", None)]["energy"] == pytest.approx(0.05) and not points[("Na3Cl", None)]["stable"]
    assert points[("NaCl", 0)]["energy"] == pytest.approx(-0.52)
    named = [{salt["points"][a]["formula"], salt["points"][b]["formula"]} for a, b in salt["hull"]]
    assert {"NaCl", "Na"} in named and {"NaCl", "Cl2"} in named and len(named) == 2
    ternary = diagrams.diagram("O-Sr-Ti", table[table["formula"] == "SrTiO3"], page.hull)
    edges = {frozenset(ternary["points"][i]["formula"] for i in edge) for edge in ternary["hull"]}
    assert frozenset({"SrTiO3", "TiO2"}) in edges and frozenset({"SrTiO3", "SrO"}) in edges
    assert ternary["points"][-1]["sample"] == 2


#: Turns the first crystal with the pointer, and writes down what a person would see.
PROBE = """<script>
addEventListener("error", (event) => (document.documentElement.dataset.errors = event.message));
setTimeout(() => {
  const canvas = document.querySelector(".cards canvas");
  const colours = () => new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size;
  const before = canvas.toDataURL();
  const event = (name, x, y) => canvas.dispatchEvent(new PointerEvent(name, { clientX: x, clientY: y, pointerId: 1 }));
  canvas.setPointerCapture = () => {};
  event("pointerdown", 10, 10); event("pointermove", 60, 40); event("pointerup", 60, 40);
  event("pointermove", 90, 90);  // no longer held: nothing turns
  const box = document.querySelector("#samples input[type=search]");
  const rows = () => document.querySelectorAll("#samples tbody tr").length;
  const all = rows();
  box.value = "Ti-O"; box.oninput();
  const facts = { turned: canvas.toDataURL() !== before, colours: colours(), all, filtered: rows() };
  box.value = ""; box.oninput();
  const pre = Object.assign(document.createElement("pre"), { id: "probe", textContent: JSON.stringify(facts) });
  document.body.append(pre);
}, 500);
</script></body>"""


@pytest.fixture(scope="module")
def opened(page, tmp_path_factory):
    """The page's DOM after a browser has drawn it and was played with."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")
    folder = tmp_path_factory.mktemp("browser")
    probed = page.html().replace("<head>", '<head><script>addEventListener("error", (event) => '
                                 "(document.documentElement.dataset.errors = event.message));</script>")
    (folder / "report.html").write_text(probed.replace("</body>", PROBE))
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}",
         "--window-size=1200,3000", "--virtual-time-budget=5000", "--dump-dom", (folder / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_browser_draws_all_of_it(opened):
    assert 'data-drawn="true"' in opened and "data-errors" not in opened
    assert opened.count("<canvas") == 7  # metastable, unique and novel ones of the last set
    for section in ("distributions", "elements", "symmetry", "learning", "best", "diagrams", "samples"):
        body = re.search(rf'<section id="{section}"(.*?)</section>', opened, re.S)[1]
        assert "hidden" not in body.split(">")[0] and len(body) > 500, section
        assert f'href="#{section}"' in opened
    assert "band_gap" in opened and "reward/total" in opened and "NaN" not in opened


def test_crystals_turn_and_samples_are_found(opened):
    facts = json.loads(re.search(r'<pre id="probe">(.*?)</pre>', opened)[1])
    assert facts["turned"] and facts["colours"] > 20
    assert (facts["all"], facts["filtered"]) == (11, 3)


def test_every_crystal_has_its_cif(opened):
    links = re.findall(r'download="(\d{6})_[^"]+" href="data:chemical/x-cif;charset=utf-8,([^"]+)"', opened)
    found = {int(index): Structure.from_str(unquote(cif), fmt="cif") for index, cif in links}
    assert sorted(found) == list(range(10))
    for index, crystal in enumerate(CRYSTALS.values()):
        assert found[index].composition == crystal.composition
        assert found[index].lattice.parameters == pytest.approx(crystal.lattice.parameters, abs=1e-5)
        assert np.allclose((found[index].frac_coords - crystal.frac_coords + 0.5) % 1, 0.5, atol=1e-5)
