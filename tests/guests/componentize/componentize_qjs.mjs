// componentize_qjs.mjs SOURCE WIT WORLD OUTPUT: a component of a JavaScript module, by QuickJS.
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";

const { componentize } = createRequire(import.meta.url)("componentize-qjs");
const [jsPath, witPath, world, output] = process.argv.slice(2);
const { component } = await componentize({ jsSource: await readFile(jsPath, "utf8"), witPath, world, sync: true });
await writeFile(output, component);
