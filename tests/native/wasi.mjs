// Runs a program for wasm32-wasi: node wasi.mjs PROGRAM.wasm FILE..., of which it can read the files.
import { readFile } from "node:fs/promises";
import { basename, dirname } from "node:path";
import { WASI } from "node:wasi";

const [program, ...files] = process.argv.slice(2);
const preopens = Object.fromEntries(files.map((file, n) => [`/${n}`, dirname(file)]));
const args = [basename(program), ...files.map((file, n) => `/${n}/${basename(file)}`)];
const wasi = new WASI({ version: "preview1", args, preopens });
const module = await WebAssembly.compile(await readFile(program));
const instance = await WebAssembly.instantiate(module, wasi.getImportObject());
process.exitCode = wasi.start(instance);
