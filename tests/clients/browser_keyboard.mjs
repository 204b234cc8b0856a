// The page by keyboard alone, with a file and with a microphone that plays a file.
// node browser_keyboard.mjs CHROMIUM URL SCREENSHOTS FILE > results.json
// The keys go through the DevTools protocol (Input.dispatchKeyEvent).
import path from "node:path";
import { expectNews, openBrowser, openPage, settled, shownBy } from "./browser.mjs";

const MOST_TABS = 40;
const MOST_TRIES = 20;
const [chromium, url, screenshots, file] = process.argv.slice(2);
const browser = await openBrowser(chromium, [
  "--use-fake-device-for-media-stream",
  "--use-fake-ui-for-media-stream",
  `--use-file-for-fake-audio-capture=${path.resolve(file)}`,
]);
const result = {};
try {
  const { page, logged } = await openPage(browser, url);
  // Which element has the focus, and the line around it: its width and colour. That of the hidden input for
  // files is around its label.
  const focused = () =>
    page.evaluate(() => {
      const node = document.activeElement;
      const style = getComputedStyle(node.id === "file" ? node.labels[0] : node);
      const outline = style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
      return { id: node.id || node.localName, outline, colour: style.outlineColor };
    });
  // Presses Tab until an element has the focus; gives all that had it on the way.
  const tabTo = async (id) => {
    const way = [];
    while (way.at(-1)?.id !== id) {
      if (way.length === MOST_TABS) throw new Error(`no way to ${id}: ${JSON.stringify(way)}`);
      await page.keyboard.press("Tab");
      way.push(await focused());
    }
    return way;
  };

  // A browser that has just closed a dialog may not take the key: it is pressed again then.
  const chooserBy = async (key) => {
    for (let tries = 0; tries < MOST_TRIES; tries++) {
      const opened = page.waitForFileChooser({ timeout: 5000 }).catch(() => null);
      await page.keyboard.press(key);
      const chooser = await opened;
      if (chooser) return chooser;
    }
    throw new Error(`${key} opens no dialog for files`);
  };

  result.file = await tabTo("file");
  await page.screenshot({ path: path.join(screenshots, "keyboard-file.png") });
  for (const key of ["Space", "Enter"]) {
    const chooser = await chooserBy(key);
    if (key === "Space") {
      await chooser.cancel();
    } else {
      await expectNews(page);
      await chooser.accept([path.resolve(file)]);
      await settled(page);
    }
  }
  result.chosen = await shownBy(page);
  result.results = await tabTo("threshold");
  await page.screenshot({ path: path.join(screenshots, "keyboard-results.png") });
  const threshold = () => page.$eval("#shown", (node) => node.textContent);
  result.thresholds = [await threshold()];
  await page.keyboard.press("ArrowLeft");
  result.thresholds.push(await threshold());

  // The tree that screen readers get.
  const session = await page.createCDPSession();
  const { nodes } = await session.send("Accessibility.getFullAXTree");
  const byId = new Map(nodes.map((node) => [node.nodeId, node]));
  // The nearest table above a node, by its name.
  const tableOf = (node) => {
    if (!node) return null;
    return node.role?.value === "table" ? node.name?.value : tableOf(byId.get(node.parentId));
  };
  result.tree = nodes
    .filter((node) => !node.ignored)
    .map((node) => ({ role: node.role.value, name: node.name?.value ?? "", table: tableOf(node) }));

  await page.reload();
  await settled(page);
  result.record = await tabTo("record");
  await page.screenshot({ path: path.join(screenshots, "keyboard-record.png") });
  await page.keyboard.press("Space");
  await page.waitForFunction(() => parseFloat(document.getElementById("elapsed").textContent) > 1);
  result.recording = await page.$eval("#record", (node) => node.textContent);
  await expectNews(page);
  await page.keyboard.press("Enter");
  await settled(page);
  result.recorded = await shownBy(page);
  result.afterwards = await focused();
  result.logged = logged;
} finally {
  await browser.close();
}
process.stdout.write(JSON.stringify(result));
