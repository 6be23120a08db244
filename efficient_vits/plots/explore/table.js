// The table of the runs that pass the filters, in the order of one column.

const BATCH = 250;
const columnsRow = document.getElementById("columns");
const rowsBody = document.getElementById("rows");
const moreButton = document.getElementById("more");
let limit = BATCH;

const TEXT_COLUMNS = new Set(["model", "on", "group", "year", "px", "pretraining", "where"]);
const whole = (value) => (value === null ? "" : String(value));
const COLUMNS = [
  { key: "model", title: "Model", text: true, best: "min", value: (run) => run.label },
  { key: "on", title: "Front", text: true, best: "max",
    value: (run, i, view) => Number(view.onFront.has(i)), show: (value) => (value ? "yes" : "") },
  { key: "group", title: "Class", text: true, best: "min", value: (run) => run.class },
  { key: "year", title: "Year", best: "max", value: (run) => run.year, show: whole },
  { key: "px", title: "Image", unit: "px", best: "min",
    value: (run) => parseInt(run.resolution), show: (value, run) => run.resolution },
  { key: "pretraining", title: "Pre-training", unit: "px", best: "min",
    value: (run) => run.pretrain_size, show: whole },
  ...data.metrics.map((metric) => ({
    key: metric.name, title: metric.label, unit: metric.unit, best: metric.direction,
    value: (run) => run.values[metric.index], show: (value, run) => figure(run, metric),
  })),
  { key: "where", title: "Device", text: true, best: "min", value: (run) => run.device },
];

/** Indices in the order of the state's column; runs that lack its figure come last. */
function sorted(view, state) {
  const column = COLUMNS.find(({ key }) => key === state.sort);
  const up = (column.best === "min") === (state.order === "best") ? 1 : -1;
  const keyed = view.passed.map((i) => ({ i, value: column.value(data.runs[i], i, view) }));
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true })
    : a - b);
  keyed.sort((a, b) => {
    if (a.value === null || b.value === null) {
      return Number(a.value === null) - Number(b.value === null) || a.i - b.i;
    }
    return up * compare(a.value, b.value) || a.i - b.i;
  });
  return keyed.map(({ i }) => i);
}

/** The header's buttons, once. */
function makeColumns(onSort) {
  columnsRow.append(...COLUMNS.map(({ key, title, unit, text }) => {
    const button = element("button", { type: "button", "data-sort": key }, title);
    if (unit) button.append(element("span", {}, `[${unit}]`));
    button.addEventListener("click", () => onSort(key));
    return element("th", { scope: "col", className: text ? "text" : "figure" }, button);
  }));
}

function drawTable(view, state) {
  [...columnsRow.children].forEach((header, k) => {
    const { key, best, title } = COLUMNS[k];
    const here = key === state.sort;
    const ascending = (best === "min") === (state.order === "best");
    if (here) header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    else header.removeAttribute("aria-sort");
    header.firstChild.firstChild.textContent = here ? `${title} ${ascending ? "▲" : "▼"}` : title;
  });
  const order = sorted(view, state);
  rowsBody.replaceChildren(...order.slice(0, limit).map((i) => rowOf(i, view, state)));
  const left = order.length - limit;
  moreButton.hidden = left <= 0;
  moreButton.textContent = `Show ${Math.min(BATCH, left)} more of ${plural(left, "run")}`;
}

function rowOf(i, view, state) {
  const run = data.runs[i];
  const [model, ...rest] = COLUMNS;
  const button = element("button", { type: "button", className: "model" });
  button.append(swatch(run.class, run.own), element("span", {}, model.value(run)));
  if (run.own) button.append(element("span", { className: "tag" }, "own"));
  const row = element("tr", { "data-run": String(i) },
    element("th", { scope: "row", className: "text" }, button));
  for (const { text, value, show } of rest) {
    const found = value(run, i, view);
    const shown = show ? show(found, run) : found;
    row.append(element("td", text ? { className: "text" } : {}, shown || "–"));
  }
  if (String(i) === state.run) row.setAttribute("aria-current", "true");
  return row;
}

/** Marks the row of the chosen run, and brings it into the table's window where asked. */
function markRow(run, { reveal }) {
  rowsBody.querySelector("[aria-current]")?.removeAttribute("aria-current");
  const row = rowsBody.querySelector(`[data-run="${run}"]`);
  if (!row) return;
  row.setAttribute("aria-current", "true");
  if (reveal) {
    const box = rowsBody.closest(".scroll");
    box.scrollTop = row.offsetTop - box.clientHeight / 2;
  }
}

/** The row button that an arrow key leads to from another one. */
function neighbour(button, key) {
  const row = button.closest("tr");
  const target = {
    ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling,
    Home: rowsBody.firstElementChild, End: rowsBody.lastElementChild,
  }[key];
  return target?.querySelector("button");
}
