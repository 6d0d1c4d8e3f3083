/** The picture of an image, from the angiogram over its masks to the errors, as a slider has it. */
class ImageViewer {
  constructor({ canvas, absent, slider, stops, legend }) {
    Object.assign(this, { canvas, absent, slider, stops, legend });
    this.context = canvas.getContext("2d");
    [this.angiogram, this.layers, this.asked] = [null, [], 0];
    slider.addEventListener("input", () => this.draw());
  }

  /** Shows a picture with the mask of one stage; without a picture, says why there is none. */
  async show(picture, stage, why) {
    const number = ++this.asked;
    for (const part of [this.canvas, this.slider, this.stops, this.legend]) part.hidden = !picture;
    this.absent.hidden = Boolean(picture);
    this.absent.textContent = why;
    if (!picture) return;
    const found = await decoded(picture, stage);
    if (number !== this.asked) return; // Another has been chosen meanwhile.
    this.angiogram = found.angiogram;
    [this.canvas.width, this.canvas.height] = [found.width, found.height];
    this.canvas.classList.toggle("coarse", Math.max(found.width, found.height) < 256);
    this.layers = layersOf(found);
    this.offer(["Angiogram", ...this.layers.map((layer) => layer.label)]);
    this.draw();
  }

  /** Gives the slider a stop for each label; at first it is at the last. */
  offer(labels) {
    if (this.stops.childElementCount === labels.length) return;
    this.slider.max = this.slider.value = labels.length - 1;
    const stop = (label, place) => {
      const go = () => {
        this.slider.value = place;
        this.draw();
      };
      return element("button", { type: "button", click: go }, label);
    };
    this.stops.replaceChildren(...labels.map(stop));
  }

  draw() {
    const { context, layers } = this;
    const { width, height } = this.canvas;
    const at = Number(this.slider.value);
    const weights = layers.map((_, place) => Math.max(0, 1 - Math.abs(at - place - 1)));
    context.globalAlpha = 1;
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    // White must stand out from bright lung, so the angiogram recedes behind the errors.
    context.globalAlpha = layers.reduce((left, { dims }, place) => left - dims * weights[place], 1);
    context.drawImage(this.angiogram, 0, 0, width, height);
    layers.forEach(({ paints }, place) =>
      paints.forEach(([paint, alpha]) => {
        context.globalAlpha = alpha * weights[place];
        context.drawImage(paint, 0, 0);
      }),
    );
    this.tell(at);
  }

  /** Says in words what is drawn. */
  tell(at) {
    const stops = [...this.stops.children];
    stops.forEach((stop, place) => stop.setAttribute("aria-pressed", place === at));
    const [before, after] = [Math.floor(at), Math.ceil(at)].map(
      (place) => stops[place].textContent,
    );
    const words = before === after ? before : `between ${before} and ${after}`;
    this.slider.setAttribute("aria-valuetext", words);
    const entries = this.layers[Math.round(at) - 1]?.legend ?? [];
    const items = entries.map(([name, text]) => element("li", {}, swatch(name), text));
    this.legend.replaceChildren(...items);
  }
}

async function decoded({ image, masks }, stage) {
  const load = async (type, text) => {
    const found = new Image();
    found.src = `data:image/${type};base64,${text}`;
    await found.decode();
    return found;
  };
  const [angiogram, prediction, truth] = await Promise.all([
    load("jpeg", image),
    load("png", masks[stage]),
    masks.truth && load("png", masks.truth),
  ]);
  return { angiogram, prediction, truth, width: prediction.width, height: prediction.height };
}

/** What is drawn over the angiogram at each stop of the slider but the first. */
function layersOf(found) {
  const prediction = outlined(found, found.prediction, "prediction", "Prediction");
  if (!found.truth) return [prediction];
  return [outlined(found, found.truth, "truth", "Truth"), prediction, errorsOf(found)];
}

/** A mask tinted, and outlined from outside, so that the vessel stays to be seen. */
function outlined(found, mask, name, label) {
  const ring = painted(found, name, (context) => {
    for (const x of [-1, 0, 1]) for (const y of [-1, 0, 1]) context.drawImage(mask, x, y);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(mask, 0, 0);
  });
  const inside = painted(found, name, (context) => context.drawImage(mask, 0, 0));
  const paints = [
    [inside, 0.25],
    [ring, 1],
  ];
  return { label, dims: 0, paints, legend: [[name, label.toLowerCase()]] };
}

function errorsOf(found) {
  const { truth, prediction } = found;
  const errors = [
    painted(found, "true-positive", combined(truth, prediction, "source-in")),
    painted(found, "false-positive", combined(prediction, truth, "destination-out")),
    painted(found, "false-negative", combined(truth, prediction, "destination-out")),
  ];
  const legend = [
    ["true-positive", "true positive (white)"],
    ["false-positive", "false positive (red)"],
    ["false-negative", "false negative (blue)"],
  ];
  return { label: "Errors", dims: 0.4, paints: errors.map((error) => [error, 1]), legend };
}

/** What is opaque where `paint` has made it so, in one colour. */
function painted({ width, height }, name, paint) {
  const canvas = element("canvas", { width, height });
  const context = canvas.getContext("2d");
  paint(context);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = colour(name);
  context.fillRect(0, 0, width, height);
  return canvas;
}

/** Combines masks: "source-in" where both are, "destination-out" where the first alone is. */
function combined(first, second, how) {
  return (context) => {
    context.drawImage(first, 0, 0);
    context.globalCompositeOperation = how;
    context.drawImage(second, 0, 0);
  };
}
