// What failed and why, and the line that is counted.
import { inspect } from "node:util";

export default async function* report(events) {
	let passed = 0, failed = 0;
	for await (const { type, data } of events) {
		if (type === "test:pass" || type === "test:fail") {
			const fine = type === "test:pass";
			fine ? passed++ : failed++;
			yield `${fine ? "passed" : "FAILED"}  ${data.name} (${Math.round(data.details.duration_ms)} ms)\n`;
			if (!fine) yield `${inspect(data.details.error.cause ?? data.details.error)}\n`;
		} else if (type === "test:diagnostic" && !/^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) /.test(data.message)) {
			yield `${data.message}\n`;
		}
	}
	if (failed) yield "failing: browser\n";
	yield `${passed} passed, ${failed} failed\n`;
}
