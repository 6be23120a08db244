// Pareto fronts by the rules of efficient_vits.results: a point dominates another that it is at
// least as good as in both figures and better than in one. Equal points do not dominate each other.

/** Which points no other dominates. Points are pairs of numbers, directions two of "max", "min". */
function paretoMask(points, directions) {
  const signs = directions.map((way) => (way === "max" ? 1 : -1));
  const oriented = points.map(([x, y]) => [signs[0] * x, signs[1] * y]);
  const order = oriented
    .map((_, i) => i)
    .sort((a, b) => oriented[b][0] - oriented[a][0] || oriented[b][1] - oriented[a][1]);
  const mask = points.map(() => false);
  // The best second figure among points whose first one is better than the present one's.
  let above = -Infinity;
  let start = 0;
  while (start < order.length) {
    const [first, best] = oriented[order[start]];
    let end = start;
    for (; end < order.length && oriented[order[end]][0] === first; end++) {
      mask[order[end]] = oriented[order[end]][1] === best && best > above;
    }
    above = Math.max(above, best);
    start = end;
  }
  return mask;
}

/**
 * The fronts of runs that have both figures: one for each class of device where a metric depends
 * on the device, else one, whose device is null. Members go from left to right.
 */
function frontsOf(runs, indices, x, y) {
  const groups = new Map();
  for (const i of indices) {
    const device = x.device_bound || y.device_bound ? runs[i].device_class : null;
    if (!groups.has(device)) groups.set(device, []);
    groups.get(device).push(i);
  }
  return [...groups].map(([device, compared]) => {
    const points = compared.map((i) => [runs[i].values[x.index], runs[i].values[y.index]]);
    const mask = paretoMask(points, [x.direction, y.direction]);
    const upwards = x.direction === y.direction ? -1 : 1;
    const members = compared
      .map((run, k) => ({ run, point: points[k], on: mask[k] }))
      .filter((entry) => entry.on)
      .sort((a, b) => a.point[0] - b.point[0] || upwards * (a.point[1] - b.point[1]))
      .map((entry) => entry.run);
    return { device, members, compared, split: splitOf(runs, members, compared) };
  });
}

/** Networks that ran under several names, of which the front takes only some: [on it, off it]. */
function splitOf(runs, members, compared) {
  const onFront = new Set(members);
  const groups = new Map();
  for (const i of compared) {
    const key = `${runs[i].network} ${runs[i].resolution}`;
    if (!groups.has(key)) groups.set(key, [new Set(), new Set()]);
    groups.get(key)[onFront.has(i) ? 0 : 1].add(runs[i].label);
  }
  return [...groups.values()]
    .map(([on, off]) => [[...on], [...off].filter((label) => !on.has(label))])
    .filter(([on, off]) => on.length && off.length);
}
