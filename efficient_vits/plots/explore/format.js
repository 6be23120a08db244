// Numbers for people, rows for programs.

const decimals = new Intl.NumberFormat("en", {
  minimumFractionDigits: 2, maximumFractionDigits: 2,
});
const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

/** A figure in the unit that the page shows it in, without the unit; empty where there is none. */
function figure(run, metric) {
  const value = run.values[metric.index];
  if (value === null) return "";
  return (metric.unit === "%" ? decimals : digits).format(value / metric.factor);
}

function titleOf(metric) {
  return metric.unit ? `${metric.label} [${metric.unit}]` : metric.label;
}

function wayOf(metric) {
  return metric.direction === "max" ? "more is better" : "less is better";
}

function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

/** Rows as CSV with a header, figures in plain units: bytes, seconds, counts, per cent. */
function csvOf(indices, onFront) {
  const columns = {
    name: (run) => run.name,
    resolution: (run) => run.resolution,
    pretrain_size: (run) => run.pretrain_size,
    taxonomy_class: (run) => run.class,
    year: (run) => run.year,
    size: (run) => run.size,
    runs: (run) => (run.own ? "own" : "benchmark"),
    on_front: (run, i) => (onFront.has(i) ? "yes" : "no"),
    ...Object.fromEntries(data.metrics.map((m) => [m.name, (run) => run.values[m.index]])),
    device: (run) => run.device,
    source: (run) => run.source,
    notes: (run) => run.notes.join("; "),
  };
  const lines = indices.map((i) => Object.values(columns).map((of) => cell(of(data.runs[i], i))));
  return [Object.keys(columns), ...lines].map((line) => line.join(",") + "\r\n").join("");
}

/** One cell; a text that a spreadsheet would take for a formula gets an apostrophe. */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Hands a text to the browser as a file to save. */
function save(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
