// The live page, as a visitor has it: with eyes, with a keyboard alone, on a phone, in the dark.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { launch, open, request, startAlbumd } from "./support.mjs";

const PATIENCE = { timeout: 30000 };
let browser, albumd;

before(async () => {
	browser = await launch();
	albumd = await startAlbumd("--query-timeout", "30s", "--pool-size", "8");
});

after(async () => {
	await browser.close();
	await albumd.stop();
});

const branch = (page, target) => page.locator(".request", { hasText: target });
const row = (page, target) => page.locator("#cancelled tr", { hasText: target });

async function says(locator, text) {
	await locator.filter({ hasText: text }).first().waitFor(PATIENCE);
}

async function isLive(page) {
	await says(page.locator("#status"), "Live");
}

/* Presses Tab until the keyboard is there. */
async function tabTo(page, locator) {
	for (let i = 0; i < 30; i++) {
		if (await locator.evaluate((e) => e === document.activeElement)) return;
		await page.keyboard.press("Tab");
	}
	assert.fail("the keyboard does not get there");
}

test("three slow requests are three branches, and each ends its own way", async () => {
	const { page, complaints, refused, close } = await open(browser, albumd);
	await isLive(page);
	await page.locator("#empty").waitFor(PATIENCE);
	const left = request(albumd, "/albums?delay=40s&sort=title");
	const cancelled = request(albumd, "/albums?delay=40s&sort=artist");
	const late = request(albumd, "/albums?delay=40s&sort=price", { Prefer: "wait=15" });

	for (const sort of ["title", "artist", "price"]) {
		await says(branch(page, `sort=${sort}`), "running");
		await says(branch(page, `sort=${sort}`), `ORDER BY ${sort}`);
		await says(branch(page, `sort=${sort}`), " left");
	}
	assert.equal(await page.locator(".request").count(), 3);
	assert.equal(await page.locator(".connection").count(), 3);
	await says(page.locator("#l-busy"), "3");
	assert.match(await page.title(), /^3 alive/);

	left.leave();
	await says(branch(page, "sort=title"), "client left");
	await says(branch(page, "sort=title"), /PostgreSQL stopped in [\d.]+ m?s/);
	await says(row(page, "sort=title"), /client left\s*running\s*[\d.]+ m?s\s*kept/);
	await says(page.locator("#news"), "client left");

	const button = page.getByRole("button", { name: "Cancel GET /albums?delay=40s&sort=artist" });
	await tabTo(page, button);
	await page.keyboard.press("Enter");
	const answer = await cancelled.answer;
	assert.equal(answer.status, 503);
	assert.match(JSON.parse(answer.body).detail, /cancelled by an operator/);
	await says(branch(page, "sort=artist"), "cancelled by an operator");
	await says(row(page, "sort=artist"), "cancelled by an operator");
	assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")),
		"Cancel GET /albums?delay=40s&sort=price", "the keyboard goes on to the next branch");

	assert.equal((await late.answer).status, 504);
	await says(branch(page, "sort=price"), "deadline passed");
	await says(row(page, "sort=price"), /deadline passed\s*running/);
	assert.equal(await page.evaluate(() => document.activeElement.id), "alive-title", "nor is it lost at the end");

	await page.locator("#empty").waitFor(PATIENCE);
	assert.equal(await page.locator(".request").count(), 0);
	await says(page.locator("#f-cancels"), "every connection kept");
	assert.equal(await left.answer, "left");
	assert.deepEqual(complaints, []);
	assert.deepEqual(await refused(), []);
	await close();
});

test("who comes later sees what was cancelled before", async () => {
	const { page, close } = await open(browser, albumd);
	await says(row(page, "sort=title"), "client left");
	assert.equal(await page.locator("#news").textContent(), "", "old news are not read out");
	await close();
});

test("the policy lets nothing in that is not the page's own", async () => {
	const { page, close } = await open(browser, albumd);
	await isLive(page);
	await page.evaluate(() => {
		const script = document.createElement("script");
		try { script.textContent = "window.intruder = true"; } catch { /* trusted types refuse it already */ }
		document.body.append(script);
		const image = document.createElement("img");
		image.src = "http://127.0.0.1:1/x.png";
		document.body.append(image);
	});
	await page.waitForFunction(() => [/^img-src/, /^script|^require-trusted-types-for/]
		.every((directive) => window.refused.some((what) => directive.test(what))), null, PATIENCE);
	assert.equal(await page.evaluate(() => window.intruder), undefined);
	await close();
});

for (const [name, options] of Object.entries({
	"on a wide screen, light": { viewport: { width: 1280, height: 900 }, colorScheme: "light" },
	"on a wide screen, dark": { viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
	"on a phone, light": { viewport: { width: 360, height: 740 }, colorScheme: "light", deviceScaleFactor: 2, hasTouch: true, reducedMotion: "reduce" },
	"on the smallest phone, dark": { viewport: { width: 320, height: 568 }, colorScheme: "dark", hasTouch: true },
})) {
	test(`it can be read ${name}`, async () => {
		const long = request(albumd, `/albums?delay=40s&title=${"x".repeat(150)}`);
		const { page, complaints, refused, close } = await open(browser, albumd, options);
		await says(branch(page, "xxx"), "running");
		assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "it scrolls sideways");
		const contrasts = await page.evaluate(contrastOfAll);
		assert.ok(contrasts.length > 20);
		assert.deepEqual(contrasts.filter(([, contrast]) => contrast < 4.5), []);
		const light = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).every((c) => c > 127));
		assert.equal(light, options.colorScheme === "light");
		if (process.env.TETHER_SCREENSHOTS)
			writeFileSync(`${process.env.TETHER_SCREENSHOTS}/${name.replace(/\W+/g, "-")}.png`, await page.screenshot({ fullPage: true }));
		long.leave();
		await says(branch(page, "xxx"), "client left");
		assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "it scrolls sideways");
		assert.deepEqual(complaints, []);
		assert.deepEqual(await refused(), []);
		await close();
	});
}

/* In the page: each text with its contrast to what is behind it, as WCAG 2 reckons it. */
function contrastOfAll() {
	const parts = (color) => color.match(/[\d.]+/g).map(Number);
	const luminance = (color) => {
		const [r, g, b] = parts(color).map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const behind = (e) => {
		for (; e; e = e.parentElement) {
			const color = getComputedStyle(e).backgroundColor;
			if ((parts(color)[3] ?? 1) > 0.99) return color;
		}
		return "rgb(255, 255, 255)";
	};
	const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	const found = [];
	while (texts.nextNode()) {
		const e = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
		if (!text || !e.checkVisibility() || ["SCRIPT", "NOSCRIPT"].includes(e.tagName) || e.closest(".unseen, .gone")) continue;
		const [a, b] = [luminance(getComputedStyle(e).color), luminance(behind(e))].sort((x, y) => y - x);
		found.push([text, (a + 0.05) / (b + 0.05)]);
	}
	return found;
}

test("a server that goes and comes back is found again", async () => {
	const first = await startAlbumd();
	const { page, close } = await open(browser, first);
	await isLive(page);
	const gone = request(first, "/albums?delay=40s");
	await says(branch(page, "/albums?delay=40s"), "running");
	gone.leave();
	await says(row(page, "/albums?delay=40s"), "client left");
	await first.stop();
	await says(page.locator("#status"), "No connection");
	const second = await startAlbumd("--admin-listen", first.admin);
	await isLive(page);
	assert.equal(await row(page, "/albums?delay=40s").count(), 0, "what another one did is forgotten");
	await close();
	await second.stop();
});

test("where there is a token, the page asks for it", async () => {
	const file = `${process.env.TETHER_BUILD}/browser/token`;
	writeFileSync(file, "open-sesame\n", { mode: 0o600 });
	const guarded = await startAlbumd("--admin-token-file", file);
	const { page, refused, close } = await open(browser, guarded);
	const field = page.getByLabel("admin token");
	await field.waitFor(PATIENCE);
	assert.equal(await page.locator("main").isVisible(), false);
	await page.keyboard.type("wrong");
	await page.keyboard.press("Enter");
	await says(page.locator("#status"), "Locked");
	await field.fill("open-sesame");
	await page.keyboard.press("Enter");
	await isLive(page);

	const slow = request(guarded, "/albums?delay=40s");
	await page.getByRole("button", { name: "Cancel GET /albums?delay=40s" }).click(PATIENCE);
	assert.equal((await slow.answer).status, 503);
	assert.deepEqual(await refused(), []);
	await close();
	await guarded.stop();
});
