// The microphone of the page: node browser_microphone.mjs CHROMIUM URL MICROPHONE FILE > results.json
// MICROPHONE: `plays` (it plays FILE again and again), `refused` by the user, `missing`, or `insecure`
// (the page comes from http:// under a name that is not localhost).
import path from "node:path";
import { expectNews, openBrowser, openPage, settled, shownBy } from "./browser.mjs";

const SECONDS = 2.5; // to be recorded at least
const NAME = "page.test";
const [chromium, address, microphone, file] = process.argv.slice(2);
const url = microphone === "insecure" ? address.replace("127.0.0.1", NAME) : address;
const flags = {
  plays: [
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    `--use-file-for-fake-audio-capture=${path.resolve(file)}`,
  ],
  refused: ["--use-fake-device-for-media-stream"],
  missing: ["--use-fake-ui-for-media-stream"],
  insecure: [`--host-resolver-rules=MAP ${NAME} 127.0.0.1`],
};
const browser = await openBrowser(chromium, flags[microphone]);
const result = {};
try {
  if (microphone === "refused") {
    await browser.defaultBrowserContext().overridePermissions(new URL(url).origin, []);
  }
  const { page, requests, logged } = await openPage(browser, url);
  await page.click("#record");
  if (microphone === "plays") {
    await page.waitForFunction(
      (seconds) => parseFloat(document.getElementById("elapsed").textContent) > seconds,
      {},
      SECONDS,
    );
    await expectNews(page);
    await page.click("#record");
    await settled(page);
  } else {
    await page.waitForFunction(() => !document.getElementById("error").hidden);
  }
  result.first = await shownBy(page);
  result.button = await page.$eval("#record", (node) => node.textContent);
  await expectNews(page);
  await (await page.$("#file")).uploadFile(path.resolve(file));
  await settled(page);
  result.file = await shownBy(page);
  Object.assign(result, { requests, logged });
} finally {
  await browser.close();
}
process.stdout.write(JSON.stringify(result));
