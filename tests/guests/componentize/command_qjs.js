// A command, as componentize-qjs makes one: without `console`, only with the interfaces themselves. It prints a line of
// stdin in upper case.
import stdin from "wasi:cli/stdin@0.2.10";
import stdout from "wasi:cli/stdout@0.2.10";

const PIECE = 4096;

export const run = {
  run() {
    const line = String.fromCharCode(...stdin.getStdin().blockingRead(PIECE));
    const text = `hello from QuickJS: ${line.toUpperCase()}`;
    stdout.getStdout().blockingWriteAndFlush(Uint8Array.from(text, (letter) => letter.charCodeAt(0)));
  },
};
