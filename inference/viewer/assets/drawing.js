// Nodes as an SVG drawing.
const qualityOf = (node) => node.score ?? (node.factor !== null && node.factor <= 0 ? Math.exp(node.factor) : null);
const blend = (x) => (x < 0.5 ? `color-mix(in oklab, #d1495b, #e9c46a ${200 * x}%)` : `color-mix(in oklab, #e9c46a, #2f7fc1 ${200 * x - 100}%)`);

function paint(node) {
  const how = byId("colour").value, alive = node.offspring > 0 || node.final;
  for (const element of [node.mark, node.edge]) {
    if (!element) continue;
    const kind = element === node.mark ? "node" : "edge";
    const classes = [kind, alive ? "" : "dead", node.idle ? "idle" : ""];
    element.style.removeProperty("--c");
    if (how === "answer") classes.push(answerClass(node.answer));
    else {
      const value = how !== "weight" ? qualityOf(node) : node.weight === null ? null : clamp(0, 1, Math.sqrt(node.weight));
      const known = value !== null && !node.idle && kind === "node" && !(node.final && how !== "weight");
      classes.push(known ? "hued" : "none");
      if (known) element.style.setProperty("--c", blend(value));
    }
    element.setAttribute("class", classes.filter(Boolean).join(" "));
  }
}

const title = (node) => {
  const parts = [node.final ? "result" : `${data.unit} ${node.c + 1}`, `particle ${node.particle}`, `weight ${show(node.weight)}`];
  if (qualityOf(node) !== null && !node.idle) parts.push(`${state.quality} ${show(qualityOf(node))}`);
  if (node.answer !== null) parts.push(`answer ${answerName(node.answer)}`);
  if (!node.final && node.offspring === 0) parts.push("died out");
  if (node.idle) parts.push("had finished");
  return parts.join(", ");
};

function draw() {
  const population = state.population, [nodes, last] = [state.nodes, state.last], n = last.length, columns = nodes.length;
  const room = Math.max(320, byId("chart").clientWidth - 2);
  const dx = clamp(18, 110, (room - LEFT - RIGHT - LAST) / Math.max(1, columns - 1)), dy = clamp(9, 24, 620 / n), unit = dy * 0.28;
  const last_x = LEFT + (columns - 1) * dx + Math.max(LAST, 0.6 * dx);
  const x = (c) => (c < columns ? LEFT + c * dx : last_x), y = (row) => TOP + (row + 0.5) * dy, bottom = TOP + n * dy;
  const evidence = population.columns.some((column) => column.evidence !== null);
  const width = Math.ceil(x(columns) + RIGHT), height = Math.ceil(bottom + (GAP + STRIP) * (evidence ? 2 : 1) + 22);
  Object.assign(state, { x, y, dx, dy });
  svg.replaceChildren();
  for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, width, height })) svg.setAttribute(name, value);

  // Columns, marked where the population was resampled after them.
  const axis = make("g", {}, svg), every = Math.ceil(16 / dx), between = (c) => (x(c) + x(c + 1)) / 2;
  make("text", { x: 2, y: 12, class: "caption" }, axis, data.unit);
  population.columns.forEach((column, c) => {
    if (column.resampled) make("rect", { x: between(c) - dx * 0.22, y: TOP - 4, width: dx * 0.44, height: n * dy + 8, class: "band" }, axis);
    if (c % every === 0) make("text", { x: x(c), y: 12, "text-anchor": "middle" }, axis, c + 1);
    if (column.resampled) make("path", { d: `M${between(c) - 3.5} 20 h7 l-3.5 6z`, class: "mark" }, axis).append(make("title", {}, axis, data.event));
  });
  make("text", { x: x(columns), y: 12, "text-anchor": "middle" }, axis, "result");
  const edges = make("g", {}, svg), marks = make("g", {}, svg), all = [...nodes.flat(), ...last];
  for (const node of all) {
    [node.x, node.y] = [x(node.c), y(node.row)];
    const share = node.weight === null ? 1 : node.weight * n;
    node.r = node.idle ? 1.5 : clamp(1.2, Math.min(dy * 0.85, dx * 0.42), unit * Math.sqrt(share));
  }
  const living = (node) => (node.offspring > 0 || node.final ? 1 : 0);
  for (const node of [...all].sort((a, b) => living(a) - living(b))) {
    if (node.parent) {
      const from = node.parent, to = node.x - node.r, half = (to - from.x) / 2, moved = !node.final && node.particle !== from.particle;
      const tip = moved ? ` M${to - 3} ${node.y - 2.2} L${to} ${node.y} L${to - 3} ${node.y + 2.2}` : "";
      node.edge = make("path", { d: `M${from.x} ${from.y} C${from.x + half} ${from.y} ${to - half} ${node.y} ${to} ${node.y}${tip}` }, edges);
      node.edge.setAttribute("stroke-width", living(node) ? clamp(0.9, 3.5, 0.8 * Math.sqrt((node.weight ?? 1 / n) * n)) : 0.7);
    }
    const shape = node.final ? ["rect", { x: node.x - node.r, y: node.y - node.r, width: 2 * node.r, height: 2 * node.r, rx: 1.5 }]
      : ["circle", { cx: node.x, cy: node.y, r: node.r }];
    node.mark = make(shape[0], { ...shape[1], role: "button", tabindex: -1, "aria-label": title(node), "aria-pressed": false }, marks);
    paint(node);
  }
  labels(last, marks);
  const wide = Math.min(28, dx * 0.64);
  strip("ESS", bottom + GAP, population.columns.map((column) => column.ess), 0, n, (axis_, c, value, place) => {
    const bar = make("rect", { x: x(c) - wide / 2, y: place, width: wide, height: Math.max(0, bottom + GAP + STRIP - place) }, axis_);
    bar.setAttribute("class", population.columns[c].resampled ? "ess resampled" : "ess");
    return `ESS ${show(value)} of ${n} before ${data.unit} ${c + 1}'s barrier${population.columns[c].resampled ? ", " + data.event : ""}`;
  });
  if (evidence) {
    const values = population.columns.map((column) => column.evidence), finite = values.filter((v) => v !== null && Math.abs(v) < INFINITE);
    const points = [];
    strip("log Ẑ", bottom + 2 * GAP + STRIP, values, Math.min(...finite), Math.max(...finite), (axis_, c, value, place) => {
      points.push(`${x(c)} ${place}`);
      make("circle", { cx: x(c), cy: place, r: 2.4, class: "dot c0" }, axis_);
      return `log evidence so far ${show(value, 4)}`;
    }, (axis_) => make("path", { d: "M" + points.join(" L"), class: "line c0" }, axis_));
  }
  state.ring = make("circle", { class: "ring", r: 0, visibility: "hidden" }, svg);
  const start = state.focused || heaviest();
  start.mark.setAttribute("tabindex", 0);
  state.focused = start;
}

function strip(name, top, values, low, high, put, finish) {
  const { x } = state, right = x(values.length - 1) + 14, axis = make("g", { role: "img" }, svg), span = high - low || 1, bottom = top + STRIP;
  make("path", { d: `M${LEFT - 14} ${bottom + 0.5} H${right}`, class: "axis" }, axis);
  make("text", { x: 2, y: top - 7, class: "caption" }, axis, name);
  make("text", { x: LEFT - 20, y: top + 8, "text-anchor": "end" }, axis, show(high));
  make("text", { x: LEFT - 20, y: bottom, "text-anchor": "end" }, axis, show(low));
  const told = values.map((value, c) => {
    if (value === null || Math.abs(value) > INFINITE) return "not known";
    const place = bottom - STRIP * clamp(0, 1, (value - low) / span), before = axis.childElementCount, words = put(axis, c, value, place);
    make("title", {}, axis.children[before], words);
    return show(value);
  });
  if (finish) finish(axis);
  axis.setAttribute("aria-label", `${name} by ${data.unit}: ${told.join(", ")}`);
}

// Names of answers beside the particles that give them, where there is room.
function labels(last, parent) {
  if (!state.population.answers.length) return;
  const sorted = [...last].sort((a, b) => a.row - b.row);
  for (let i = 0, j; i < sorted.length; i = j) {
    for (j = i; j < sorted.length && sorted[j].answer === sorted[i].answer; j += 1);
    if ((j - i) * state.dy < 12) continue;
    const name = answerName(sorted[i].answer), middle = (sorted[i].y + sorted[j - 1].y) / 2 + 4;
    const short = name.length > 13 ? name.slice(0, 12) + "…" : name;
    make("text", { x: sorted[i].x + state.dy * 0.85 + 6, y: middle, class: `name ${answerClass(sorted[i].answer)}` }, parent, short);
  }
}
