const data = JSON.parse(byId("data").textContent);

function fillHead() {
  document.title = data.title;
  byId("title").textContent = data.title;
  byId("facts").append(
    ...data.facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
  );
}

// ---- Means --------------------------------------------------------------------------------------

function fillMeans() {
  if (!data.means) return;
  byId("summary").hidden = false;
  byId("summary-words").textContent = data.words;
  for (const title of new Set(data.columns.map((column) => column.group))) {
    const columns = data.columns.filter((column) => column.group === title);
    const defined = columns.filter(({ words }) => words);
    const words = defined.map((column) => `${column.label}: ${column.words}.`).join(" ");
    const table = element("div", { class: "scroll" }, meansTable(columns));
    const parts = [element("h3", {}, title), table, element("p", { class: "words" }, words)];
    byId("means").append(element("div", { class: "card" }, ...parts));
  }
}

function meansTable(columns) {
  const rows = data.stages.map(({ name, label }, series) => {
    const cells = columns.map((column) => meanCell(name, column, series));
    return element("tr", {}, element("th", { scope: "row" }, label), ...cells);
  });
  const head = element("tr", {}, element("td"), ...columns.map(meanHead));
  const parts = [element("thead", {}, head), element("tbody", {}, ...rows)];
  return element("table", { class: "means" }, ...parts);
}

function meanHead({ name, label, words, better }) {
  const head = element("th", { scope: "col", title: words }, `${label} ${better}`);
  if (name in data.counts) head.append(element("small", {}, `${data.counts[name]} images`));
  return head;
}

function meanCell(stage, column, series) {
  const value = data.means[stage][column.name];
  const interval = data.interval[stage]?.[column.name];
  const cell = element("td", {}, shown(value, column));
  if (interval) {
    const ends = interval.map((end) => end.toFixed(Math.min(3, column.digits)));
    cell.append(element("small", {}, ends.join(" – ")));
  }
  if (column.bar && value != null) cell.append(bar(value, interval, series));
  return cell;
}

/** A share from 0 to 1, with its interval, if it has one. */
function bar(value, interval, series) {
  const percent = (share) => `${Math.max(0, Math.min(1, share)) * 100}%`;
  const style = `width: ${percent(value)}; background: var(--series-${series})`;
  const found = element("span", { class: "bar", "aria-hidden": "true" }, element("i", { style }));
  if (interval) {
    const [left, right] = [percent(interval[0]), percent(1 - interval[1])];
    found.append(element("b", { style: `left: ${left}; right: ${right}` }));
  }
  return found;
}

// ---- Distribution -------------------------------------------------------------------------------

function fillDistribution(choose) {
  if (!data.means) return;
  byId("distribution").hidden = false;
  const [place, select] = [byId("histograms"), byId("distribution-metric")];
  const option = ({ label }, number) => element("option", { value: number }, label);
  select.append(...data.columns.map(option));
  const draw = (width) => {
    place.replaceChildren(...histograms(Number(select.value), width, choose));
    markBlocks();
  };
  select.addEventListener("change", () => draw(place.clientWidth));
  whenResized(place, draw);
}

/** One of each stage, all over the same range. */
function histograms(number, width, choose) {
  const column = data.columns[number];
  const values = data.stages.map(({ name }) => data.values[name].map((row) => row[number]));
  const known = values.flat().filter((value) => value != null);
  const range = known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
  return data.stages.map(({ name, label }, series) => {
    const mean = data.means[name][column.name];
    const of = { label, names: data.names, values: values[series], range, column, series, mean };
    const caption = element("figcaption", {}, `${label}, mean ${shown(mean, column)}`);
    return element("figure", { class: "card" }, caption, histogram(width - 32, { ...of, choose }));
  });
}

let chosenImage = null;

function markBlocks() {
  for (const block of document.querySelectorAll(".block")) {
    block.classList.toggle("chosen", Number(block.dataset.index) === chosenImage);
  }
}

// ---- Images -------------------------------------------------------------------------------------

function fillImages() {
  byId("images").hidden = false;
  let stage = data.stages.at(-1).name;
  const viewer = new ImageViewer({
    canvas: byId("picture"),
    absent: byId("absent"),
    slider: byId("layer"),
    stops: byId("stops"),
    legend: byId("legend"),
  });
  const table = new ImageTable(byId("listing"), byId("more"), data, choose);

  function choose(index) {
    chosenImage = index;
    table.mark(index);
    markBlocks();
    const caption = captionOf(index, stage);
    byId("caption").textContent = caption;
    byId("picture").setAttribute("aria-label", caption);
    viewer.show(data.pictures[index], stage, data.remarks[index] ?? data.without);
  }

  fillStages(stage, (name) => {
    stage = name;
    table.show(data.values[stage]);
    choose(chosenImage);
  });
  byId("previous").addEventListener("click", () => table.step(-1));
  byId("next").addEventListener("click", () => table.step(1));
  table.show(data.values[stage]);
  choose(table.order[0]);
  return choose;
}

function fillStages(chosen, change) {
  byId("stages").hidden = data.stages.length < 2;
  for (const { name, label } of data.stages) {
    const attributes = { type: "radio", name: "stage", checked: name === chosen };
    const button = element("input", { ...attributes, change: () => change(name) });
    byId("stages").append(element("label", {}, button, ` ${label}`));
  }
}

function captionOf(index, stage) {
  const { label } = data.stages.find(({ name }) => name === stage);
  const row = data.values[stage][index];
  const values = data.columns
    .map((column, place) => [column, row[place]])
    .filter(([column, value]) => column.caption && value != null)
    .map(([column, value]) => `${column.label} ${shown(value, column)}`);
  const stages = data.stages.length > 1 ? [label] : [];
  return [data.names[index], ...stages, ...values].join(" · ");
}

// ---- Notes, training and details ----------------------------------------------------------------

function fillRest() {
  byId("notes").hidden = !data.notes.length;
  byId("sentences").append(...data.notes.map((sentence) => element("li", {}, sentence)));
  byId("training").hidden = !data.plots.length;
  byId("curves").append(...data.plots.map(course));
  byId("details").append(...Object.entries(data.details).map(detail));
}

function course(plot) {
  const place = element("div");
  whenResized(place, (width) => place.replaceChildren(lineChart(width, plot)));
  const legend = Object.keys(plot.lines).map((name, number) =>
    element("li", {}, swatch(`series-${number}`), name),
  );
  const caption = element("figcaption", {}, plot.title);
  const lines = element("ul", { class: "legend" }, ...legend);
  return element("figure", { class: "card" }, caption, lines, place);
}

function detail([title, entries]) {
  const rows = Object.entries(entries).map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)),
  );
  const table = element("table", {}, element("tbody", {}, ...rows));
  return element("details", {}, element("summary", {}, title), table);
}

fillHead();
fillMeans();
if (data.names.length) fillDistribution(fillImages());
fillRest();
