// The chart: one trace per class, the fronts behind them, and a ring around the chosen run.

const chart = document.getElementById("chart");
const hover = document.getElementById("hover");
// A finger on the chart scrolls the page, as everywhere else; buttons zoom.
const coarse = matchMedia("(pointer: coarse)").matches;
const LETTERS = 11.5;
// With more runs than this own ones get smaller marks, and names may cover unnamed points.
const CROWD = 400;
// Ranges that somebody zoomed to, {x: [low, high], y: [low, high]}; on log axes powers of ten.
let zoom = null;

function dashOf(k) {
  const names = Object.keys(DASHES);
  return names[k % names.length];
}

/** A colour of the style sheet, as it is in the present theme. */
function themed(name) {
  const probe = element("span", { style: `color: var(--${name})`, hidden: true });
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

const shown = (i, metric) => data.runs[i].values[metric.index] / metric.factor;
const onAxis = (value, scale) => (scale === "log" ? Math.log10(value) : value);

function rangeOf(indices, metric, scale) {
  if (!indices.length) return [0, 1];
  let [low, high] = [Infinity, -Infinity];
  for (const i of indices) {
    const at = onAxis(shown(i, metric), scale);
    [low, high] = [Math.min(low, at), Math.max(high, at)];
  }
  const pad = (high - low) * 0.06 || (scale === "log" ? 0.1 : Math.abs(high) * 0.05 || 1);
  return [low - pad, high + pad];
}

/** The metric and which way is better, the latter where there is room. */
function axisTitle(metric, length) {
  const whole = `${titleOf(metric)}, ${wayOf(metric)}`;
  return widthOf(whole, 14.5) <= length ? whole : titleOf(metric);
}

function axisOf(metric, scale, range, length, colours) {
  const most = Math.max(3, Math.floor(length / 65));
  const ticks = scale === "log" ? logTicks(range, most) : null;
  return {
    title: { text: axisTitle(metric, length), standoff: 8 },
    type: scale, range, autorange: false, fixedrange: coarse,
    gridcolor: colours.grid, linecolor: colours.edge, zeroline: false, showline: true,
    ticks: "outside", tickcolor: colours.edge, exponentformat: "none", separatethousands: true,
    ...(ticks ? { tickvals: ticks, ticktext: ticks.map((t) => digits.format(t)) } : {
      nticks: most + 1,
    }),
  };
}

/** Draws what a view says. */
function drawChart(view, state) {
  const { x, y, drawn, fronts } = view;
  const names = ["text", "quiet", "grid", "edge", "panel", "front", "accent"];
  const colours = Object.fromEntries(names.map((name) => [name, themed(name)]));
  const [width, height] = [chart.clientWidth, chart.clientHeight];
  const margin = { l: width < 500 ? 52 : 66, r: 14, t: 14, b: 52 };
  const area = { width: width - margin.l - margin.r, height: height - margin.t - margin.b };
  const ranges = zoom || { x: rangeOf(drawn, x, state.xs), y: rangeOf(drawn, y, state.ys) };
  const layout = {
    width, height, margin, showlegend: false, hovermode: "closest", hoverdistance: 12,
    dragmode: coarse ? false : "zoom",
    paper_bgcolor: colours.panel, plot_bgcolor: colours.panel,
    font: { family: "system-ui, sans-serif", size: 12.5, color: colours.text },
    xaxis: axisOf(x, state.xs, ranges.x, area.width, colours),
    yaxis: axisOf(y, state.ys, ranges.y, area.height, colours),
    annotations: drawn.length ? namesOf(view, state, ranges, area, colours) : [emptyNote(colours)],
  };
  const traces = [
    ...(state.front === "on" ? fronts.map((front, k) => frontTrace(front, k, view, colours)) : []),
    ...pointTraces(view, colours),
    ringTrace(view, state, colours),
  ];
  hover.hidden = true;
  chart.setAttribute("aria-label", `Scatter chart of ${titleOf(y)} against ${titleOf(x)}, with `
    + `${plural(drawn.length, "run")}. The table has the same runs.`);
  return Plotly.react(chart, traces, layout, { displayModeBar: false, doubleClick: false });
}

function frontTrace({ device, members }, k, { x, y }, colours) {
  return {
    type: "scatter", mode: "lines", hoverinfo: "skip", meta: { front: device },
    x: members.map((i) => shown(i, x)), y: members.map((i) => shown(i, y)), customdata: members,
    // The border of what the front dominates: between two members, the figures of the worse one.
    line: { color: colours.front, width: 1.6, dash: dashOf(k),
      shape: x.direction === "max" ? "vh" : "hv" },
  };
}

function pointTraces({ x, y, drawn }, colours) {
  const traces = [];
  const many = drawn.filter((i) => data.runs[i].own).length > CROWD;
  for (const own of [false, true]) {
    for (const { name, colour, symbol } of data.classes) {
      const runs = drawn.filter((i) => data.runs[i].own === own && data.runs[i].class === name);
      if (!runs.length) continue;
      traces.push({
        type: "scatter", mode: "markers", name, hoverinfo: "none", meta: { own },
        x: runs.map((i) => shown(i, x)), y: runs.map((i) => shown(i, y)), customdata: runs,
        marker: {
          color: colour, symbol: own ? OWN : symbol, opacity: own && many ? 0.6 : 0.92,
          size: own ? (many ? 8 : 15) : 10,
          line: { color: colours.text, width: own ? (many ? 0.6 : 1.5) : 0.8 },
        },
      });
    }
  }
  return traces;
}

function ringTrace({ x, y, drawn }, state, colours) {
  const runs = drawn.filter((i) => String(i) === state.run);
  return {
    type: "scatter", mode: "markers", hoverinfo: "skip", meta: { ring: true }, customdata: runs,
    x: runs.map((i) => shown(i, x)), y: runs.map((i) => shown(i, y)),
    marker: { symbol: "circle-open", size: 24, color: colours.accent, line: { width: 3 } },
  };
}

/** Moves the ring to a run without drawing anything else. */
function ringAround(i, { x, y, drawn }) {
  const at = drawn.includes(i) ? [i] : [];
  const change = { x: [at.map((k) => shown(k, x))], y: [at.map((k) => shown(k, y))],
    customdata: [at] };
  return Plotly.restyle(chart, change, [chart.data.length - 1]);
}

function namesOf({ x, y, drawn, fronts }, state, ranges, area, colours) {
  if (state.names === "off") return [];
  const own = drawn.filter((i) => data.runs[i].own);
  const named = new Set(own.length <= 30 ? own : []);
  if (state.front === "on") fronts.forEach(({ members }) => members.forEach((i) => named.add(i)));
  const along = ([low, high], at) => (at - low) / (high - low);
  const place = (i) => {
    const at = { x: onAxis(shown(i, x), state.xs), y: onAxis(shown(i, y), state.ys) };
    return {
      text: data.runs[i].label, own: data.runs[i].own, at,
      x: along(ranges.x, at.x) * area.width, y: (1 - along(ranges.y, at.y)) * area.height,
    };
  };
  const within = (e) => e.x >= 0 && e.y >= 0 && e.x <= area.width && e.y <= area.height;
  const entries = [...named].map(place).filter(within);
  const others = drawn.length > CROWD ? [] : drawn.filter((i) => !named.has(i)).map(place);
  return placeNames(entries, others, area, LETTERS).map(({ entry, dx, dy, xanchor, yanchor }) => ({
    text: plain(entry.text), x: entry.at.x, y: entry.at.y, xref: "x", yref: "y",
    showarrow: false, xshift: dx, yshift: -dy, xanchor, yanchor, borderpad: 0,
    font: { size: LETTERS, color: colours.text },
  }));
}

function emptyNote(colours) {
  return {
    text: "No visible run has both figures.", x: 0.5, y: 0.5, xref: "paper", yref: "paper",
    showarrow: false, font: { size: 15, color: colours.quiet },
  };
}

/** Text for plotly, which reads tags in it. */
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** Zooms by a factor around the middle of what is shown; null shows all. */
function zoomBy(factor) {
  if (factor === null) {
    zoom = null;
    return;
  }
  const around = ([low, high]) => {
    const [middle, half] = [(low + high) / 2, ((high - low) / 2) * factor];
    return [middle - half, middle + half];
  };
  zoom = { x: around(chart.layout.xaxis.range), y: around(chart.layout.yaxis.range) };
}

/** Shows a card beside the pointer. */
function showHover(i, view, event) {
  hover.replaceChildren(...cardOf(i, view, { tooltip: true }));
  hover.hidden = false;
  const frame = hover.parentElement.getBoundingClientRect();
  const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
  const right = x + 18 + hover.offsetWidth <= frame.width;
  const left = right ? x + 18 : Math.max(0, x - 18 - hover.offsetWidth);
  hover.style.left = `${left}px`;
  hover.style.top = `${Math.max(0, Math.min(y - 20, frame.height - hover.offsetHeight))}px`;
}
