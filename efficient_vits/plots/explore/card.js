// Model cards: what is known about a run and its model.

/** The card of a run. In the tooltip it is for the eye only: no links, no notes. */
function cardOf(i, view, { tooltip }) {
  const run = data.runs[i];
  const card = data.cards[run.name];
  const title = element("h3", {}, swatch(run.class, run.own), run.label);
  const kind = [run.class, card?.axis, run.year].filter(Boolean).join(" · ");
  const out = [title, element("p", { className: "quiet" }, kind)];
  const tags = [run.own && "own measurement", view.onFront.has(i) && "on the front"].filter(Boolean);
  if (tags.length) out.push(element("p", { className: "tag" }, tags.join(" · ")));
  if (card?.title) out.push(element("p", {}, ...paperOf(card, tooltip)));
  const figures = data.metrics.map((metric) => [metric.label, figureWithUnit(run, metric)]);
  const facts = [
    ["licence of its code", card && (card.licence || "unknown")],
    ...figures,
    ["measured on", run.device],
  ];
  const more = [
    ["batch of the throughput", run.batch_size && String(run.batch_size)],
    ["pre-trained at", run.pretrain_size && `${run.pretrain_size} px`],
    ["authors' code", card?.code && linkTo(`https://github.com/${card.code}`, card.code)],
    ["source", run.source],
    ["remark", card?.note],
    ...run.notes.map((note) => ["note", note]),
  ];
  const rows = (tooltip ? facts : [...facts, ...more]).filter(([, value]) => value);
  const list = rows.flatMap(([term, value]) => [
    element("dt", {}, term), element("dd", {}, value),
  ]);
  return [...out, element("dl", {}, ...list)];
}

function paperOf({ title, author, venue, arxiv }, tooltip) {
  const by = ` (${[author, venue].filter(Boolean).join(", ")})`;
  return [arxiv && !tooltip ? linkTo(`https://arxiv.org/abs/${arxiv}`, title) : title, by];
}

function linkTo(href, text) {
  return element("a", { href, target: "_blank", rel: "noopener noreferrer" }, text);
}

function figureWithUnit(run, metric) {
  const text = figure(run, metric);
  return text && [text, metric.unit].filter(Boolean).join(metric.unit === "%" ? " " : " ");
}

/** What the front compares, and what it does not. */
function comparedOf(view) {
  const { x, y, fronts, passed, drawn } = view;
  const bound = [x, y].filter((metric) => metric.device_bound).map((metric) => metric.label);
  const goal = `${x.label} (${wayOf(x)}) and ${y.label} (${wayOf(y)})`;
  const out = [element("p", {}, `A run is on the front if no visible run is at least as good in `
    + `${goal} and better in one. Filters change which runs take part.`)];
  out.push(element("p", {}, bound.length
    ? `${capital(bound.join(" and "))}: of one device each, so there is one front per device, and `
      + `runs on different devices are not compared.`
    : "Both hold on every device, so all visible runs are compared with each other."));
  const lines = fronts.map((front, k) => {
    const where = front.device === null ? "all devices" : front.device;
    const count = `${front.members.length} of ${plural(front.compared.length, "run")}`;
    return element("li", {}, lineSample(dashOf(k)), `${where}: ${count}`);
  });
  out.push(element("ul", {}, ...lines));
  for (const [on, off] of fronts.flatMap((front) => front.split)) {
    out.push(element("p", {}, `One network under several names: ${on.join(", ")} on the front, `
      + `${off.join(", ")} not. They differ as repeated runs do.`));
  }
  out.push(...cautionsOf(view).map((text) => element("p", { className: "quiet" }, text)));
  if (drawn.length < passed.length) {
    const missing = plural(passed.length - drawn.length, "run");
    out.push(element("p", { className: "quiet" },
      `${missing} without a figure on one of the axes: in the table, not in the chart.`));
  }
  return out;
}

function cautionsOf({ x, y, drawn }) {
  const used = [x.name, y.name];
  const own = drawn.filter((i) => data.runs[i].own);
  const out = [];
  if (own.length && used.includes("memory")) {
    out.push("The benchmark's inference memory contains what its training process held; one "
      + "measured by itself is smaller.");
  }
  const lent = own.filter((i) => data.runs[i].notes.some((note) => note.startsWith("top1: ")));
  if (lent.length && used.some((name) => name.startsWith("accuracy"))) {
    out.push(`${plural(lent.length, "own run")} with the benchmark's accuracy of this model at `
      + "this resolution, not one that was measured.");
  }
  return out;
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}
