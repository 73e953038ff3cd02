/** The page: settings, the image as it appears, edits. */

import type { Config, Scale, Settings, Start } from "./model";
import type { Answer, Request } from "./worker";

const element = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const image = element<HTMLCanvasElement>("image");
const overlay = element<HTMLCanvasElement>("overlay");
const fields = {
  model: element<HTMLSelectElement>("model"),
  label: element<HTMLSelectElement>("label"),
  seed: element<HTMLInputElement>("seed"),
  guidance: element<HTMLInputElement>("guidance"),
  "top-p": element<HTMLInputElement>("top-p"),
};
const buttons = {
  sample: element<HTMLButtonElement>("sample"),
  stop: element<HTMLButtonElement>("stop"),
  nine: element<HTMLButtonElement>("nine"),
  fill: element<HTMLButtonElement>("fill"),
  clear: element<HTMLButtonElement>("clear"),
};

let worker: Worker;
let config: Config;
let scales: Scale[] = []; // of the image that is shown
let hole = new Uint8Array(0); // (h, h), 1 where marked
let cell = 0; // the one pointed at
let runs = 0;
let running = false;
let finished: ((stopped: boolean) => void) | null = null;
let received: ((result: Scale) => void) | null = null;

const send = (request: Request) => worker.postMessage(request);
const say = (text: string) => (element("status").textContent = text);
const progress = (value: number) => (element<HTMLProgressElement>("progress").value = value);
const side = () => config.sides[config.sides.length - 1];
const className = (label: number) => config.class_names?.[label] ?? String(label);

function load(): void {
  worker?.terminate();
  worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }: MessageEvent<Answer>) => answered(data);
  worker.onerror = (event) => say(`The model could not be started: ${event.message}`);
  scales = [];
  enable(false);
  buttons.stop.disabled = true;
  say("Loading the model.");
  send({ kind: "load", folder: new URL(`models/${fields.model.value}/`, document.baseURI).href });
}

function answered(answer: Answer): void {
  if (answer.kind === "progress") progress(answer.done / answer.all);
  else if (answer.kind === "ready") ready(answer.config);
  else if (answer.kind === "scale" && answer.run === runs) received?.(answer.result);
  else if (answer.kind === "done" && answer.run === runs) finished?.(answer.stopped);
  else if (answer.kind === "window") showWindow(answer.seen);
  else if (answer.kind === "error") say(`Something went wrong: ${answer.message}`);
}

function ready(loaded: Config): void {
  config = loaded;
  hole = new Uint8Array(side() ** 2);
  overlay.width = overlay.height = side() * 16;
  fields.label.replaceChildren(
    ...Array.from({ length: config.num_classes }, (_, label) => new Option(className(label), String(label))),
  );
  fields.guidance.value = String(config.guidance_scale);
  fields["top-p"].value = String(config.top_p);
  readLink();
  enable(true);
  say("Ready.");
  void sample();
}

function enable(on: boolean): void {
  buttons.sample.disabled = buttons.nine.disabled = !on;
  buttons.stop.disabled = on;
  buttons.fill.disabled = buttons.clear.disabled = !on || !hole.some(Boolean) || scales.length < config.sides.length;
  for (const button of element("scales").querySelectorAll("button")) button.disabled = !on;
}

function settings(): Settings | null {
  if (!element<HTMLFormElement>("settings").reportValidity()) return null;
  return {
    label: Number(fields.label.value),
    seed: Number(fields.seed.value),
    guidance: Number(fields.guidance.value),
    topK: config.top_k,
    topP: Number(fields["top-p"].value),
  };
}

/** Run the loop over scales; false if it was stopped. */
async function run(chosen: Settings, start: Start, onScale: (result: Scale) => void): Promise<boolean> {
  running = true;
  enable(false);
  runs += 1;
  received = onScale;
  const done = new Promise<boolean>((resolve) => (finished = (stopped) => resolve(!stopped)));
  send({ kind: "sample", run: runs, settings: chosen, start });
  const whole = await done;
  running = false;
  enable(true);
  return whole;
}

async function sample(start: Start = { scale: 0, fHat: null }): Promise<void> {
  const chosen = settings();
  if (!chosen || running) return;
  writeLink();
  const begun = performance.now();
  scales = scales.slice(0, start.scale);
  showScales();
  const whole = await run(chosen, start, (result) => {
    scales.push(result);
    show(result);
    showScales();
    progress(scales.length / config.sides.length);
    const n = config.sides[result.scale];
    say(`Scale ${result.scale + 1} of ${config.sides.length}, ${n} x ${n} tokens, ${Math.round(result.milliseconds)} ms.`);
  });
  const name = className(chosen.label);
  const seconds = ((performance.now() - begun) / 1000).toFixed(1);
  say(whole ? `${name}, seed ${chosen.seed}, in ${seconds} s.` : `Stopped after ${scales.length} scales.`);
  image.setAttribute("aria-label", `${name}, seed ${chosen.seed}`);
  const save = element<HTMLAnchorElement>("save");
  save.hidden = false;
  save.href = image.toDataURL("image/png");
  save.download = `${name}-${chosen.seed}.png`;
}

function paint(canvas: HTMLCanvasElement, { pixels, side: size }: Scale): void {
  canvas.width = canvas.height = size;
  canvas.getContext("2d")!.putImageData(new ImageData(new Uint8ClampedArray(pixels), size), 0, 0);
}

function show(result: Scale): void {
  paint(image, result);
}

function thumbnail(result: Scale, caption: string, label: string, act: () => void): HTMLLIElement {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const canvas = document.createElement("canvas");
  paint(canvas, result);
  button.type = "button";
  button.setAttribute("aria-label", label);
  button.append(canvas, caption);
  button.onclick = act;
  item.append(button);
  return item;
}

function showScales(): void {
  const items = scales.map((result) => {
    const n = config.sides[result.scale];
    const caption = `${n} x ${n}, ${Math.round(result.milliseconds)} ms`;
    return thumbnail(result, caption, `Sample again from scale ${result.scale + 1}, ${caption}`, () => {
      fields.seed.value = String(Number(fields.seed.value) + 1);
      void sample({ scale: result.scale, fHat: result.scale ? scales[result.scale - 1].fHat : null });
    });
  });
  element("scales").replaceChildren(...items);
  if (running) enable(false);
}

async function nine(): Promise<void> {
  const chosen = settings();
  if (!chosen || running) return;
  element("grid").replaceChildren();
  for (let index = 0; index < 9; index++) {
    const seed = chosen.seed + index;
    let last: Scale | null = null;
    say(`Image ${index + 1} of 9.`);
    const whole = await run({ ...chosen, seed }, { scale: 0, fHat: null }, (result) => {
      last = result;
      progress((index + (result.scale + 1) / config.sides.length) / 9);
    });
    if (!whole || !last) return void say(`Stopped after ${index} images.`);
    const choose = () => {
      fields.seed.value = String(seed);
      void sample();
    };
    element("grid").append(thumbnail(last, `seed ${seed}`, `Show seed ${seed}`, choose));
  }
  say("Nine images; choose one to see its scales.");
}

function fill(): void {
  const target = scales[config.sides.length - 1]?.fHat;
  if (!target) return;
  const marked = hole;
  hole = new Uint8Array(marked.length);
  showMarks();
  void sample({ scale: 0, fHat: null, hole: marked, target });
}

// The overlay: marks, and the window of the cell that is pointed at.

function showMarks(seen?: Uint8Array): void {
  const context = overlay.getContext("2d")!;
  const size = overlay.width / side();
  context.clearRect(0, 0, overlay.width, overlay.height);
  const color = (test: (index: number) => boolean, style: string) => {
    context.fillStyle = style;
    for (let index = 0; index < hole.length; index++)
      if (test(index)) context.fillRect((index % side()) * size, Math.floor(index / side()) * size, size, size);
  };
  color((index) => hole[index] === 1, "rgb(220 40 120 / 55%)");
  if (!seen) return;
  color((index) => seen[index] === 1, "rgb(11 87 208 / 35%)");
  context.lineWidth = 3;
  context.strokeStyle = "#fff";
  const [x, y] = [(cell % side()) * size, Math.floor(cell / side()) * size];
  context.strokeRect(x, y, size, size);
  context.lineWidth = 1;
  context.strokeStyle = "#000";
  context.strokeRect(x, y, size, size);
}

function showWindow(seen: Uint8Array): void {
  showMarks(seen);
  if (running) return;
  const count = seen.reduce((sum, each) => sum + each, 0);
  say(`At the finest scale the token in row ${Math.floor(cell / side()) + 1}, column ${(cell % side()) + 1} sees ${count} of ${seen.length}.`);
}

function pointAt(event: PointerEvent): void {
  if (!config) return;
  const box = overlay.getBoundingClientRect();
  const place = (offset: number, size: number) =>
    Math.min(side() - 1, Math.max(0, Math.floor((offset / size) * side())));
  cell = place(event.clientY - box.top, box.height) * side() + place(event.clientX - box.left, box.width);
  const brush = document.querySelector<HTMLInputElement>("input[value=brush]")!.checked;
  if (!brush) return send({ kind: "window", scale: config.sides.length - 1, token: cell });
  if (event.buttons === 0) return;
  hole[cell] = 1;
  showMarks();
  if (!running) enable(true);
}

overlay.onpointermove = pointAt;
overlay.onpointerdown = (event) => {
  overlay.setPointerCapture(event.pointerId);
  pointAt(event);
};
overlay.onpointerleave = () => config && showMarks();
overlay.onkeydown = (event) => {
  if (!config) return;
  const moves: Record<string, number> = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -side(), ArrowDown: side() };
  if (event.key === " ") hole[cell] = 1 - hole[cell];
  else if (event.key in moves) cell = Math.min(hole.length - 1, Math.max(0, cell + moves[event.key]));
  else return;
  event.preventDefault();
  if (!running) enable(true);
  send({ kind: "window", scale: config.sides.length - 1, token: cell });
};

// A link holds the settings.

function writeLink(): void {
  const values = Object.entries(fields).map(([name, field]) => [name, field.value]);
  history.replaceState(null, "", `#${new URLSearchParams(values)}`);
}

function readLink(): void {
  const values = new URLSearchParams(location.hash.slice(1));
  if (values.get("model") !== fields.model.value) return;
  for (const [name, field] of Object.entries(fields)) field.value = values.get(name) ?? field.value;
}

element<HTMLFormElement>("settings").onsubmit = (event) => {
  event.preventDefault();
  void sample();
};
fields.model.onchange = load;
buttons.stop.onclick = () => send({ kind: "stop" });
buttons.nine.onclick = () => void nine();
buttons.fill.onclick = fill;
buttons.clear.onclick = () => {
  hole.fill(0);
  showMarks();
  enable(true);
};

const linked = new URLSearchParams(location.hash.slice(1)).get("model");
if (linked && [...fields.model.options].some(({ value }) => value === linked)) fields.model.value = linked;
load();
