// What the scripts that open the page have in common. They wait for what the page shows, for as long
// as a busy machine may need.
import puppeteer from "puppeteer-core";

const PATIENCE = 1200000; // ms

export function openBrowser(chromium, args = []) {
  return puppeteer.launch({
    executablePath: chromium,
    args: ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", ...args],
    timeout: PATIENCE,
    protocolTimeout: PATIENCE,
  });
}

// The page with its model loaded, and what it requests and logs from then on.
export async function openPage(browser, url) {
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  const requests = [];
  const logged = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("console", (message) => logged.push(message.text()));
  page.on("pageerror", (error) => logged.push(String(error)));
  await page.setViewport({ width: 400, height: 800 });
  await page.goto(url);
  await settled(page);
  return { page, requests, logged };
}

// Waits until the page has nothing more to do.
export function settled(page) {
  return page.waitForFunction(() =>
    /^(Ready|Done|The model cannot)/.test(document.getElementById("status").textContent),
  );
}

// Makes the status one that the page itself does not have, so that `settled` waits for the next.
export function expectNews(page) {
  return page.evaluate(() => (document.getElementById("status").textContent = "waiting"));
}

// Waits until the spectrogram has the width of the window.
export function drawn(page) {
  return page.waitForFunction(() => {
    const canvas = document.getElementById("spectrogram");
    return canvas.width === Math.floor(canvas.clientWidth * (window.devicePixelRatio || 1));
  });
}

// What the page shows of a recording.
export async function shownBy(page) {
  const rows = (id) =>
    page.$$eval(`#${id} tbody tr`, (all) =>
      all.map((row) => ({
        cells: [...row.cells].map((cell) => cell.textContent),
        score: Number(row.dataset.score),
      })),
    );
  return {
    status: await page.$eval("#status", (node) => node.textContent),
    error: await page.$eval("#error", (node) => (node.hidden ? null : node.textContent)),
    scores: await rows("scores"),
    events: await rows("events"),
    timeline: await page.$eval("#timeline", (node) => !node.hidden && !node.parentNode.hidden),
  };
}
