// What is said of a node, and how to get to it.
const heaviest = () => state.last.reduce((best, node) => ((node.weight || 0) > (best.weight || 0) ? node : best));
const lineage = (node) => { const path = []; for (let at = node; at; at = at.parent) path.unshift(at); return path; };

function light(nodes) {
  for (const element of svg.querySelectorAll(".on")) element.classList.remove("on");
  svg.classList.toggle("dim", nodes !== null);
  for (const node of nodes || []) for (const element of [node.mark, node.edge]) if (element) element.classList.add("on");
}

function related(node) {
  const found = lineage(node), open = [...node.kids];
  while (open.length) { const next = open.pop(); found.push(next); open.push(...next.kids); }
  return found;
}

function ring(node, keyboard) {
  state.ring.setAttribute("visibility", node ? "visible" : "hidden");
  if (!node) return;
  for (const [name, value] of Object.entries({ cx: node.x, cy: node.y, r: node.r + 3.5 })) state.ring.setAttribute(name, value);
  state.ring.setAttribute("class", keyboard ? "ring" : "ring far");
}

function look(node, keyboard = false) {
  ring(node, keyboard);
  if (node) light(related(node));
  else light(state.answer === null ? null : leading(state.answer));
  describe(node || heaviest(), !node);
}
const leading = (answer) => state.last.filter((leaf) => leaf.answer === answer).flatMap(lineage);

function describe(node, summary) {
  const population = state.population, column = population.columns[node.c], rows = [];
  detail.replaceChildren();
  detail.classList.toggle("pinned", state.pinned === node);
  const pinned = state.pinned === node ? " (kept)" : "";
  const place = node.final ? `Particle ${node.particle} of the result` : `${data.unit[0].toUpperCase()}${data.unit.slice(1)} ${node.c + 1}, particle ${node.particle}`;
  make("h2", {}, detail, (summary ? `Heaviest: ${place.toLowerCase()}` : place) + pinned);
  rows.push(["weight", show(node.weight)]);
  if (!node.idle && node.score !== null) rows.push(["score", show(node.score)]);
  if (!node.idle && node.factor !== null) rows.push(["log factor", show(node.factor)]);
  if (column) rows.push(["ESS", `${show(column.ess)} of ${state.last.length}${column.resampled ? ", then " + data.event : ""}`]);
  if (node.final && node.answer !== null) rows.push(["answer", answerName(node.answer)]);
  if (!node.final) {
    const leads = [...node.mass].sort((a, b) => b[1] - a[1]).slice(0, 3).map(([answer, mass]) => `${answerName(answer)} (${show(mass)})`);
    rows.push(["leads to", node.offspring ? `${node.offspring} of ${state.last.length} particles${leads.length ? ": " + leads.join(", ") : ""}` : "nothing: died out"]);
  }
  const list = make("dl", {}, detail);
  for (const [name, value] of rows) { make("dt", {}, list, name); make("dd", {}, list, value); }
  if (!node.final || node.text) make("pre", { tabindex: 0, "aria-label": "text of this " + data.unit }, detail, node.idle ? "(had finished before)" : node.text.trim() || "(no text kept)");
  const path = lineage(node).filter((each) => !each.final && !each.idle && each.text && each !== node);
  if (!path.length) return;
  make("h3", {}, detail, `${node.final ? "Its " + data.unit + "s" : "Before it"}${state.quality ? ", with the " + state.quality + " of each" : ""}`);
  const steps = make("ol", {}, detail);
  for (const each of path) {
    const item = make("li", {}, steps);
    make("span", {}, item, each.c + 1);
    make("span", {}, item, qualityOf(each) === null ? "" : show(qualityOf(each), 2));
    make("span", { class: "text" }, item, each.text.trim());
  }
}

function legend() {
  const box = byId("answers"), answers = state.population.answers;
  box.replaceChildren();
  box.hidden = !answers.length;
  make("h2", {}, box, "Answers");
  answers.slice(0, 12).forEach(([name, p], index) => {
    const button = make("button", { class: `answer ${answerClass(index)}`, type: "button", "aria-pressed": state.answer === index, title: name ?? "no answer" }, box);
    make("span", { class: "swatch" }, button);
    make("span", { class: "name" }, button, name ?? "no answer");
    make("span", { class: "bar" }, button).style.width = `${Math.max(1, 64 * p)}px`;
    make("span", { class: "p" }, button, p.toFixed(3));
    button.addEventListener("click", () => {
      [state.answer, state.pinned] = [state.answer === index ? null : index, null];
      for (const [i, each] of box.querySelectorAll("button").entries()) each.setAttribute("aria-pressed", state.answer === i);
      look(null);
    });
  });
  if (answers.length > 12) make("p", { class: "help" }, box, `${answers.length - 12} more`);
}

// Why this answer: of the whole problem, whichever of its populations is shown.
function reasons() {
  const box = byId("explanation"), lines = data.explanations[state.population.explained] || [];
  box.replaceChildren();
  box.hidden = !lines.length;
  const folded = make("details", { open: "" }, box);
  make("summary", {}, folded, "Why this answer");
  for (const line of lines) make("p", {}, folded, line);
}

// Pointing: the nearest place of the grid, so that small nodes are as easy to hit as large ones.
function under(event) {
  const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
  const [px, py] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  const c = px > (state.x(state.nodes.length - 1) + state.x(state.nodes.length)) / 2 ? state.nodes.length : Math.round((px - LEFT) / state.dx), row = Math.round((py - TOP) / state.dy - 0.5);
  return (c < state.nodes.length ? state.nodes[c] : c === state.nodes.length ? state.last : [])?.find((node) => node.row === row) || null;
}
const keep = (node) => {
  if (state.pinned) state.pinned.mark.setAttribute("aria-pressed", false);
  state.pinned = state.pinned === node ? null : node;
  if (state.pinned) state.pinned.mark.setAttribute("aria-pressed", true);
};
function focus(node) {
  state.focused.mark.setAttribute("tabindex", -1);
  state.focused = node;
  node.mark.setAttribute("tabindex", 0);
  node.mark.focus({ preventScroll: true });
  node.mark.scrollIntoView({ block: "nearest", inline: "nearest" });
}
svg.addEventListener("pointermove", (event) => { if (!state.pinned) look(under(event)); });
svg.addEventListener("pointerleave", () => { if (!state.pinned) look(null); });
svg.addEventListener("mousedown", (event) => event.preventDefault());
svg.addEventListener("click", (event) => {
  const node = under(event);
  keep(node);
  if (node) focus(node);
  look(node);
});
// On the surrounding element: a listener for focus would make the drawing itself a stop of the Tab key.
byId("chart").addEventListener("focusin", () => { if (!state.pinned) look(state.focused, true); else ring(state.focused, true); });
byId("chart").addEventListener("focusout", () => { if (!state.pinned) look(null); });
svg.addEventListener("keydown", (event) => {
  const node = state.focused, column = node.final ? state.last : state.nodes[node.c];
  const beside = (step) => column.find((each) => each.row === node.row + step);
  const moves = {
    ArrowLeft: () => node.parent, ArrowRight: () => node.kids[0], ArrowUp: () => beside(-1), ArrowDown: () => beside(1),
    Home: () => lineage(node)[0], End: () => { let at = node; while (at.kids.length) at = at.kids[0]; return at; },
  };
  if (event.key === "Enter" || event.key === " ") { keep(node); look(node, true); }
  else if (event.key === "Escape") { keep(null); state.pinned = null; look(node, true); }
  else if (moves[event.key]) { const to = moves[event.key](); if (to) { if (state.pinned) keep(state.pinned); focus(to); look(to, true); } }
  else return;
  event.preventDefault();
});

function told(population) {
  const columns = population.columns, resampled = columns.filter((column) => column.resampled).length;
  const count = (n, name) => `${n} ${name}${n === 1 ? "" : "s"}`;
  const parts = [count(population.last.weight.length, "particle"), count(columns.length, data.unit), `${data.event} ${count(resampled, "time")}`];
  if (population.evidence !== null) parts.push(`log evidence ${show(population.evidence, 4)}`);
  return parts.join(", ");
}

function choose(index) {
  const population = data.populations[index];
  Object.assign(state, { population, pinned: null, focused: null, answer: null });
  [state.nodes, state.last] = grow(population);
  byId("summary").textContent = told(population);
  byId("problem").textContent = population.problem ?? "";
  byId("problem").hidden = !population.problem;
  const all = state.nodes.flat(), chosen = byId("colour").value;
  state.quality = all.some((node) => node.score !== null) ? "score" : all.some((node) => qualityOf(node) !== null) ? "factor" : null;
  const options = [...(population.answers.length ? ["answer"] : []), ...(state.quality ? [state.quality] : []), "weight"];
  byId("colour").replaceChildren(...options.map((name) => make("option", { value: name }, null, name)));
  byId("colour").value = options.includes(chosen) ? chosen : options[0];
  draw();
  legend();
  reasons();
  look(null);
}

const named = ({ label, problem }) => (problem ? `${label}: ${problem.length > 60 ? problem.slice(0, 60) + "…" : problem}` : label);

byId("title").textContent = data.title;
byId("note").textContent = data.note;
byId("note").hidden = !data.note;
data.populations.forEach((population, i) => make("option", { value: i }, byId("population"), named(population)));
byId("chooser").hidden = data.populations.length < 2;
byId("population").addEventListener("change", (event) => choose(Number(event.target.value)));
byId("colour").addEventListener("change", () => { [...state.nodes.flat(), ...state.last].forEach(paint); look(state.pinned); });
let width = byId("chart").clientWidth;
window.addEventListener("resize", () => {
  if (byId("chart").clientWidth === width) return;
  width = byId("chart").clientWidth;
  const pinned = state.pinned;
  draw();
  look(pinned);
});
choose(0);
