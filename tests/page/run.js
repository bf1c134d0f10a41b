// node run.js [--url URL] [--shots FOLDER] [--only TEXT]: checks the page in a browser, against the mock if no URL is given.

import { parseArgs } from "node:util";
import { run } from "./harness.js";
import { start } from "./mock.js";
import "./talk.js";
import "./list.js";
import "./failures.js";
import "./access.js";
import "./text.js";

const { values } = parseArgs({ options: { url: { type: "string" }, shots: { type: "string" }, only: { type: "string" } } });
const mock = values.url ? null : await start();
const good = await run({ url: new URL(values.url ?? mock.url).origin, folder: values.shots, mock, only: values.only });
mock?.close();
process.exit(good ? 0 : 1);
