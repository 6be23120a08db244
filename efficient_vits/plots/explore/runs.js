// The data, which runs a state lets through, and the state as the fragment of the address.

const data = JSON.parse(document.getElementById("data").textContent);
data.metrics.forEach((metric, index) => (metric.index = index));
const metrics = new Map(data.metrics.map((metric) => [metric.name, metric]));
const marks = new Map(data.classes.map((mark) => [mark.name, mark]));
const hasOwn = data.runs.some((run) => run.own);

const haystacks = data.runs.map((run) => {
  const card = data.cards[run.name] || {};
  const parts = [run.label, run.class, run.device, run.source, run.own ? "own" : "benchmark"];
  return [...parts, card.title, card.author, card.venue, card.arxiv, card.code, card.licence]
    .filter(Boolean)
    .join(" ")
    .toLowerCase();
});

const byNumber = (a, b) => parseInt(a) - parseInt(b) || a.localeCompare(b, "en");
const valuesOf = (key) => [...new Set(data.runs.map(key))];

/** Filters with boxes to tick: what a run is asked for, and the answers there are. */
const groups = [
  { name: "class", title: "Class", of: (run) => run.class, values: data.classes.map((c) => c.name) },
  { name: "px", title: "Resolution [px]", of: (run) => run.resolution },
  { name: "size", title: "Size, by the name", of: (run) => run.size },
  { name: "runs", title: "Runs", of: (run) => (run.own ? "own" : "benchmark") },
  { name: "device", title: "Device", of: (run) => run.device_class },
];
for (const group of groups) {
  const present = valuesOf(group.of);
  const order = { px: byNumber, size: (a, b) => data.sizes.indexOf(a) - data.sizes.indexOf(b) };
  group.values ??= present.sort(order[group.name] || (() => 0));
}
const years = valuesOf((run) => run.year).filter((year) => year !== null).sort((a, b) => a - b);

const DEFAULTS = {
  x: "throughput", y: "accuracy", xs: "log", ys: "linear", q: "", from: "", to: "",
  front: "on", names: "on", sort: "accuracy", order: "best", theme: "", run: "",
};
const ACCEPTED = {
  x: (v) => metrics.has(v), y: (v) => metrics.has(v),
  xs: (v) => v === "log" || v === "linear", ys: (v) => v === "log" || v === "linear",
  q: () => true, from: (v) => years.includes(Number(v)), to: (v) => years.includes(Number(v)),
  front: (v) => v === "on" || v === "off", names: (v) => v === "on" || v === "off",
  sort: (v) => metrics.has(v) || TEXT_COLUMNS.has(v),
  order: (v) => v === "best" || v === "worst",
  theme: (v) => v === "light" || v === "dark", run: (v) => /^\d+$/.test(v) && Number(v) < data.runs.length,
};

/** What an address says; values that this page does not know are as if they were not there. */
function stateOf(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) {
    const value = given.get(key);
    if (value && ACCEPTED[key](value)) state[key] = value;
  }
  // Two different axes: one that was asked for stays, the other becomes what it is at the start.
  if (state.x === state.y && state.x === DEFAULTS.x) state.x = DEFAULTS.y;
  else if (state.x === state.y) state.y = state.x === DEFAULTS.y ? DEFAULTS.x : DEFAULTS.y;
  for (const group of groups) {
    const chosen = given.getAll(group.name);
    const known = group.values.filter((value) => chosen.includes(value));
    const none = chosen.length === 1 && chosen[0] === "";
    state[group.name] = known.length || none ? new Set(known) : new Set(group.values);
  }
  return state;
}

/** The shortest fragment for a state: what is as at the start is left out. */
function fragmentOf(state) {
  const out = new URLSearchParams();
  for (const key of Object.keys(DEFAULTS)) {
    if (state[key] !== DEFAULTS[key]) out.set(key, state[key]);
  }
  for (const { name, values } of groups) {
    if (state[name].size === values.length) continue;
    if (state[name].size === 0) out.append(name, "");
    values.filter((value) => state[name].has(value)).forEach((value) => out.append(name, value));
  }
  const text = out.toString();
  return text && `#${text}`;
}

/** Indices of the runs that pass all filters. A run without a year passes where no year is asked. */
function passing(state) {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const [from, to] = [Number(state.from || -Infinity), Number(state.to || Infinity)].sort(
    (a, b) => a - b,
  );
  const anyYear = !state.from && !state.to;
  const out = [];
  data.runs.forEach((run, i) => {
    const fits =
      groups.every(({ name, of }) => state[name].has(of(run))) &&
      (anyYear || (run.year !== null && from <= run.year && run.year <= to)) &&
      words.every((word) => haystacks[i].includes(word));
    if (fits) out.push(i);
  });
  return out;
}

/** All that follows from a state: which runs pass, which have a point, and the fronts of these. */
function viewOf(state) {
  const [x, y] = [metrics.get(state.x), metrics.get(state.y)];
  const drawable = (value, scale) => value !== null && (value > 0 || scale === "linear");
  const passed = passing(state);
  const drawn = passed.filter((i) => {
    const { values } = data.runs[i];
    return drawable(values[x.index], state.xs) && drawable(values[y.index], state.ys);
  });
  const fronts = frontsOf(data.runs, drawn, x, y);
  return { x, y, passed, drawn, fronts, onFront: new Set(fronts.flatMap((f) => f.members)) };
}
