// From the numbers of a population to nodes.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const svg = byId("tree"), detail = byId("detail");
const HUES = 8, TOP = 34, LEFT = 60, RIGHT = 104, LAST = 44, STRIP = 54, GAP = 26;
const state = { population: null, nodes: [], last: [], pinned: null, focused: null, answer: null };

// Helpers: every text goes through textContent, so that nothing a model wrote is ever markup.
const make = (tag, attributes, parent, text) => {
  const drawn = parent && parent.namespaceURI === svg.namespaceURI;
  const element = drawn ? document.createElementNS(svg.namespaceURI, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
};
const clamp = (low, high, value) => Math.max(low, Math.min(high, value));
const INFINITE = 1e299;
const show = (value, digits = 3) => {
  if (value === null || value === undefined) return "not known";
  if (Math.abs(value) > INFINITE) return value > 0 ? "∞" : "−∞";
  return String(Number(value.toPrecision(digits))).replace("-", "−");
};
const hue = (answer) => (answer === null ? "none" : answer < HUES ? "c" + answer : "other");
const answerClass = (index) => (index === null ? "" : hue(state.population.answers[index][0] === null ? null : index));
const answerName = (index) => state.population.answers[index][0] ?? "no answer";

// From the numbers to nodes: parents, children, what each leads to.
function grow(population) {
  const nodes = population.columns.map((column, c) => column.row.map((row, particle) => ({
    c, particle, row, weight: column.weight[particle], factor: column.factor[particle], score: column.score[particle], idle: column.idle[particle] === 1,
    text: population.texts[column.text[particle]], parent: null, kids: [], mass: new Map(), offspring: 0, answer: null,
  })));
  const end = population.last;
  const last = end.weight.map((weight, i) => ({
    c: nodes.length, particle: i, row: end.row[i], weight, factor: null, score: null, idle: false, text: end.text ? end.text[i] : "", parent: nodes[end.column[i]][end.particle[i]],
    kids: [], mass: new Map(), offspring: 0, answer: population.answers.length ? end.answer[i] : null, final: true,
  }));
  population.columns.forEach((column, c) => c && column.parent.forEach((particle, i) => { nodes[c][i].parent = nodes[c - 1][particle]; }));
  for (const node of [...nodes.flat(), ...last]) if (node.parent) node.parent.kids.push(node);
  for (const leaf of last) {
    for (let node = leaf.parent; node; node = node.parent) {
      node.offspring += 1;
      if (leaf.answer !== null) node.mass.set(leaf.answer, (node.mass.get(leaf.answer) || 0) + (leaf.weight || 0));
    }
  }
  for (const node of nodes.flat()) node.answer = node.mass.size ? [...node.mass].sort((a, b) => b[1] - a[1] || a[0] - b[0])[0][0] : null;
  for (const node of nodes.flat()) node.kids.sort((a, b) => (b.offspring - a.offspring) || ((b.weight || 0) - (a.weight || 0)) || (a.row - b.row));
  return [nodes, last];
}
