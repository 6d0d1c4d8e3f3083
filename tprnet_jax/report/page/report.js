const data = JSON.parse(byId("data").textContent);

function fillHead() {
  document.title = data.title;
  byId("title").textContent = data.title;
  byId("facts").append(...data.facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

// ---- Means ----------------------------------------------------------------------------------------

function fillMeans() {
  if (!data.means) return;
  byId("summary").hidden = false;
  byId("summary-words").textContent = data.words;
  const groups = Map.groupBy(data.columns, (column) => column.group);
  byId("means").append(...[...groups].map(([title, columns]) => element("div", { class: "card" },
    element("h3", {}, title), element("div", { class: "scroll" }, meansTable(columns)))));
}

function meansTable(columns) {
  const heads = columns.map((column) => {
    const count = data.counts[column.name]; // Of images on which it is defined.
    return element("th", { scope: "col", title: column.words }, `${column.label} ${column.better}`,
      ...(count === undefined ? [] : [element("small", {}, `${count} images`)]));
  });
  return element("table", { class: "means" },
    element("thead", {}, element("tr", {}, element("td"), ...heads)),
    element("tbody", {}, ...data.stages.map(({ name, label }, series) => element("tr", {},
      element("th", { scope: "row" }, label), ...columns.map((column) => meanCell(name, column, series))))));
}

function meanCell(stage, column, series) {
  const value = data.means[stage][column.name];
  const interval = data.interval[stage]?.[column.name];
  const cell = element("td", {}, shown(value, column));
  if (interval) {
    cell.append(element("small", {}, interval.map((end) => shown(end, { digits: Math.min(3, column.digits) })).join(" – ")));
  }
  if (column.bar && value != null) cell.append(bar(value, interval, series));
  return cell;
}

/** A share from 0 to 1, with its interval. */
function bar(value, interval, series) {
  const percent = (share) => `${Math.max(0, Math.min(1, share)) * 100}%`;
  const whisker = interval && element("b", { style: `left: ${percent(interval[0])}; right: ${percent(1 - interval[1])}` });
  return element("span", { class: "bar", "aria-hidden": "true" },
    element("i", { style: `width: ${percent(value)}; background: var(--series-${series})` }), whisker ?? "");
}

// ---- Distribution ---------------------------------------------------------------------------------

function fillDistribution(choose) {
  if (!data.means) return;
  byId("distribution").hidden = false;
  const select = byId("distribution-metric");
  select.append(...data.columns.map((column, place) => element("option", { value: place }, column.label)));
  const redraw = (width) => {
    const place = Number(select.value);
    byId("histograms").replaceChildren(...data.stages.map((stage, series) => histogramOf(stage, series, place, width, choose)));
    markBlocks();
  };
  select.addEventListener("change", () => redraw(byId("histograms").clientWidth));
  whenResized(byId("histograms"), redraw);
}

function histogramOf({ name, label }, series, place, width, choose) {
  const column = data.columns[place];
  const all = Object.values(data.values).flatMap((rows) => rows.map((row) => row[place])).filter((value) => value != null);
  const range = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
  const values = data.values[name].map((row) => row[place]);
  const mean = data.means[name][column.name];
  return element("figure", { class: "card", style: "margin: 0" },
    element("figcaption", {}, `${label}, mean ${shown(mean, column)}`),
    histogram(width - 32, { label, values, names: data.names, range, column, series, mean, choose }));
}

let chosenImage = null;

function markBlocks() {
  document.querySelectorAll(".block.chosen").forEach((block) => block.classList.remove("chosen"));
  document.querySelectorAll(`.block[data-index="${chosenImage}"]`).forEach((block) => block.classList.add("chosen"));
}

// ---- Images ---------------------------------------------------------------------------------------

function fillImages() {
  byId("images").hidden = false;
  let stage = data.stages.at(-1).name;
  const viewer = imageViewer({
    canvas: byId("picture"), absent: byId("absent"), slider: byId("layer"), stops: byId("stops"), legend: byId("legend"),
  });
  const table = imageTable({
    container: byId("listing"), more: byId("more"), names: data.names, columns: data.columns, sort: data.sort, choose,
  });

  function choose(index) {
    chosenImage = index;
    table.mark(index);
    markBlocks();
    const caption = captionOf(index, stage);
    byId("caption").textContent = caption;
    byId("picture").setAttribute("aria-label", caption);
    viewer.show(data.pictures[index], stage, data.errors[index] ?? data.without);
  }

  fillStages(stage, (name) => {
    stage = name;
    table.show(data.values[stage]);
    choose(chosenImage);
  });
  byId("previous").addEventListener("click", () => table.step(-1));
  byId("next").addEventListener("click", () => table.step(1));
  table.show(data.values[stage]);
  choose(table.first());
  return choose;
}

function fillStages(chosen, change) {
  byId("stages").hidden = data.stages.length < 2;
  byId("stages").append(...data.stages.map(({ name, label }) => element("label", {},
    element("input", { type: "radio", name: "stage", checked: name === chosen, change: () => change(name) }), ` ${label}`)));
}

function captionOf(index, stage) {
  const { label } = data.stages.find(({ name }) => name === stage);
  const row = data.values[stage][index];
  const values = data.columns.map((column, place) => [column, row[place]])
    .filter(([column, value]) => column.caption && value != null)
    .map(([column, value]) => `${column.label} ${shown(value, column)}`);
  return [data.names[index], ...(data.stages.length > 1 ? [label] : []), ...values].join(" · ");
}

// ---- Notes, training and details --------------------------------------------------------------------

function fillRest() {
  byId("notes").hidden = !data.notes.length;
  byId("sentences").append(...data.notes.map((sentence) => element("li", {}, sentence)));
  byId("training").hidden = !data.plots.length;
  byId("curves").append(...data.plots.map(course));
  byId("details").append(...Object.entries(data.details).map(([title, rows]) => element("details", {}, element("summary", {}, title),
    element("table", {}, element("tbody", {}, ...Object.entries(rows).map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value))))))));
}

function course(plot) {
  const place = element("div");
  whenResized(place, (width) => place.replaceChildren(lineChart(width, plot)));
  const legend = Object.keys(plot.lines).map((name, number) => element("li", {}, swatch(`series-${number}`), name));
  return element("figure", { class: "card", style: "margin: 0" },
    element("figcaption", {}, plot.title), element("ul", { class: "legend" }, ...legend), place);
}

fillHead();
fillMeans();
if (data.names.length) fillDistribution(fillImages());
fillRest();
