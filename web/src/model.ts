/** A model exported by `mvar export --onnx`, and the loop over its scales. */

import * as ort from "onnxruntime-web/wasm";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import { Filters, sampleCode } from "./codes";
import { uniformNumbers } from "./random";

ort.env.wasm.wasmPaths = { wasm };
// Threads share memory, which a browser allows only to isolated pages.
ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

// A module with one instruction on vectors.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

type Graph = "step" | "add" | "next" | "decode";
type Table = Float32Array | Uint8Array;

export interface Config {
  sides: number[];
  z_channels: number;
  vocab_size: number;
  num_classes: number;
  class_names: string[] | null;
  guidance_scale: number;
  guidance_schedule: "linear" | "constant" | "cosine";
  top_k: number;
  top_p: number;
}

export interface Settings extends Filters {
  label: number;
  seed: number;
  guidance: number;
}

/** The image after a scale. */
export interface Scale {
  scale: number;
  codes: Uint32Array; // of this scale
  fHat: Float32Array; // (z, h, h)
  pixels: Uint8ClampedArray; // (R, R, 4)
  side: number; // R
  milliseconds: number;
}

/** What a call goes on from. */
export interface Start {
  scale: number; // the first one sampled
  fHat: Float32Array | null; // after the scale before it
  hole?: Uint8Array; // (h, h), 1 where the image is sampled
  target?: Float32Array; // (z, h, h), of the image outside the hole
}

const SCHEDULES = {
  linear: (progress: number) => progress,
  constant: () => 1,
  cosine: (progress: number) => (1 - Math.cos(Math.PI * progress)) / 2,
};

export class Model {
  readonly offsets: number[];
  readonly length: number;

  private constructor(
    readonly config: Config,
    private readonly convolutions: number[],
    private readonly tables: Map<string, Table>,
    private readonly sessions: Record<Graph, ort.InferenceSession>,
  ) {
    let length = 0;
    this.offsets = config.sides.map((side) => (length += side * side) - side * side);
    this.length = length;
  }

  /** Load the export in a folder, such as "models/emoji/". */
  static async load(folder: string, progress: (done: number, all: number) => void): Promise<Model> {
    if (!WebAssembly.validate(Uint8Array.from(SIMD)))
      throw new Error("this browser has no WebAssembly SIMD; a browser of 2023 or later has");
    const graphs: Graph[] = ["step", "add", "next", "decode"];
    const files = ["config.json", "tables.safetensors", ...graphs.map((name) => `${name}.onnx`)];
    const bytes: ArrayBuffer[] = [];
    for (const file of files) {
      const response = await fetch(folder + file);
      if (!response.ok) throw new Error(`${file} of the model is missing (${response.status})`);
      bytes.push(await response.arrayBuffer());
      progress(bytes.length, files.length + graphs.length);
    }
    const { model, vqvae } = JSON.parse(new TextDecoder().decode(bytes[0]));
    const sessions = {} as Record<Graph, ort.InferenceSession>;
    for (const [index, name] of graphs.entries()) {
      sessions[name] = await ort.InferenceSession.create(new Uint8Array(bytes[index + 2]));
      progress(files.length + index + 1, files.length + graphs.length);
    }
    return new Model(model, vqvae.residual_convolution_of_scale, readTables(bytes[1]), sessions);
  }

  /** Return which tokens of a scale one of them sees: (n,). */
  window(scale: number, token: number): Uint8Array {
    const start = this.offsets[scale];
    const row = (start + token) * this.length + start;
    return this.tables.get("mask")!.slice(row, row + this.config.sides[scale] ** 2) as Uint8Array;
  }

  /** Sample scale by scale; `ended` is asked between scales. */
  async *sample(settings: Settings, start: Start, ended: () => boolean): AsyncGenerator<Scale> {
    const { sides, z_channels: z, vocab_size: vocabulary, num_classes: unconditional } = this.config;
    const h = sides[sides.length - 1];
    const uniform = uniformNumbers(settings.seed, this.length);
    let fHat: Float32Array = start.fHat?.slice() ?? new Float32Array(z * h * h);
    for (let scale = start.scale; scale < sides.length && !ended(); scale++) {
      const begun = performance.now();
      const tokens = sides[scale] ** 2;
      const weight = this.guidance(settings.guidance, scale);
      const inputs = scale ? await this.next(fHat, scale) : new Float32Array(z);
      const labels = weight ? [settings.label, unconditional] : [settings.label];
      const logits = await this.step(labels, inputs, scale);
      const codes = new Uint32Array(tokens);
      const row = new Float32Array(vocabulary);
      for (let token = 0; token < tokens; token++) {
        for (let code = 0; code < vocabulary; code++) {
          const conditional = logits[token * vocabulary + code];
          const other = weight ? logits[(tokens + token) * vocabulary + code] : 0;
          row[code] = Math.fround((1 + weight) * conditional) - Math.fround(weight * other);
        }
        codes[token] = sampleCode(row, uniform[this.offsets[scale] + token], settings);
      }
      if (start.hole && start.target) this.keep(codes, fHat, scale, start.hole, start.target);
      const added = await this.add(codes, scale);
      fHat = fHat.map((value, index) => value + added[index]);
      const pixels = await this.decode(fHat);
      const milliseconds = performance.now() - begun;
      yield { scale, codes, fHat, pixels, side: Math.sqrt(pixels.length / 4), milliseconds };
      // Messages that came meanwhile, such as to stop, are read now.
      await new Promise((resolve) => setTimeout(resolve));
    }
  }

  private guidance(strength: number, scale: number): number {
    const { guidance_schedule: name, sides } = this.config;
    // As released: with the linear schedule, 1 skips the unconditional pass.
    if (strength === 0 || (name === "linear" && strength === 1)) return 0;
    return strength * SCHEDULES[name](scale / Math.max(sides.length - 1, 1));
  }

  private async step(labels: number[], inputs: Float32Array, scale: number): Promise<Float32Array> {
    const tokens = this.config.sides[scale] ** 2;
    const start = this.offsets[scale];
    const all = this.tables.get("mask") as Uint8Array;
    const mask = new Uint8Array(tokens * tokens);
    for (let row = 0; row < tokens; row++) {
      const from = (start + row) * this.length + start;
      mask.set(all.subarray(from, from + tokens), row * tokens);
    }
    const both = new Float32Array(labels.length * inputs.length);
    labels.forEach((_, index) => both.set(inputs, index * inputs.length));
    const places = BigInt64Array.from({ length: tokens }, (_, index) => BigInt(start + index));
    return this.run("step", {
      labels: new ort.Tensor("int64", BigInt64Array.from(labels.map(BigInt)), [labels.length]),
      inputs: new ort.Tensor("float32", both, [labels.length, tokens, this.config.z_channels]),
      places: new ort.Tensor("int64", places, [tokens]),
      mask: new ort.Tensor("bool", mask, [tokens, tokens]),
    });
  }

  private next(fHat: Float32Array, scale: number): Promise<Float32Array> {
    const h = this.config.sides[this.config.sides.length - 1];
    const resize = this.tables.get(`down.${scale}`) as Float32Array;
    return this.run("next", {
      f_hat: new ort.Tensor("float32", fHat, [1, this.config.z_channels, h, h]),
      resize: new ort.Tensor("float32", resize, [h * h, this.config.sides[scale] ** 2]),
    });
  }

  private add(codes: Uint32Array, scale: number): Promise<Float32Array> {
    const { sides, z_channels: z } = this.config;
    const codebook = this.tables.get("codebook") as Float32Array;
    const vectors = new Float32Array(codes.length * z);
    codes.forEach((code, token) => vectors.set(codebook.subarray(code * z, (code + 1) * z), token * z));
    const resize = this.tables.get(`up.${scale}`) as Float32Array;
    return this.run("add", {
      vectors: new ort.Tensor("float32", vectors, [1, codes.length, z]),
      resize: new ort.Tensor("float32", resize, [codes.length, sides[sides.length - 1] ** 2]),
      convolution: new ort.Tensor("int64", BigInt64Array.of(BigInt(this.convolutions[scale])), []),
    });
  }

  private async decode(fHat: Float32Array): Promise<Uint8ClampedArray> {
    const h = this.config.sides[this.config.sides.length - 1];
    const input = new ort.Tensor("float32", fHat, [1, this.config.z_channels, h, h]);
    const values = await this.run("decode", { f_hat: input });
    const count = values.length / 3;
    const pixels = new Uint8ClampedArray(count * 4).fill(255);
    for (let index = 0; index < count; index++) {
      for (let channel = 0; channel < 3; channel++) {
        const value = (values[channel * count + index] + 1) * 127.5;
        pixels[index * 4 + channel] = value; // clamped and rounded by the array
      }
    }
    return pixels;
  }

  private async run(graph: Graph, inputs: Record<string, ort.Tensor>): Promise<Float32Array> {
    const { out } = await this.sessions[graph].run(inputs);
    return out.data as Float32Array;
  }

  /**
   * Replace the codes (n,) of a scale outside the hole by the nearest ones to what f_hat lacks there.
   *
   * A cell is kept where none of it lies in the hole, as by `ClosedRule` of mvar_models/sampling/inpainting.py.
   */
  private keep(codes: Uint32Array, fHat: Float32Array, scale: number, hole: Uint8Array, target: Float32Array): void {
    const { sides, z_channels: z, vocab_size: vocabulary } = this.config;
    const side = sides[scale];
    const h = sides[sides.length - 1];
    const resize = this.tables.get(`down.${scale}`) as Float32Array;
    const codebook = this.tables.get("codebook") as Float32Array;
    for (let token = 0; token < codes.length; token++) {
      const [y, x] = [Math.floor(token / side), token % side];
      const rows = [Math.floor((y * h) / side), Math.ceil(((y + 1) * h) / side)];
      const columns = [Math.floor((x * h) / side), Math.ceil(((x + 1) * h) / side)];
      let sampled = false;
      for (let row = rows[0]; row < rows[1]; row++)
        for (let column = columns[0]; column < columns[1]; column++) sampled ||= hole[row * h + column] === 1;
      if (sampled) continue;
      const wanted = new Float64Array(z);
      for (let channel = 0; channel < z; channel++)
        for (let cell = 0; cell < h * h; cell++) {
          const index = channel * h * h + cell;
          wanted[channel] += (target[index] - fHat[index]) * resize[cell * codes.length + token];
        }
      let least = Infinity;
      for (let code = 0; code < vocabulary; code++) {
        let distance = 0;
        for (let channel = 0; channel < z; channel++)
          distance += (codebook[code * z + channel] - wanted[channel]) ** 2;
        if (distance < least) [least, codes[token]] = [distance, code];
      }
    }
  }
}

/** Read the tensors of a safetensors file. */
function readTables(buffer: ArrayBuffer): Map<string, Table> {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const header: Record<string, { dtype: string; data_offsets: [number, number] }> = JSON.parse(
    new TextDecoder().decode(new Uint8Array(buffer, 8, size)),
  );
  const tables = new Map<string, Table>();
  for (const [name, { dtype, data_offsets: place }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const bytes = buffer.slice(8 + size + place[0], 8 + size + place[1]); // aligned, unlike in the file
    tables.set(name, dtype === "F32" ? new Float32Array(bytes) : new Uint8Array(bytes));
  }
  return tables;
}
