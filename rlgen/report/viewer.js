"use strict";
// A crystal that can be turned: atoms, bonds and the cell, painted back to front on a canvas.
// crystal: [a, b, c, alpha, beta, gamma, [Z, ...], [x, y, z, ...]] in Å, degrees and fractions of the cell.

/** The cell's vectors as rows, a along x and b in the xy plane. */
function cellVectors([a, b, c, alpha, beta, gamma]) {
  const [ca, cb, cg] = [alpha, beta, gamma].map((angle) => Math.cos((angle * Math.PI) / 180));
  const sg = Math.sqrt(1 - cg * cg);
  const y = (ca - cb * cg) / sg;
  return [
    [a, 0, 0],
    [b * cg, b * sg, 0],
    [c * cb, c * y, c * Math.sqrt(Math.max(0, 1 - cb * cb - y * y))],
  ];
}

const times = (v, m) => [0, 1, 2].map((j) => v[0] * m[0][j] + v[1] * m[1][j] + v[2] * m[2][j]);
const minus = (a, b) => a.map((value, i) => value - b[i]);
const between = (a, b) => a.map((value, i) => (value + b[i]) / 2);
const product = (a, b) => a.map((row) => times(row, b));

/** Rotation about x (down the screen) and then about y (across it), in radians. */
function turn(down, across) {
  const [c, s, d, t] = [Math.cos(down), Math.sin(down), Math.cos(across), Math.sin(across)];
  return product([[1, 0, 0], [0, c, s], [0, -s, c]], [[d, 0, -t], [0, 1, 0], [t, 0, d]]);
}

class Viewer {
  /** elements: {Z: [symbol, colour, covalent radius in Å]}. */
  constructor(canvas, crystal, elements) {
    this.canvas = canvas;
    this.elements = elements;
    this.build(crystal);
    this.view = turn(-1.33, 0.3);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  build(crystal) {
    const cell = cellVectors(crystal);
    const [numbers, flat] = [crystal[6], crystal[7]];
    const corners = [];
    for (let i = 0; i < 8; i++) corners.push([i & 1, (i >> 1) & 1, (i >> 2) & 1]);
    this.atoms = [];
    numbers.forEach((z, i) => {
      const place = [0, 1, 2].map((k) => ((flat[3 * i + k] % 1) + 1) % 1).map((x) => (x > 0.9995 ? 0 : x));
      // Atoms on the cell's faces are shown on the opposite faces too.
      for (const corner of corners) {
        const image = place.map((x, k) => x + corner[k]);
        if (image.every((x) => x <= 1.0005)) this.atoms.push({ z, at: times(image, cell) });
      }
    });
    this.edges = [];
    corners.forEach((one, i) => {
      for (const bit of [1, 2, 4]) if (!(i & bit)) this.edges.push([times(one, cell), times(corners[i | bit], cell)]);
    });
    const centre = times([0.5, 0.5, 0.5], cell);
    for (const atom of this.atoms) atom.at = minus(atom.at, centre);
    this.edges = this.edges.map((edge) => edge.map((end) => minus(end, centre)));
    this.bonds = [];
    for (let i = 0; i < this.atoms.length; i++)
      for (let j = 0; j < i; j++) {
        const reach = 1.15 * (this.radius(this.atoms[i].z) + this.radius(this.atoms[j].z));
        const length = Math.hypot(...minus(this.atoms[i].at, this.atoms[j].at));
        if (length > 0.1 && length < reach) this.bonds.push([i, j]);
      }
    const reach = this.edges.flat().map((end) => Math.hypot(...end));
    this.size = Math.max(...reach, ...this.atoms.map((atom) => Math.hypot(...atom.at))) + 0.8;
  }

  radius(z) {
    return this.elements[z][2];
  }

  listen() {
    let last = null;
    this.canvas.tabIndex = 0;
    this.canvas.addEventListener("pointerdown", (event) => {
      last = [event.clientX, event.clientY];
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      this.rotate((event.clientY - last[1]) / 90, (event.clientX - last[0]) / 90);
      last = [event.clientX, event.clientY];
    });
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => (last = null));
    const keys = { ArrowUp: [-0.15, 0], ArrowDown: [0.15, 0], ArrowLeft: [0, -0.15], ArrowRight: [0, 0.15] };
    this.canvas.addEventListener("keydown", (event) => {
      if (!keys[event.key]) return;
      event.preventDefault();
      this.rotate(...keys[event.key]);
    });
  }

  rotate(down, across) {
    this.view = product(this.view, turn(down, across));
    this.draw();
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const width = this.canvas.clientWidth * ratio;
    if (!width) return;
    this.canvas.width = this.canvas.height = width;
    const pen = this.canvas.getContext("2d");
    const scale = width / 2 / this.size;
    const seen = (point) => {
      const [x, y, z] = times(point, this.view);
      return [width / 2 + x * scale, width / 2 - y * scale, z];
    };
    const line = getComputedStyle(this.canvas).color;
    const shapes = this.edges.map(([a, b]) => {
      const [p, q] = [seen(a), seen(b)];
      return { depth: (p[2] + q[2]) / 2, paint: () => this.stroke(pen, p, q, 1 * ratio, line, 0.35) };
    });
    const places = this.atoms.map((atom) => seen(atom.at));
    for (const [i, j] of this.bonds) {
      const middle = between(places[i], places[j]);
      for (const k of [i, j]) {
        const colour = this.elements[this.atoms[k].z][1];
        const depth = (places[k][2] + middle[2]) / 2;
        shapes.push({ depth, paint: () => this.stroke(pen, places[k], middle, 0.16 * scale, colour, 1) });
      }
    }
    this.atoms.forEach((atom, i) => shapes.push({ depth: places[i][2], paint: () => this.ball(pen, places[i], atom.z, scale) }));
    shapes.sort((a, b) => a.depth - b.depth).forEach((shape) => shape.paint());
  }

  stroke(pen, from, to, thickness, colour, alpha) {
    pen.globalAlpha = alpha;
    pen.strokeStyle = colour;
    pen.lineWidth = thickness;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(from[0], from[1]);
    pen.lineTo(to[0], to[1]);
    pen.stroke();
    pen.globalAlpha = 1;
  }

  ball(pen, [x, y], z, scale) {
    const radius = 0.5 * this.radius(z) * scale;
    const light = pen.createRadialGradient(x - radius / 3, y - radius / 3, radius / 8, x, y, radius);
    light.addColorStop(0, "#ffffff");
    light.addColorStop(0.35, this.elements[z][1]);
    light.addColorStop(1, this.elements[z][1]);
    pen.fillStyle = light;
    pen.strokeStyle = "rgba(0, 0, 0, 0.55)";
    pen.lineWidth = Math.max(1, scale / 30);
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  }
}
