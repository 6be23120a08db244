// The controls, and what happens when one of them changes.

const byId = (id) => document.getElementById(id);
let state = stateOf(location.hash);
let view = viewOf(state);
let pending = 0;

/** Everything again, at most once per frame. */
function render() {
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(() => {
    view = viewOf(state);
    document.documentElement.dataset.theme = state.theme;
    drawChart(view, state);
    drawTable(view, state);
    drawCard();
    byId("status").textContent = statusOf(view);
    byId("compared").replaceChildren(...comparedOf(view));
  });
}

function statusOf({ passed, drawn, onFront }) {
  const lack = passed.length - drawn.length;
  const count = (number) => number.toLocaleString("en");
  const parts = [`${count(drawn.length)} of ${plural(data.runs.length, "run")} visible`];
  parts.push(`${count(onFront.size)} on the front`);
  if (lack) parts.push(`${count(lack)} in the table only`);
  return `${parts.join(", ")}.`;
}

function drawCard() {
  byId("card").replaceChildren(...(state.run === ""
    ? [element("p", { className: "quiet" }, "Choose a point of the chart or a row of the table.")]
    : cardOf(Number(state.run), view, { tooltip: false })));
}

/** Changes the state and the address with it; a change of an axis shows all again. */
function change(patch, { keepZoom = false } = {}) {
  state = { ...state, ...patch };
  if (!keepZoom) zoom = null;
  limit = BATCH;
  render();
  keepAddress();
}

function keepAddress() {
  const [page] = location.href.split("#");
  history.replaceState(null, "", page + fragmentOf(state));
}

/** Makes a run the chosen one, without drawing the table again: the focus stays in it. */
function choose(i, { reveal }) {
  state = { ...state, run: String(i) };
  ringAround(i, view);
  markRow(i, { reveal });
  drawCard();
  keepAddress();
  const { label } = data.runs[i];
  const [x, y] = [view.x, view.y].map((m) => `${m.label} ${figureWithUnit(data.runs[i], m) || "unknown"}`);
  byId("chosen").textContent = `${label}: ${y}, ${x}`;
}

/** A box to tick per value, each with its number of runs, and buttons for all and none. */
function makeGroup({ name, title, of, values }) {
  const boxes = values.map((value) => {
    const box = element("input", { type: "checkbox", "data-group": name, value });
    box.addEventListener("change", () => change({ [name]: ticked(name) }));
    const count = data.runs.filter((run) => of(run) === value).length;
    const text = name === "class" ? [swatch(value), value]
      : value === "own" ? [swatch(data.classes[0].name, true), value] : [value];
    return element("label", { className: "check" }, box, ...text,
      element("span", { className: "count" }, String(count)));
  });
  const set = (all) => change({ [name]: new Set(all ? values : []) });
  const both = ["all", "none"].map((word) => {
    const button = element("button", { type: "button", "aria-label": `${title}: ${word}` }, word);
    button.addEventListener("click", () => (set(word === "all"), showState()));
    return button;
  });
  const few = name === "px" || name === "size";
  return element("fieldset", {}, element("legend", {}, title),
    element("div", few ? { className: "row" } : {}, ...boxes),
    ...(values.length > 3 ? [element("div", { className: "both" }, ...both)] : []));
}

const boxesOf = (name) => [...document.querySelectorAll(`[data-group="${name}"]`)];
const ticked = (name) => new Set(boxesOf(name).filter((b) => b.checked).map((b) => b.value));

/** Brings all controls to what the state says. */
function showState() {
  for (const id of ["x", "y", "xs", "ys", "from", "to", "theme"]) byId(id).value = state[id];
  if (byId("search").value.trim() !== state.q) byId("search").value = state.q;
  for (const id of ["front", "names"]) byId(id).checked = state[id] === "on";
  for (const { name } of groups) boxesOf(name).forEach((b) => (b.checked = state[name].has(b.value)));
}

function makeControls() {
  const options = () => data.metrics.map((metric) =>
    element("option", { value: metric.name }, `${titleOf(metric)} (${wayOf(metric)})`));
  byId("x").append(...options());
  byId("y").append(...options());
  for (const id of ["from", "to"]) {
    byId(id).append(element("option", { value: "" }, "any"),
      ...years.map((year) => element("option", { value: String(year) }, String(year))));
  }
  byId("groups").append(...groups.filter(({ values }) => values.length > 1).map(makeGroup));
  makeColumns((key) => {
    const again = key === state.sort && state.order === "best";
    change({ sort: key, order: again ? "worst" : "best" }, { keepZoom: true });
  });
  // Taking the metric of the other axis swaps the two.
  byId("x").addEventListener("change", ({ target: { value } }) => {
    change(value === state.y ? swapped() : { x: value });
    showState();
  });
  byId("y").addEventListener("change", ({ target: { value } }) => {
    change(value === state.x ? swapped() : { y: value });
    showState();
  });
  byId("swap").addEventListener("click", () => (change(swapped()), showState()));
  for (const id of ["xs", "ys", "from", "to"]) {
    byId(id).addEventListener("change", ({ target }) => change({ [id]: target.value }));
  }
  byId("theme").addEventListener("change", ({ target }) =>
    change({ theme: target.value }, { keepZoom: true }));
  for (const id of ["front", "names"]) {
    byId(id).addEventListener("change", ({ target }) =>
      change({ [id]: target.checked ? "on" : "off" }, { keepZoom: true }));
  }
  let typing = 0;
  byId("search").addEventListener("input", ({ target }) => {
    clearTimeout(typing);
    typing = setTimeout(() => change({ q: target.value.trim() }), 180);
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("reset").addEventListener("click", () => {
    byId("search").value = "";
    change(stateOf(""));
    showState();
  });
  const zooms = { "zoom-in": 1 / 1.5, "zoom-out": 1.5, "zoom-reset": null };
  for (const [id, factor] of Object.entries(zooms)) {
    byId(id).addEventListener("click", () => (zoomBy(factor), render()));
  }
  byId("picture").addEventListener("click", () =>
    Plotly.downloadImage(chart, { format: "svg", filename: `${state.y}-${state.x}` }));
  byId("csv").addEventListener("click", () =>
    save(csvOf(sorted(view, state), view.onFront), "runs.csv", "text/csv"));
  moreButton.addEventListener("click", () => {
    limit += BATCH;
    drawTable(view, state);
  });
}

function swapped() {
  return { x: state.y, y: state.x, xs: state.ys, ys: state.xs };
}

/** Rows: a click or Enter chooses and shows the chart, arrow keys move and ring the point. */
function makeRows() {
  rowsBody.addEventListener("click", ({ target }) => {
    const row = target.closest("tr");
    if (!row) return;
    choose(Number(row.dataset.run), { reveal: false });
    chart.scrollIntoView({ block: "nearest" });
  });
  rowsBody.addEventListener("focusin", ({ target }) =>
    ringAround(Number(target.closest("tr").dataset.run), view));
  rowsBody.addEventListener("focusout", () =>
    ringAround(state.run === "" ? -1 : Number(state.run), view));
  rowsBody.addEventListener("keydown", (event) => {
    const next = event.target.matches(".model") && neighbour(event.target, event.key);
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
}

function makeChart() {
  chart.on("plotly_hover", ({ points, event }) => {
    if (!coarse) showHover(points[0].customdata, view, event);
  });
  chart.on("plotly_unhover", () => (hover.hidden = true));
  chart.on("plotly_click", ({ points }) => choose(points[0].customdata, { reveal: true }));
  chart.on("plotly_doubleclick", () => (zoomBy(null), render()));
  chart.on("plotly_relayout", (event) => {
    if (!Object.keys(event).some((key) => key.includes(".range"))) return;
    zoom = { x: [...chart.layout.xaxis.range], y: [...chart.layout.yaxis.range] };
    render();
  });
}

function start() {
  const own = data.runs.filter((run) => run.own).length;
  const published = plural(data.runs.length - own, "run");
  byId("origin").textContent = `${published} of the benchmark “Which Transformer to Favor”`
    + (own ? `, and ${plural(own, "own measurement")} as stars.` : ".");
  makeControls();
  makeRows();
  showState();
  if (matchMedia("(max-width: 60rem)").matches) byId("filter-box").open = false;
  document.documentElement.dataset.theme = state.theme;
  // An empty chart has what events are tied to; the observer's first report draws the runs.
  Plotly.newPlot(chart, []);
  makeChart();
  addEventListener("hashchange", () => {
    state = stateOf(location.hash);
    zoom = null;
    showState();
    render();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
  new ResizeObserver(render).observe(chart);
  // For the console and for tests: the front of any points, and what any fragment shows.
  window.explorer = {
    paretoMask,
    view: (fragment) => viewOf(stateOf(fragment)),
    fragment: () => fragmentOf(state),
  };
}

start();
