/** The picture of an image, from the angiogram over its masks to the errors, as a slider has it. */
function imageViewer({ canvas, absent, slider, stops, legend }) {
  const context = canvas.getContext("2d");
  let [angiogram, layers, asked] = [null, [], 0];

  slider.addEventListener("input", draw);

  /** Shows a picture with the mask of one stage; null says why there is none. */
  async function show(picture, stage, why) {
    const number = ++asked;
    canvas.hidden = slider.hidden = stops.hidden = legend.hidden = !picture;
    absent.hidden = Boolean(picture);
    absent.textContent = why;
    if (!picture) return;
    const found = await decoded(picture, stage);
    if (number !== asked) return; // Another has been chosen meanwhile.
    angiogram = found.angiogram;
    [canvas.width, canvas.height] = [found.width, found.height];
    canvas.classList.toggle("coarse", Math.max(found.width, found.height) < 256);
    layers = found.truth ? ofErrors(found) : [outlined(found, found.prediction, "prediction", "Prediction")];
    offer(["Angiogram", ...layers.map((layer) => layer.label)]);
    draw();
  }

  /** Gives the slider a stop for each label; at first it is at the last. */
  function offer(labels) {
    if (stops.childElementCount === labels.length) return;
    slider.max = slider.value = labels.length - 1;
    stops.replaceChildren(...labels.map((label, place) => element("button", {
      type: "button",
      click: () => {
        slider.value = place;
        draw();
      },
    }, label)));
  }

  function draw() {
    const at = Number(slider.value);
    const weight = (place) => Math.max(0, 1 - Math.abs(at - place));
    const { width, height } = canvas;
    context.globalAlpha = 1;
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    // White must stand out from bright lung, so the angiogram recedes behind the errors.
    context.globalAlpha = layers.reduce((light, layer, place) => light - layer.dims * weight(place + 1), 1);
    context.drawImage(angiogram, 0, 0, width, height);
    layers.forEach((layer, place) => layer.paints.forEach(([paint, alpha]) => {
      context.globalAlpha = alpha * weight(place + 1);
      context.drawImage(paint, 0, 0);
    }));
    tell(at);
  }

  function tell(at) {
    const near = Math.round(at);
    const labels = [...stops.children].map((stop) => stop.textContent);
    [...stops.children].forEach((stop, place) => stop.setAttribute("aria-pressed", place === at));
    slider.setAttribute("aria-valuetext",
      near === at ? labels[at] : `between ${labels[Math.floor(at)]} and ${labels[Math.ceil(at)]}`);
    const entries = near ? layers[near - 1].legend : [];
    legend.replaceChildren(...entries.map(([name, words]) => element("li", {}, swatch(name), words)));
  }

  return { show };
}

async function decoded({ image, masks, size }, stage) {
  const load = async (type, text) => {
    const found = new Image();
    found.src = `data:image/${type};base64,${text}`;
    await found.decode();
    return found;
  };
  const [angiogram, prediction, truth] = await Promise.all([
    load("jpeg", image), load("png", masks[stage]), masks.truth && load("png", masks.truth),
  ]);
  return { angiogram, prediction, truth, width: prediction.width, height: prediction.height, size };
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
const combined = (first, second, how) => (context) => {
  context.drawImage(first, 0, 0);
  context.globalCompositeOperation = how;
  context.drawImage(second, 0, 0);
};

/** A mask tinted, and outlined from outside, so that the vessel stays to be seen. */
function outlined(found, mask, name, label) {
  const ring = painted(found, name, (context) => {
    for (const x of [-1, 0, 1]) for (const y of [-1, 0, 1]) context.drawImage(mask, x, y);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(mask, 0, 0);
  });
  const inside = painted(found, name, (context) => context.drawImage(mask, 0, 0));
  return { label, dims: 0, paints: [[inside, 0.25], [ring, 1]], legend: [[name, label.toLowerCase()]] };
}

function ofErrors(found) {
  const { truth, prediction } = found;
  const errors = [
    painted(found, "true-positive", combined(truth, prediction, "source-in")),
    painted(found, "false-positive", combined(prediction, truth, "destination-out")),
    painted(found, "false-negative", combined(truth, prediction, "destination-out")),
  ];
  return [
    outlined(found, truth, "truth", "Truth"),
    outlined(found, prediction, "prediction", "Prediction"),
    {
      label: "Errors",
      dims: 0.4,
      paints: errors.map((error) => [error, 1]),
      legend: [
        ["true-positive", "true positive (white)"],
        ["false-positive", "false positive (red)"],
        ["false-negative", "false negative (blue)"],
      ],
    },
  ];
}
