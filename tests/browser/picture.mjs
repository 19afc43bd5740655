// The picture of the live page in README.md, from a real run: `make demo`.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { launch, open, request, startAlbumd } from "./support.mjs";

const folder = fileURLToPath(new URL("../../.pictures/", import.meta.url));
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
const albumd = await startAlbumd("--listen", "127.0.0.1:8080", "--pool-size", "8");
const browser = await launch();
const looks = { light: null, dark: null };
for (const colorScheme of Object.keys(looks))
	looks[colorScheme] = await open(browser, albumd, { colorScheme, reducedMotion: "reduce", viewport: { width: 1040, height: 1190 }, deviceScaleFactor: 2 });

async function leaves(target, seconds) {
	const slow = request(albumd, target);
	await wait(seconds);
	slow.leave();
}

/* An afternoon in half a minute: clients that come, wait, and leave; a crowd; an operator; deadlines. */
const day = [];
for (let i = 0; i < 24; i++) {
	if (i % 3 === 0) day.push(leaves("/albums?delay=20s&limit=20", 1.5 + (i % 5)));
	if (i === 8 || i === 15) for (let n = 0; n < 11; n++) day.push(request(albumd, "/albums?delay=2s").answer);
	if (i === 9) day.push(leaves("/albums/7", 0.4));
	if (i === 12) day.push(request(albumd, "/albums?delay=30s&sort=title", { Prefer: "wait=3" }).answer);
	if (i === 19) {
		day.push(request(albumd, "/albums?delay=30s&sort=-price").answer);
		await looks.light.page.getByRole("button", { name: "sort=-price" }).dispatchEvent("click");
	}
	await wait(1);
}
await Promise.all(day);
await wait(2.5);
const first = request(albumd, "/albums?delay=30s");
await wait(1.2);
request(albumd, "/albums?delay=30s&title=Blue");
await wait(0.9);
request(albumd, "/albums?delay=12s&sort=-price&limit=10");
await wait(0.8);
first.leave();
/* Both at the same moment: that of a branch that has just been cut. */
await Promise.all(Object.entries(looks).map(async ([name, { page }]) => {
	await page.locator(".gone").waitFor();
	await page.screenshot({ path: `${folder}requests-${name}.png` });
}));
for (const name of Object.keys(looks)) {
	const { status } = spawnSync("pngquant", ["--force", "--ext", ".png", "--speed", "1", "48", `${folder}requests-${name}.png`],
		{ stdio: "inherit" });
	if (status !== 0) throw new Error("pngquant could not make the picture small");
}
await browser.close();
await albumd.stop();
