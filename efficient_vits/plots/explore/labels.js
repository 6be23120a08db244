// Where text goes: ticks of logarithmic axes, and the names of points without overlaps.

const STEPS = [[1], [1, 3], [1, 2, 5], [1, 2, 3, 5, 7], [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]];

/**
 * Ticks of a logarithmic axis whose range is given in powers of ten: the finest of a few series
 * that has no more than `most`; null where even that has fewer than three, and steps of equal size
 * are better.
 */
function logTicks([low, high], most) {
  let best = [];
  for (const step of STEPS) {
    const ticks = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
      ticks.push(...step.map((digit) => digit * 10 ** power));
    }
    const inside = ticks.filter((t) => Math.log10(t) >= low && Math.log10(t) <= high);
    if (inside.length <= most) best = inside;
  }
  return best.length < 3 ? linearTicks(10 ** low, 10 ** high, most) : best;
}

function linearTicks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((digit) => digit * power >= rough) * power;
  const first = Math.ceil(low / step);
  const count = Math.floor(high / step) - first + 1;
  // Or a step of 0.1 would end in digits that nobody wrote.
  const at = (k) => Number(((first + k) * step).toPrecision(12));
  return Array.from({ length: Math.max(0, count) }, (_, k) => at(k));
}

const ruler = document.createElement("canvas").getContext("2d");

/** Width of a text in pixels, a little more than it should need. */
function widthOf(text, size) {
  ruler.font = `${size}px system-ui, sans-serif`;
  return ruler.measureText(text).width * 1.05 + 4;
}

const SIDES = [[1, -1], [-1, -1], [1, 1], [-1, 1], [1, 0], [-1, 0], [0, -1], [0, 1]];

/**
 * Places names beside points so that they cover neither each other nor a named point nor leave the
 * area, and other points only where there is no better side. A name for which there is no place,
 * or that is there already, is left out.
 *
 * entries: {text, own, x, y} in pixels from the top left; others: {x, y}; area: {width, height};
 * size of the letters. Returns {entry, dx, dy, xanchor, yanchor} with distances right and down.
 */
function placeNames(entries, others, area, size) {
  const around = ({ x, y }) => ({ x0: x - 6, x1: x + 6, y0: y - 6, y1: y + 6 });
  const taken = entries.map(around);
  const better = others.map(around);
  const placed = new Map();
  for (const entry of entries) {
    const key = `${entry.own} ${entry.text}`;
    if (placed.has(key)) continue;
    const width = widthOf(entry.text, size);
    const own = entries.indexOf(entry);
    const fits = (box) => box.x0 >= 0 && box.y0 >= 0 && box.x1 <= area.width
      && box.y1 <= area.height && taken.every((other, j) => j === own || !overlap(box, other));
    const free = SIDES.map((side) => boxBeside(entry, side, width, size * 1.3)).filter(fits);
    const best = free.find((box) => better.every((other) => !overlap(box, other))) || free[0];
    if (!best) continue;
    taken.push(best);
    placed.set(key, { entry, ...best });
  }
  return [...placed.values()];
}

function boxBeside({ x, y }, [right, down], width, height) {
  const [dx, dy] = [right * (down ? 6 : 9), down * (right ? 6 : 9)];
  const x0 = x + dx - (width * (1 - right)) / 2;
  const y0 = y + dy - (height * (1 - down)) / 2;
  const xanchor = ["right", "center", "left"][right + 1];
  const yanchor = ["bottom", "middle", "top"][down + 1];
  return { x0, x1: x0 + width, y0, y1: y0 + height, dx, dy, xanchor, yanchor };
}

function overlap(a, b) {
  return a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;
}
