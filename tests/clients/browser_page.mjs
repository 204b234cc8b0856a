// The page in headless Chromium: drops files, reads what it shows, takes screenshots.
// node browser_page.mjs CHROMIUM URL SCREENSHOTS FILE... > results.json
import path from "node:path";
import puppeteer from "puppeteer-core";

const [chromium, url, screenshots, ...files] = process.argv.slice(2);
const browser = await puppeteer.launch({
  executablePath: chromium,
  args: ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
});
const requests = [];
const logged = [];
const shown = [];
try {
  const page = await browser.newPage();
  page.on("request", (request) => requests.push(request.url()));
  page.on("console", (message) => logged.push(message.text()));
  page.on("pageerror", (error) => logged.push(String(error)));
  await page.setViewport({ width: 400, height: 800 });
  await page.goto(url);
  const textOf = (id) => page.$eval(`#${id}`, (node) => node.textContent);
  const settled = () =>
    page.waitForFunction(() => {
      const text = document.getElementById("status").textContent;
      return /^(Ready|Done|The model cannot)/.test(text);
    }, { timeout: 120000 });
  await settled();
  for (const [number, file] of files.entries()) {
    const input = await page.$("#file");
    await page.evaluate(() => (document.getElementById("status").textContent = "waiting"));
    if (number === 0) {
      // Dropped: the file's bytes come from an input that is not the page's.
      await page.evaluate(() => {
        const other = document.createElement("input");
        Object.assign(other, { type: "file", id: "other" });
        document.body.append(other);
      });
      await (await page.$("#other")).uploadFile(path.resolve(file));
      await page.evaluate(() => {
        const other = document.getElementById("other");
        const data = new DataTransfer();
        data.items.add(other.files[0]);
        other.remove();
        const given = { dataTransfer: data, bubbles: true, cancelable: true };
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", given));
      });
    } else {
      await input.uploadFile(path.resolve(file));
    }
    const start = Date.now();
    await settled();
    const milliseconds = Date.now() - start;
    const rows = (id) =>
      page.$$eval(`#${id} tbody tr`, (all) =>
        all.map((row) => ({
          cells: [...row.cells].map((cell) => cell.textContent),
          score: Number(row.dataset.score),
        })),
      );
    shown.push({
      status: await textOf("status"),
      error: await page.$eval("#error", (node) => (node.hidden ? null : node.textContent)),
      scores: await rows("scores"),
      events: await rows("events"),
      timeline: await page.$eval("#timeline", (node) => !node.hidden && !node.parentNode.hidden),
      milliseconds,
    });
    for (const width of [400, 1280]) {
      await page.setViewport({ width, height: 800 });
      await new Promise((resolve) => setTimeout(resolve, 100));
      const name = `${number}-${width}.png`;
      await page.screenshot({ path: path.join(screenshots, name), fullPage: true });
      const overflow = await page.evaluate(
        () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
      );
      shown.at(-1)[`overflow${width}`] = overflow;
    }
  }
} finally {
  await browser.close();
}
process.stdout.write(JSON.stringify({ shown, requests, logged }));
