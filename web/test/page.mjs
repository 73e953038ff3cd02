// The built page in headless Chromium, without a network: node test/page.mjs EXPECTED.json SCREENSHOTS
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join, normalize } from "node:path";
import { chromium } from "playwright-core";

const [expectedFile, shots] = process.argv.slice(2);
const expected = JSON.parse(readFileSync(expectedFile, "utf8"));
const types = { html: "text/html", js: "text/javascript", css: "text/css", wasm: "application/wasm", json: "application/json" };
const dist = new URL("../dist/", import.meta.url).pathname;
mkdirSync(shots, { recursive: true });

const server = createServer((request, response) => {
  const path = normalize(new URL(request.url, "http://localhost").pathname).replace(/\/$/, "/index.html");
  try {
    const body = readFileSync(join(dist, path));
    response.writeHead(200, { "content-type": types[path.split(".").pop()] ?? "application/octet-stream" }).end(body);
  } catch {
    response.writeHead(404).end();
  }
}).listen(0, "127.0.0.1");
await new Promise((resolve) => server.once("listening", resolve));
const home = `http://127.0.0.1:${server.address().port}/`;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});

async function open(hash = "", options = {}) {
  const page = await browser.newPage({ viewport: { width: 1200, height: 900 }, ...options });
  page.problems = [];
  page.on("console", (message) => message.type() === "error" && page.problems.push(message.text()));
  page.on("pageerror", (error) => page.problems.push(error.message));
  page.on("request", (request) => {
    const local = request.url().startsWith(home) || /^(data|blob):/.test(request.url());
    if (!local) page.problems.push(`asked for ${request.url()}`);
  });
  await page.goto(home + hash);
  await finished(page);
  return page;
}

const finished = (page) =>
  page.waitForFunction(() => / in [\d.]+ s\./.test(document.getElementById("status").textContent), undefined, {
    timeout: 60000,
  });

async function sampled(page, act) {
  await page.evaluate(() => (document.getElementById("status").textContent = ""));
  await act();
  await finished(page);
}

const pixelsOf = (page) =>
  page.evaluate(() => {
    const canvas = document.getElementById("image");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return [...data].filter((_, index) => index % 4 < 3);
  });

async function test(name, body) {
  const begun = Date.now();
  await body();
  console.log(`ok - ${name} (${((Date.now() - begun) / 1000).toFixed(1)} s)`);
}

let passed = 0;
try {
  for (const { model, label, seed, pixels } of expected)
    await test(`${model}, class ${label}, seed ${seed} is Python's image`, async () => {
      const page = await open(`#model=${model}&label=${label}&seed=${seed}`);
      const seen = await pixelsOf(page);
      assert.equal(seen.length, pixels.length);
      const far = seen.filter((value, index) => Math.abs(value - pixels[index]) > 2).length;
      assert.equal(far, 0, `${far} of ${seen.length} values differ by more than 2`);
      assert.deepEqual(page.problems, []);
      console.log(`  ${await page.textContent("#status")}`);
      await page.close();
      passed++;
    });

  await test("a link holds the settings, and a scale is sampled again", async () => {
    const page = await open("#model=digits&label=7&seed=2&guidance=2&top-p=0.9");
    assert.equal(await page.inputValue("#guidance"), "2");
    const before = await pixelsOf(page);
    await sampled(page, () => page.click("#scales li:nth-child(4) button"));
    assert.equal(await page.inputValue("#seed"), "3");
    assert.match(page.url(), /seed=3/);
    assert.notDeepEqual(await pixelsOf(page), before);
    assert.equal(await page.locator("#scales li").count(), 6);
    assert.deepEqual(page.problems, []);
    await page.close();
    passed++;
  });

  await test("marked cells are filled, others stay nearly as they were", async () => {
    const page = await open("#model=emoji&label=6&seed=3");
    const before = await pixelsOf(page);
    await page.screenshot({ path: join(shots, "desktop.png"), fullPage: true });
    await page.focus("#overlay");
    for (let row = 0; row < 6; row++) {
      for (let column = 0; column < 5; column++) {
        await page.keyboard.press("Space");
        await page.keyboard.press(row % 2 ? "ArrowLeft" : "ArrowRight");
      }
      await page.keyboard.press("Space");
      await page.keyboard.press("ArrowDown");
    }
    await page.screenshot({ path: join(shots, "marked.png"), fullPage: true });
    await page.selectOption("#label", "2");
    await sampled(page, () => page.click("#fill"));
    const after = await pixelsOf(page);
    await page.screenshot({ path: join(shots, "filled.png"), fullPage: true });
    const error = (inside) => {
      let [sum, count] = [0, 0];
      for (let y = 0; y < 64; y++)
        for (let x = 0; x < 64; x++) {
          if ((y < 24 && x < 24) !== inside) continue;
          if (!inside && y < 32 && x < 32) continue; // the decoder sees some pixels further than a cell
          for (let c = 0; c < 3; c++, count++) sum += Math.abs(after[(y * 64 + x) * 3 + c] - before[(y * 64 + x) * 3 + c]);
        }
      return sum / count;
    };
    console.log(`  mean change inside ${error(true).toFixed(1)}, outside ${error(false).toFixed(1)}`);
    assert.ok(error(true) > 2 * error(false) && error(false) < 12);
    assert.deepEqual(page.problems, []);
    await page.close();
    passed++;
  });

  await test("a click while it samples is answered", async () => {
    const page = await open("#model=emoji&label=1&seed=0", { colorScheme: "dark" });
    await page.click("#nine");
    await page.waitForSelector("#grid li");
    await page.screenshot({ path: join(shots, "dark-sampling.png"), fullPage: true });
    const begun = Date.now();
    await page.click("#stop");
    await page.waitForFunction(() => /^Stopped/.test(document.getElementById("status").textContent));
    console.log(`  stopped after ${Date.now() - begun} ms`);
    assert.ok((await page.locator("#grid li").count()) < 9);
    assert.deepEqual(page.problems, []);
    await page.close();
    passed++;
  });

  await test("the window of a token is shown, also on a phone", async () => {
    const page = await open("#model=emoji&label=8&seed=4", { viewport: { width: 390, height: 844 } });
    await page.hover("#overlay", { position: { x: 3, y: 3 } });
    await page.waitForFunction(() => /sees 49 of 256/.test(document.getElementById("status").textContent));
    await page.screenshot({ path: join(shots, "phone.png"), fullPage: true });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= 390, `${wide} px wide`);
    assert.ok((await page.getAttribute("#save", "href")).startsWith("data:image/png"));
    assert.deepEqual(page.problems, []);
    await page.close();
    passed++;
  });
} finally {
  await browser.close();
  server.close();
}
console.log(`${passed} passed, 0 failed`);
