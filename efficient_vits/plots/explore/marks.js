// Elements, and the marks of classes as they are in the chart.

/** An element with properties or attributes, and children that are elements or plain text. */
function element(tag, properties = {}, ...children) {
  const out = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in out && typeof value !== "string") out[key] = value;
    else out.setAttribute(key === "className" ? "class" : key, value);
  }
  out.append(...children);
  return out;
}

// Shapes within a circle of radius 7 around the middle of 16 x 16.
const SHAPES = {
  circle: "M14 8A6 6 0 1 1 2 8A6 6 0 1 1 14 8Z",
  square: "M3 3H13V13H3Z",
  diamond: "M8 1L15 8L8 15L1 8Z",
  "triangle-up": "M8 2L15 14H1Z",
  "triangle-down": "M8 14L15 2H1Z",
  pentagon: "M8 1L15 6.2L12.3 14.2H3.7L1 6.2Z",
  hexagon: "M8 1L14.2 4.5V11.5L8 15L1.8 11.5V4.5Z",
  cross: "M6 1.5H10V6H14.5V10H10V14.5H6V10H1.5V6H6Z",
  x: "M4 1.2L8 5.2L12 1.2L14.8 4L10.8 8L14.8 12L12 14.8L8 10.8L4 14.8L1.2 12L5.2 8L1.2 4Z",
  bowtie: "M1.5 2.5L8 8L14.5 2.5V13.5L8 8L1.5 13.5Z",
  hourglass: "M2.5 1.5H13.5L8 8L13.5 14.5H2.5L8 8Z",
  star: "M8 0.8L9.9 5.6L15 5.9L11 9.1L12.4 14.1L8 11.3L3.6 14.1L5 9.1L1 5.9L6.1 5.6Z",
};
const OWN = "star";
const DASHES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "11 4" };

function drawing(width, attributes) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  const size = { viewBox: `0 0 ${width} 16`, width, height: 16, "aria-hidden": "true" };
  Object.entries(size).forEach(([key, value]) => svg.setAttribute(key, value));
  Object.entries(attributes).forEach(([key, value]) => path.setAttribute(key, value));
  svg.append(path);
  return svg;
}

/** The mark of a class; a star in its colour for one's own runs. */
function swatch(name, own = false) {
  const { colour, symbol } = marks.get(name);
  const outline = { stroke: "currentColor", "stroke-width": 0.9 };
  return drawing(16, { d: SHAPES[own ? OWN : symbol], fill: colour, ...outline });
}

/** A piece of a front's line. */
function lineSample(dash) {
  const stroke = { stroke: "currentColor", "stroke-width": 1.8, "stroke-dasharray": DASHES[dash] };
  return drawing(36, { d: "M0 8H36", fill: "none", ...stroke });
}
