/** Draws into a container now, and again when it has another width. */
function whenResized(container, draw) {
  let width = 0;
  new ResizeObserver(() => {
    // A page that is hidden or left has no width.
    if (!container.clientWidth || container.clientWidth === width) return;
    width = container.clientWidth;
    draw(width);
  }).observe(container);
}

/** About `count` round numbers from `low` to `high`. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push(n * step);
  return found;
}

const asTick = (value) => Number(value.toPrecision(3)).toString();

function scale(low, high, start, end) {
  return (value) => start + ((value - low) / (high - low || 1)) * (end - start);
}

/** A block for each image that has a value, stacked by value: [{index, bin, level}], and the most. */
function stacked(values, low, high, bins) {
  const heights = new Array(bins).fill(0);
  const order = [...values.keys()].filter((index) => values[index] != null);
  order.sort((a, b) => values[a] - values[b]);
  const blocks = order.map((index) => {
    const bin = Math.min(bins - 1, Math.floor(((values[index] - low) / (high - low || 1)) * bins));
    return { index, bin, level: heights[bin]++ };
  });
  return { blocks, most: Math.max(1, ...heights) };
}

/**
 * A histogram of one stage.
 *
 * @param {{label: string, values: (number|null)[], names: string[], range: number[],
 *   column: object, series: number, mean: number|null, choose: function(number)}} of
 */
function histogram(width, of) {
  const [low, high] = of.range;
  const height = 110;
  const bottom = height - 18;
  const bins = Math.max(10, Math.min(60, Math.floor(width / 12)));
  const x = scale(low, high, 0, width);
  const { blocks, most } = stacked(of.values, low, high, bins);
  const tall = (bottom - 4) / most;
  const picture = drawn("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": inWords(of) });
  for (const { index, bin, level } of blocks) {
    picture.append(drawn("rect", {
      class: "block",
      "data-index": index,
      x: (bin * width) / bins,
      y: bottom - (level + 1) * tall,
      width: width / bins - 1,
      height: tall,
      fill: `var(--series-${of.series})`,
      click: () => of.choose(index),
    }, drawn("title", {}, `${of.names[index]}: ${shown(of.values[index], of.column)}`)));
  }
  picture.append(drawn("line", { class: "axis", x1: 0, x2: width, y1: bottom, y2: bottom }));
  for (const value of ticks(low, high, Math.max(3, width / 90))) {
    const anchor = x(value) < 12 ? "start" : x(value) > width - 12 ? "end" : "middle";
    picture.append(drawn("text", { x: x(value), y: height - 3, "text-anchor": anchor }, asTick(value)));
  }
  if (of.mean != null) {
    picture.append(drawn("line", { class: "mean", x1: x(of.mean), x2: x(of.mean), y1: 0, y2: bottom }));
  }
  return picture;
}

/** What a histogram shows, for those who do not see it. */
function inWords({ label, values, column, mean }) {
  const sorted = values.filter((value) => value != null).sort((a, b) => a - b);
  if (!sorted.length) return `${label}: ${column.label} is defined on no image`;
  const at = (share) => shown(sorted[Math.round(share * (sorted.length - 1))], column);
  return `${label}: mean ${shown(mean, column)}, median ${at(0.5)}, half of the images from ` +
    `${at(0.25)} to ${at(0.75)}, all from ${at(0)} to ${at(1)}`;
}

/** Lines over steps: {title, lines: {name: [[step, value], ...]}}. */
function lineChart(width, { title, lines }) {
  const [height, left, bottom] = [200, 46, 180];
  const points = Object.values(lines).flat();
  const [steps, values] = [0, 1].map((part) => points.map((point) => point[part]));
  const x = scale(Math.min(...steps), Math.max(...steps), left, width - 8);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const y = scale(low, high, bottom - 6, 8);
  const picture = drawn("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": courseInWords(title, lines) });
  for (const value of ticks(low, high, 4)) {
    picture.append(
      drawn("line", { class: "axis", x1: left, x2: width, y1: y(value), y2: y(value) }),
      drawn("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, asTick(value)),
    );
  }
  for (const step of ticks(Math.min(...steps), Math.max(...steps), Math.max(2, width / 120))) {
    picture.append(drawn("text", { x: x(step), y: height - 4, "text-anchor": "middle" }, step.toString()));
  }
  Object.values(lines).forEach((line, number) => picture.append(drawn("polyline", {
    points: line.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" "),
    fill: "none",
    stroke: `var(--series-${number})`,
    "stroke-width": 2,
  })));
  return picture;
}

function courseInWords(title, lines) {
  const ends = Object.entries(lines).map(([name, line]) =>
    `${name} from ${asTick(line[0][1])} to ${asTick(line.at(-1)[1])}`);
  return `${title} by step: ${ends.join(", ")}`;
}
