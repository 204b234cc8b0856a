// The page in headless Chromium: drops files, reads what it shows, takes screenshots.
// node browser_page.mjs CHROMIUM URL SCREENSHOTS [FILE...] > results.json
import path from "node:path";
import { drawn, expectNews, openBrowser, openPage, settled, shownBy } from "./browser.mjs";

const [chromium, url, screenshots, ...files] = process.argv.slice(2);
const browser = await openBrowser(chromium);
const shown = [];
let opened, atFirst;
try {
  opened = await openPage(browser, url);
  const { page } = opened;
  atFirst = await shownBy(page);
  for (const [number, file] of files.entries()) {
    await expectNews(page);
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
      await (await page.$("#file")).uploadFile(path.resolve(file));
    }
    await settled(page);
    shown.push(await shownBy(page));
    for (const width of [400, 1280]) {
      await page.setViewport({ width, height: 800 });
      if (shown.at(-1).error === null) await drawn(page);
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
const { requests, logged } = opened;
process.stdout.write(JSON.stringify({ atFirst, shown, requests, logged }));
