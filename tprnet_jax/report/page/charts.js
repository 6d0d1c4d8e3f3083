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
  for (let n = Math.ceil(low / step - 1e-9); n <= high / step + 1e-9; n++) found.push(n * step);
  return found;
}

const asTick = (value) => Number(value.toPrecision(3)).toString();

function scale(low, high, start, end) {
  return (value) => start + ((value - low) / (high - low || 1)) * (end - start);
}

function chart(width, height, words) {
  const viewBox = `0 0 ${width} ${height}`;
  return drawn("svg", { height, viewBox, role: "img", "aria-label": words });
}

function line(name, [x1, y1], [x2, y2]) {
  return drawn("line", { class: name, x1, y1, x2, y2 });
}

function label(text, x, y, anchor) {
  return drawn("text", { x, y, "text-anchor": anchor }, text);
}

/** A block for each image that has a value, in stacks: [{index, bin, level}], and the highest. */
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
  const [[low, high], height, bottom] = [of.range, 110, 92];
  const bins = Math.max(10, Math.min(60, Math.floor(width / 12)));
  const { blocks, most } = stacked(of.values, low, high, bins);
  const size = [width / bins, (bottom - 4) / most];
  const x = scale(low, high, 0, width);
  const picture = chart(width, height, inWords(of));
  picture.append(...blocks.map((place) => block(place, size, bottom, of)));
  picture.append(line("axis", [0, bottom], [width, bottom]));
  for (const value of ticks(low, high, Math.max(3, width / 90))) {
    const anchor = x(value) < 12 ? "start" : x(value) > width - 12 ? "end" : "middle";
    picture.append(label(asTick(value), x(value), height - 3, anchor));
  }
  if (of.mean != null) picture.append(line("mean", [x(of.mean), 0], [x(of.mean), bottom]));
  return picture;
}

function block({ index, bin, level }, [wide, tall], bottom, { values, column, names, ...of }) {
  const attributes = {
    class: "block",
    "data-index": index,
    x: bin * wide,
    y: bottom - (level + 1) * tall,
    width: wide - 1,
    height: tall,
    fill: `var(--series-${of.series})`,
    click: () => of.choose(index),
  };
  const title = drawn("title", {}, `${names[index]}: ${shown(values[index], column)}`);
  return drawn("rect", attributes, title);
}

/** What a histogram shows, for those who do not see it. */
function inWords({ label, values, column, mean }) {
  const sorted = values.filter((value) => value != null).sort((a, b) => a - b);
  if (!sorted.length) return `${label}: ${column.label} is defined on no image`;
  const at = (share) => shown(sorted[Math.round(share * (sorted.length - 1))], column);
  return (
    `${label}: mean ${shown(mean, column)}, median ${at(0.5)}, half of the images from ` +
    `${at(0.25)} to ${at(0.75)}, all from ${at(0)} to ${at(1)}`
  );
}

/** Lines over steps: {title, lines: {name: [[step, value], ...]}}. */
function lineChart(width, { title, lines }) {
  const [height, left, bottom] = [200, 46, 180];
  const points = Object.values(lines).flat();
  const ends = (values) => [Math.min(...values), Math.max(...values)];
  const steps = ends(points.map(([step]) => step));
  const values = ends(points.map(([, value]) => value));
  const x = scale(...steps, left, width - 8);
  const y = scale(...values, bottom - 6, 8);
  const picture = chart(width, height, courseInWords(title, lines));
  for (const value of ticks(...values, 4)) {
    picture.append(line("axis", [left, y(value)], [width, y(value)]));
    picture.append(label(asTick(value), left - 6, y(value) + 4, "end"));
  }
  for (const step of ticks(...steps, Math.max(2, width / 120))) {
    picture.append(label(step, x(step), height - 4, "middle"));
  }
  Object.values(lines).forEach((each, series) => {
    const places = each.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`);
    const stroke = `var(--series-${series})`;
    picture.append(drawn("polyline", { class: "curve", points: places.join(" "), stroke }));
  });
  return picture;
}

function courseInWords(title, lines) {
  const ends = Object.entries(lines).map(
    ([name, line]) => `${name} from ${asTick(line[0][1])} to ${asTick(line.at(-1)[1])}`,
  );
  return `${title} by step: ${ends.join(", ")}`;
}
