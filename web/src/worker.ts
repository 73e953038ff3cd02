/** The model off the page's own thread, so that a click is answered while it samples. */

import { Config, Model, Scale, Settings, Start } from "./model";

export type Request =
  | { kind: "load"; folder: string }
  | { kind: "sample"; run: number; settings: Settings; start: Start }
  | { kind: "window"; scale: number; token: number }
  | { kind: "stop" };

export type Answer =
  | { kind: "progress"; done: number; all: number }
  | { kind: "ready"; config: Config }
  | { kind: "scale"; run: number; result: Scale }
  | { kind: "done"; run: number; stopped: boolean }
  | { kind: "window"; seen: Uint8Array }
  | { kind: "error"; message: string };

let model: Model | null = null;
let current = 0;
const answer = (message: Answer) => postMessage(message);

onmessage = async ({ data }: MessageEvent<Request>) => {
  try {
    if (data.kind === "load") {
      model = await Model.load(data.folder, (done, all) => answer({ kind: "progress", done, all }));
      answer({ kind: "ready", config: model.config });
    } else if (data.kind === "stop") {
      current = -1;
    } else if (model && data.kind === "window") {
      answer({ kind: "window", seen: model.window(data.scale, data.token) });
    } else if (model && data.kind === "sample") {
      const { run } = data;
      current = run;
      for await (const result of model.sample(data.settings, data.start, () => current !== run)) {
        if (current === run) answer({ kind: "scale", run, result });
      }
      answer({ kind: "done", run, stopped: current !== run });
    }
  } catch (error) {
    answer({ kind: "error", message: error instanceof Error ? error.message : String(error) });
  }
};
