"use strict";
// Draws the page from the data in it: nothing is loaded from anywhere.

const data = JSON.parse(document.getElementById("data").textContent);
const sets = data.evaluations;
const colours = sets.length === 1 ? ["var(--c1)"] : ["var(--c0)", "var(--c1)"];
const find = (selector, within = document) => within.querySelector(selector);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const finite = (values) => values.filter((value) => value !== null && Number.isFinite(value));
const short = (value, digits = 3) => (value === null || value === undefined ? "–" : String(+value.toPrecision(digits)));
const legend = () => sets.map((set, k) => `<span class="swatch" style="background:${colours[k]}"></span>${escaped(set.name)}`).join("");
const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

/** A figure with a title, a drawing of 320 × height units and a caption, all HTML. */
function figure(title, drawing, caption = "", [width, height] = [320, 170]) {
  const inside = `<h3>${escaped(title)}</h3><svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(title)}">${drawing}</svg>`;
  return make("figure", { innerHTML: `${inside}<figcaption>${caption}</figcaption>` });
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function ticks(low, high, count = 5) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(+value.toPrecision(6));
  return found;
}

function axis(x, low, high, bottom, unit, right) {
  const marks = ticks(low, high).map((value) => `<text x="${x(value)}" y="${bottom + 14}" text-anchor="middle">${value}</text>`);
  return `<line class="axis" x1="0" x2="${right}" y1="${bottom}" y2="${bottom}"/>${marks.join("")}<text x="${right}" y="${bottom + 28}" text-anchor="end">${escaped(unit)}</text>`;
}

// Distributions: shares of each set's samples in common bins; what lies outside is in the outer bins.
function histogram({ column, title, unit, low, high, marks = [] }) {
  const values = sets.map((set) => finite(set.columns[column] || []));
  const all = values.flat();
  if (!all.length) return null;
  const whole = all.every(Number.isInteger);
  low ??= Math.min(...all);
  high ??= Math.max(...all);
  if (whole) [low, high] = [low - 0.5, high + 0.5];
  if (high <= low) [low, high] = [low - 0.5, low + 0.5];
  const bins = whole ? Math.min(high - low, 40) : 36;
  const shares = values.map((one) => {
    const counts = Array(bins).fill(0);
    for (const value of one) counts[Math.min(bins - 1, Math.max(0, Math.floor(((value - low) / (high - low)) * bins)))] += 1;
    return counts.map((count) => count / Math.max(1, one.length));
  });
  const top = Math.max(...shares.flat());
  const x = (value) => ((value - low) / (high - low)) * 320;
  const bars = shares.map((one, k) => one.map((share, i) => {
    const height = (share / top) * 120;
    return `<rect x="${(i * 320) / bins + 0.5}" y="${130 - height}" width="${320 / bins - 1}" height="${height}" fill="${colours[k]}" opacity="${k ? 0.6 : 0.75}"/>`;
  }).join("")).join("");
  const lines = marks.map((mark) => `<line class="mark" x1="${x(mark)}" x2="${x(mark)}" y1="5" y2="130"/>`).join("");
  const medians = values.map((one) => short(one.length ? median(one) : null)).join(" → ");
  return figure(title, bars + lines + axis(x, low, high, 130, unit, 320), `${legend()}<br>median ${medians}`);
}

function distributions() {
  const box = find("#distributions .charts");
  const near = data.thresholds;
  const fixed = [
    { column: "e_above_hull", title: "Energy above the hull, relaxed", unit: "eV/atom", low: -0.2, high: 1, marks: near },
    { column: "e_above_hull_written", title: "Energy above the hull, as written", unit: "eV/atom", low: -0.2, high: 3, marks: near },
    { column: "displacement", title: "RMSD to the relaxed crystal", unit: "Å", low: 0 },
    { column: "density", title: "Density", unit: "g/cm³", low: 0 },
    { column: "n_atoms", title: "Atoms per primitive cell", unit: "atoms" },
    { column: "n_elements", title: "Elements per crystal", unit: "elements" },
  ];
  const more = data.properties.map((name) => ({ column: name, title: name, unit: "" }));
  box.append(...[...fixed, ...more].map(histogram).filter(Boolean));
}

// Elements: in how large a share of the valid crystals each occurs.
function elementShares(set) {
  const found = {};
  const systems = set.columns.chemical_system.filter(Boolean);
  for (const system of systems) for (const symbol of system.split("-")) found[symbol] = (found[symbol] || 0) + 1;
  for (const symbol in found) found[symbol] /= systems.length;
  return found;
}

function elements() {
  const box = find(".table-of-elements");
  const shares = sets.map(elementShares);
  const views = sets.map((set, k) => [set.name, (symbol) => shares[k][symbol] || 0]);
  if (sets.length === 2) views.push(["difference", (symbol) => (shares[1][symbol] || 0) - (shares[0][symbol] || 0)]);
  const show = (value) => {
    const top = Math.max(1e-9, ...data.periodic_table.map(([symbol]) => Math.abs(value(symbol))));
    box.replaceChildren(...data.periodic_table.map(([symbol, row, column]) => {
      const share = value(symbol);
      const strength = Math.round(85 * Math.sqrt(Math.abs(share) / top));
      const cell = make("div", { title: `${symbol}: ${(100 * share).toFixed(1)} %` });
      cell.innerHTML = `${symbol}<small>${share ? (100 * share).toFixed(1) : ""}</small>`;
      cell.style.cssText = `grid-row:${row};grid-column:${column};background:color-mix(in srgb, ${share < 0 ? "var(--bad)" : "var(--c1)"} ${strength}%, transparent)`;
      return cell;
    }));
  };
  choose(find("#elements .choices"), views.map(([name]) => name), (i) => show(views[i][1]), sets.length - 1);
  find("#elements .choices").append(make("span", { className: "hint", textContent: "% of the valid crystals that have the element" }));
}

function choose(box, names, act, first = 0) {
  const buttons = names.map((name, i) => make("button", { textContent: name, onclick: () => pick(i) }));
  const pick = (i) => {
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", k === i));
    act(i);
  };
  box.append(...buttons);
  pick(first);
}

const SYSTEMS = [["triclinic", 2], ["monoclinic", 15], ["orthorhombic", 74], ["tetragonal", 142], ["trigonal", 167], ["hexagonal", 194], ["cubic", 230]];

function symmetry() {
  const counts = sets.map((set) => {
    const found = Array(231).fill(0);
    for (const group of finite(set.columns.space_group)) found[group] += 1;
    const total = Math.max(1, found.reduce((a, b) => a + b));
    return found.map((count) => count / total);
  });
  const top = Math.max(1e-9, ...counts.flat());
  const x = (group) => ((group - 0.5) / 231) * 1000;
  const bars = counts.map((one, k) => one.map((share, group) => share
    ? `<rect x="${x(group)}" y="${150 - (share / top) * 140}" width="4" height="${(share / top) * 140}" fill="${colours[k]}" opacity="${k ? 0.65 : 0.8}"><title>space group ${group}: ${(100 * share).toFixed(1)} %</title></rect>`
    : "").join("")).join("");
  let from = 1;
  const bands = SYSTEMS.map(([name, last], i) => {
    const shares = counts.map((one) => (100 * one.slice(from, last + 1).reduce((a, b) => a + b)).toFixed(1)).join(" → ");
    const middle = Math.max(45, (x(from) + x(last + 1)) / 2);
    const band = `<line class="axis" x1="${x(last + 1)}" x2="${x(last + 1)}" y1="0" y2="150"/><text x="${middle}" y="${166 + (i % 2) * 30}" text-anchor="middle">${name}</text><text x="${middle}" y="${178 + (i % 2) * 30}" text-anchor="middle">${shares} %</text>`;
    from = last + 1;
    return band;
  });
  find("#symmetry .charts").append(figure("Space groups, 1 to 230", bars + bands.join(""), legend(), [1000, 215]));
}

function learning() {
  const box = find("#learning .charts");
  box.append(...data.curves.map(({ name, steps, values }) => {
    const known = finite(values);
    let [low, high] = [Math.min(...known), Math.max(...known)];
    if (high === low) [low, high] = [low - 0.5, high + 0.5];
    const right = Math.max(1, steps[steps.length - 1]);
    const points = steps.map((step, i) => [step, values[i]]).filter(([, value]) => value !== null);
    const path = points.map(([step, value]) => `${(step / right) * 230},${95 - ((value - low) / (high - low)) * 85}`).join(" ");
    const labels = `<text x="0" y="8">${short(high)}</text><text x="0" y="106">${short(low)}</text><text x="230" y="106" text-anchor="end">step ${right}</text>`;
    return figure(name, `<polyline points="${path}" fill="none" stroke="var(--c1)" stroke-width="1.6"/>${labels}`, "", [230, 110]);
  }));
}

/** A CIF in P1 of a crystal as viewer.js describes it. */
function cif(crystal, formula) {
  const symbols = crystal[6].map((z) => data.elements[z][0]);
  const names = ["length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"];
  const sites = symbols.map((symbol, i) => `  ${symbol} ${symbol}${i} 1 ${crystal[7].slice(3 * i, 3 * i + 3).join(" ")} 1`);
  return [
    `data_${formula}`, "_symmetry_space_group_name_H-M 'P 1'", "_symmetry_Int_Tables_number 1",
    ...names.map((name, k) => `_cell_${name} ${crystal[k]}`),
    "loop_", " _symmetry_equiv_pos_site_id", " _symmetry_equiv_pos_as_xyz", "  1 'x, y, z'",
    "loop_", " _atom_site_type_symbol", " _atom_site_label", " _atom_site_symmetry_multiplicity",
    " _atom_site_fract_x", " _atom_site_fract_y", " _atom_site_fract_z", " _atom_site_occupancy", ...sites, "",
  ].join("\n");
}

function cifLink(set, i) {
  const crystal = set.crystals[i];
  if (!crystal) return make("span", { textContent: "–" });
  const formula = set.columns.formula[i];
  const link = make("a", { textContent: "CIF", download: `${String(i).padStart(6, "0")}_${formula}.cif` });
  link.href = `data:chemical/x-cif;charset=utf-8,${encodeURIComponent(cif(crystal, formula))}`;
  return link;
}

function best() {
  find("#best .hint").textContent = data.best.length
    ? "Of the last set: metastable, unique and novel, the lowest in energy of each prototype first. Drag to turn, or use the arrow keys."
    : "None: no sample is metastable, unique and novel at once.";
  const set = sets[sets.length - 1];
  find("#best .cards").append(...data.best.map((i) => {
    const column = (name) => set.columns[name][i];
    const canvas = make("canvas", { ariaLabel: `${column("formula")}, a crystal that can be turned` });
    const card = make("figure", {}, canvas,
      make("div", { className: "row" }, make("h3", { textContent: column("formula") }), cifLink(set, i)),
      make("p", { textContent: `${short(column("e_above_hull"))} eV/atom above the hull · space group ${column("space_group")} · ${column("n_atoms")} atoms` }),
      make("p", { textContent: `sample ${i} · ${column("prototype")}` }));
    card.viewer = new Viewer(canvas, set.crystals[i], data.elements);
    return card;
  }));
}

// Phase diagrams: two elements as energy over composition, three as a triangle.
function diagram({ elements: names, points, hull }) {
  const binary = names.length === 2;
  const lowest = Math.min(-0.05, ...points.map((point) => point.energy));
  const highest = Math.max(0.05, ...points.map((point) => Math.min(point.energy, 0.5)));
  const at = ({ fractions, energy }) => binary
    ? [15 + fractions[1] * 290, 15 + ((highest - Math.min(energy, highest)) / (highest - lowest)) * 215]
    : [15 + (fractions[1] + fractions[2] / 2) * 290, 240 - fractions[2] * 225];
  const lines = hull.map(([i, j]) => {
    const [p, q] = [at(points[i]), at(points[j])];
    return `<line x1="${p[0]}" y1="${p[1]}" x2="${q[0]}" y2="${q[1]}" stroke="var(--soft)" stroke-width="1"/>`;
  });
  const dots = points.map((point) => {
    const [x, y] = at(point);
    const title = `<title>${escaped(point.formula)}: ${point.energy.toFixed(3)} eV/atom${point.sample === null ? "" : `, sample ${point.sample}, ${point.above.toFixed(3)} above the hull`}</title>`;
    if (point.sample !== null) return `<path d="M${x} ${y - 6}l5 9h-10z" fill="var(--c1)" stroke="var(--paper)">${title}</path>`;
    return point.stable
      ? `<circle cx="${x}" cy="${y}" r="4" fill="var(--ink)">${title}</circle><text x="${x}" y="${y + 15}" text-anchor="middle">${escaped(point.formula)}</text>`
      : `<circle cx="${x}" cy="${y}" r="2.5" fill="var(--c0)">${title}</circle>`;
  });
  const caption = binary ? "formation energy (eV/atom) over composition" : "composition; lines: what coexists on the hull";
  return figure(names.join("–"), lines.join("") + dots.join(""), `${caption}; ● known and stable, <span style="color:var(--c1)">▲</span> samples`, [320, 262]);
}

function samples() {
  const box = find("#samples .scroll");
  const choices = find("#samples .choices");
  const flags = { valid: "valid", neutral: "neutral", unique: "unique", novel: "novel", sun: "S.U.N." };
  const names = ["sample", "formula", "space group", "atoms", "eV/atom above hull", ...Object.values(flags), "lost to", "CIF"];
  const source = make("select", { ariaLabel: "set" }, ...sets.map((set, k) => make("option", { value: k, textContent: set.name })));
  source.value = sets.length - 1;
  const words = make("input", { type: "search", placeholder: "formula or element, as Li-O", ariaLabel: "filter" });
  const only = make("input", { type: "checkbox", id: "only" });
  const [back, on, where] = [make("button", { textContent: "←" }), make("button", { textContent: "→" }), make("span", { className: "hint" })];
  choices.append(source, words, make("label", {}, only, " S.U.N. only"), back, on, where);
  let page = 0;
  const show = () => {
    const set = sets[source.value];
    const wanted = words.value.split(/[-\s]+/).filter(Boolean);
    const fits = (i) => (!only.checked || set.columns.sun[i]) && (set.columns.formula[i] === words.value.trim()
      || wanted.every((word) => (set.columns.chemical_system[i] || "").split("-").includes(word)));
    const rows = set.columns.formula.map((_, i) => i).filter(fits);
    page = Math.max(0, Math.min(page, Math.ceil(rows.length / 50) - 1));
    const shown = rows.slice(50 * page, 50 * page + 50);
    where.textContent = rows.length ? `${50 * page + 1}–${50 * page + shown.length} of ${rows.length}` : "none";
    const body = shown.map((i) => {
      const column = (name) => set.columns[name][i];
      const cells = [i, column("formula") || "–", column("space_group") ?? "–", column("n_atoms") ?? "–", short(column("e_above_hull"))];
      const marks = Object.keys(flags).map((flag) => (column(flag) ? "✓" : ""));
      const row = make("tr", {}, ...[...cells, ...marks, column("reason") || ""].map((text) => make("td", { textContent: text })));
      row.append(make("td", {}, cifLink(set, i)));
      return row;
    });
    box.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...names.map((name) => make("th", { textContent: name })))), make("tbody", {}, ...body)));
  };
  source.onchange = words.oninput = only.onchange = () => ((page = 0), show());
  back.onclick = () => ((page -= 1), show());
  on.onclick = () => ((page += 1), show());
  show();
}

distributions();
elements();
symmetry();
learning();
best();
find("#diagrams .hint").textContent = "Known crystals of the judging potential's hull, and the best crystals of two or three elements.";
find("#diagrams .charts").append(...data.diagrams.map(diagram));
samples();
find("#distributions").hidden = !find("#distributions figure");
find("#learning").hidden = !data.curves.length;
find("#diagrams").hidden = !data.diagrams.length;
for (const section of document.querySelectorAll("main section:not([hidden])"))
  find("nav").append(make("a", { href: `#${section.id}`, textContent: find("h2", section).textContent }));
document.documentElement.dataset.drawn = "true";
