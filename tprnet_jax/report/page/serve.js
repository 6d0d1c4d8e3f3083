// Sends a file to the server and shows what comes back, line by line: see serve.lines in Python.

const $ = (id) => document.getElementById(id);
const KINDS = ["mask", "overlay", "tree"];

let colours = {};
let most = Infinity; // Bytes of a file.
let request = new AbortController();
let file = null; // The first line on it.
let frames = []; // The others.
let isChosen = false; // Whether the user has chosen a frame.

// ---- A file in ---------------------------------------------------------------------------------

function take(files) {
  if (files.length === 1) segment(files[0]);
  else if (files.length > 1) tell(`${files.length} files; give one at a time`);
}

async function segment(given) {
  request.abort();
  request = new AbortController();
  const { signal } = request;
  clear();
  if (given.size > most) return tell(tooLarge(given));
  say(`Reading ${given.name}`);
  try {
    const answer = await send(given, signal);
    for await (const line of lines(answer.body)) {
      if (signal.aborted) return;
      receive(line);
    }
    if (!signal.aborted) finish();
  } catch (error) {
    if (!signal.aborted) tell(error.message);
  }
}

function tooLarge({ name }) {
  return `${name} is larger than ${most / 1e6} MB; give a smaller file, or start with a larger ` +
    "--config.serve.max_mb";
}

async function send(given, signal) {
  const path = `segment?name=${encodeURIComponent(given.name)}`;
  const answer = await fetch(path, { method: "POST", body: given, signal }).catch(() => {
    throw new Error(`${given.name} cannot be read, or the server has ended; see its terminal`);
  });
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new Error(error ?? `the server answers ${answer.status}; see its terminal`);
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let parts = [];
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true }));
    if (done) return; // Or cut off.
    const [rest, ...others] = value.split("\n");
    parts.push(rest);
    for (const next of others) {
      yield JSON.parse(parts.join(""));
      parts = [next];
    }
  }
}

function receive(line) {
  if (line.error) throw new Error(line.error);
  if (!line.frame) return begin(line);
  frames.push(opened(line));
  $("progress").value = line.frame;
  $("frame").max = frames.length;
  show(isChosen ? Number($("frame").value) : line.frame);
}

function opened({ totals, files }) {
  const blobs = Object.fromEntries(Object.entries(files).map(([kind, { name, data }]) => {
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    const type = kind === "tree" ? "application/json" : "image/png";
    return [kind, { name, url: URL.createObjectURL(new Blob([bytes], { type })) }];
  }));
  return { totals, files: blobs, tree: JSON.parse(atob(files.tree.data)) };
}

// ---- What is said ------------------------------------------------------------------------------

function clear() {
  for (const { files } of frames) {
    for (const { url } of Object.values(files)) URL.revokeObjectURL(url);
  }
  [file, frames, isChosen] = [null, [], false];
  $("result").hidden = $("progress").hidden = true;
  $("error").textContent = "";
}

function say(sentence) {
  $("status").textContent = sentence;
}

function tell(sentence) {
  say("");
  $("progress").hidden = true;
  $("error").textContent = sentence;
}

function begin(line) {
  file = line;
  const [height, width] = line.seen;
  say(`Segmenting at ${width} x ${height} pixels; the first of a size takes some seconds`);
  $("progress").max = line.frames;
  $("progress").removeAttribute("value");
  $("progress").hidden = false;
  $("name").textContent = line.name;
  $("facts").textContent = facts(line);
  $("notes").replaceChildren(...line.notes.map((note) => element("li", note)));
  $("run").hidden = line.frames === 1;
}

function facts({ size: [height, width], frames: count, spacing_mm: spacing }) {
  const known = spacing
    ? `${spacing.map((step) => Number(step.toPrecision(4))).join(" x ")} mm a pixel`
    : "its spacing in mm is not known";
  return `${width} x ${height} pixels, ${count === 1 ? "one image" : `${count} frames`}, ${known}`;
}

function finish() {
  if (frames.length < file.frames) {
    throw new Error(`the server has ended at frame ${frames.length + 1}; see its terminal`);
  }
  $("progress").hidden = true;
  const areas = frames.map(({ totals }) => totals.area);
  const largest = Math.max(...areas);
  if (!isChosen) show(areas.indexOf(largest) + 1); // At first, no contrast agent is there yet.
  const done = frames.length === 1 ? "Segmented" : `${frames.length} frames segmented`;
  say(largest ? done : `${done}; no vessel was found`);
}

// ---- A frame shown -----------------------------------------------------------------------------

function show(number) {
  const { files, totals, tree } = frames[number - 1];
  $("frame").value = number;
  $("number").textContent = `${number} of ${file.frames}`;
  for (const kind of ["image", "overlay"]) {
    $(kind).src = files[kind].url;
    $(kind).classList.toggle("small", Math.max(...file.size) < 512);
  }
  for (const kind of KINDS) {
    Object.assign($(`save_${kind}`), { href: files[kind].url, download: files[kind].name });
  }
  draw(tree);
  showTotals(totals);
  showBranches(tree);
  $("result").hidden = false;
}

function draw({ nodes, edges }) {
  const [height, width] = file.size;
  const scale = Math.max(height, width) / 512;
  $("tree").setAttribute("viewBox", `-0.5 -0.5 ${width} ${height}`);
  $("tree").replaceChildren(
    ...edges.map((edge) => branch(edge, scale)),
    ...nodes.map(({ row, column, kind }) => {
      return drawing("circle", { cx: column, cy: row, r: 3 * scale, fill: colours[kind] });
    }),
  );
}

function branch({ id, path }, scale) {
  const points = path.map(([row, column]) => `${column},${row}`).join(" ");
  const [y, x] = path[Math.floor(path.length / 2)];
  const group = drawing("g", { "data-branch": id });
  const label = drawing("text", { x: x + 8 * scale, y: y - 8 * scale, "font-size": 18 * scale });
  label.textContent = id + 1;
  group.append(
    drawing("polyline", { points, class: "halo" }),
    drawing("polyline", { points, class: "branch", stroke: colours.line }),
    label,
  );
  return group;
}

function showTotals({ branches, length, length_mm, area, area_mm2, share }) {
  const inMm = (value, unit) => (value === undefined ? "" : `, ${value.toFixed(1)} ${unit}`);
  const values = {
    Branches: branches,
    "Total length": `${length.toFixed(1)} pixels${inMm(length_mm, "mm")}`,
    "Vessel area": `${area} pixels${inMm(area_mm2, "mm\u00b2")}`,
    "Of the image": `${(100 * share).toFixed(1)} %`,
  };
  $("totals").replaceChildren(...Object.entries(values).flatMap(([name, value]) => {
    return [element("dt", name), element("dd", value)];
  }));
}

function showBranches({ edges, spacing_mm: spacing }) {
  const units = spacing ? ["", "_mm"] : [""];
  const [head, body] = $("branches").children;
  $("branches").hidden = !edges.length;
  head.replaceChildren(...heads(units));
  body.replaceChildren(...edges.map((edge) => {
    const name = element("th", "", { scope: "row" });
    name.append(element("button", edge.id + 1, { type: "button" }));
    const row = element("tr", "", { "data-branch": edge.id });
    row.append(name, ...units.flatMap((unit) => [
      element("td", edge[`length${unit}`].toFixed(1)),
      element("td", edge[`mean_radius${unit}`].toFixed(2)),
      element("td", edge[`least_radius${unit}`].toFixed(2)),
    ]));
    return row;
  }));
}

function heads(units) {
  const top = element("tr");
  const names = element("tr");
  top.append(element("td"), ...units.map((unit) => {
    return element("th", unit ? "mm" : "pixels", { colspan: 3, scope: "colgroup" });
  }));
  const titles = ["Length", "Mean radius", "Least radius"];
  names.append(element("th", "Branch", { scope: "col" }), ...units.flatMap(() => {
    return titles.map((title) => element("th", title, { scope: "col" }));
  }));
  return [top, names];
}

/** Marks a branch in the table and in the tree; null marks none. */
function mark(id) {
  for (const each of document.querySelectorAll("[data-branch]")) {
    each.classList.toggle("chosen", each.dataset.branch === id);
  }
}

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function drawing(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// ---- What the user does ------------------------------------------------------------------------

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  take([...$("file").files]);
  $("file").value = ""; // So that the same file can be chosen again.
});
for (const [name, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // Else the browser would leave the page for the file.
    $("drop").classList.toggle("over", isOver);
  });
}
document.addEventListener("drop", (event) => take([...event.dataTransfer.files]));

$("frame").addEventListener("input", () => {
  isChosen = true;
  show(Number($("frame").value));
});
$("blend").addEventListener("input", () => {
  $("overlay").style.opacity = $("blend").value / 100;
});
$("with_tree").addEventListener("change", () => {
  $("tree").classList.toggle("off", !$("with_tree").checked);
});
for (const [name, isOn] of Object.entries({ mouseover: 1, focusin: 1, mouseout: 0, focusout: 0 })) {
  $("branches").addEventListener(name, (event) => {
    mark((isOn && event.target.closest("tr")?.dataset.branch) || null);
  });
}

const about = await (await fetch("about")).json();
most = about.most;
colours = Object.fromEntries(
  Object.entries(about.colours).map(([name, colour]) => [name, `rgb(${colour})`]),
);
$("model").textContent = `Model: ${about.model}.`;
