// An albumd, its clients, and a browser that looks at it.
import { spawn } from "node:child_process";
import { once } from "node:events";
import http from "node:http";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const build = process.env.TETHER_BUILD;
const { chromium } = createRequire(`${build}/browser/`)("playwright-core");

/* Starts albumd; free ports unless flags say otherwise. Resolves once it serves. */
export async function startAlbumd(...flags) {
	const child = spawn(`${build}/albumd`, ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--allow-delay",
		"--log-format", "text", ...flags], { stdio: ["ignore", "pipe", "pipe"] });
	const albumd = { child, log: "" };
	process.on("exit", () => child.kill()); /* whatever happens */
	child.stderr.on("data", (data) => (albumd.log += data));
	for await (const line of createInterface({ input: child.stdout })) {
		const [, which, address] = /(admin|listening) on http:\/\/(\S+)/.exec(line) ?? [];
		if (which === "admin") albumd.admin = address;
		if (which === "listening") albumd.address = address;
		if (albumd.address) break;
	}
	if (!albumd.address) throw new Error(`albumd did not start: ${albumd.log}`);
	albumd.stop = async () => {
		if (child.exitCode !== null) return;
		child.kill("SIGTERM");
		await once(child, "exit");
	};
	return albumd;
}

/* A request on a connection of its own. answer: its { status, body }; or "left" after leave(), which closes it. */
export function request(albumd, target, headers = {}) {
	const sent = http.get(`http://${albumd.address}${target}`, { agent: false, headers });
	const answer = new Promise((resolve, reject) => {
		sent.on("response", (response) => {
			let body = "";
			response.setEncoding("utf8").on("data", (data) => (body += data));
			response.on("end", () => resolve({ status: response.statusCode, body }));
		});
		sent.on("error", (error) => (sent.destroyed ? resolve("left") : reject(error)));
	});
	return { answer, leave: () => sent.destroy() };
}

export function launch() {
	return chromium.launch({ executablePath: process.env.TETHER_CHROMIUM });
}

/*
 * Opens the live page. complaints gathers what a visitor's console would show, and what the page's policy refused;
 * lookAt is for a page that has been opened already.
 */
export async function open(browser, albumd, options = {}) {
	const context = await browser.newContext({ viewport: { width: 1100, height: 900 }, ...options });
	const page = await context.newPage();
	const complaints = [];
	page.on("console", (message) => {
		if (["error", "warning"].includes(message.type())) complaints.push(message.text());
	});
	page.on("pageerror", (error) => complaints.push(String(error)));
	await page.addInitScript(() => {
		window.refused = [];
		addEventListener("securitypolicyviolation", (event) => window.refused.push(`${event.effectiveDirective}: ${event.blockedURI}`));
	});
	await page.goto(`http://${albumd.admin}/requests`);
	return { page, complaints, refused: () => page.evaluate(() => window.refused), close: () => context.close() };
}
