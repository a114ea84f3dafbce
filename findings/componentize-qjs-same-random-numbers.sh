#!/usr/bin/env bash
# componentize-qjs 0.4.5 (npm), Math.random() of a component in JavaScript; the host is wasmtime 50.0.1 (PyPI).
#
# Behaviour: every instance of a component returns the same sequence from Math.random(). QuickJS seeds the generator
# when its context is made. componentize-qjs makes the context at build time and stores its memory in the component, so
# the seed is part of the component. A host that makes an instance for each request gives every request the same
# "random" identifiers. Date.now() is the time of the call, but a date in a variable of the module is the time of the
# build.
#
# Output seen:
#   two instances, Math.random(): equal
#   two numbers of one instance: differ
#   a date of the module is older than the instance: yes
#
# Needs: node with npm, python3 with pip and venv, on x86_64. Leaves nothing behind.
set -euo pipefail

componentize_qjs=0.4.5
wasmtime=50.0.1

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$place" "componentize-qjs@$componentize_qjs"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "wasmtime==$wasmtime"

cat >world.wit <<'END'
package findings:random;
world numbers {
    export draw: func() -> string;
}
END
cat >build.mjs <<'END'
import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
const { componentize } = createRequire(import.meta.url)("componentize-qjs");
const jsSource = `
    const built = Date.now();
    export function draw() {
        return JSON.stringify([Math.random(), Math.random(), built]);
    }`;
const { component } = await componentize({ witPath: "world.wit", jsSource, world: "numbers", sync: true });
writeFileSync("numbers.wasm", component);
END
node build.mjs
cat >run.py <<'END'
import json, time
import wasmtime
from wasmtime import component

began = time.time()
engine = wasmtime.Engine()
numbers = component.Component.from_file(engine, "numbers.wasm")
linker = component.Linker(engine)
linker.add_wasip2()


def draw():
    store = wasmtime.Store(engine)
    store.set_wasi(wasmtime.WasiConfig())
    instance = linker.instantiate(store, numbers)
    return json.loads(instance.get_func(store, "draw")(store))


one, two = draw(), draw()
print("two instances, Math.random():", "equal" if one[:2] == two[:2] else "differ")
print("two numbers of one instance:", "equal" if one[0] == one[1] else "differ")
print("a date of the module is older than the instance:", "yes" if one[2] / 1000 < began else "no")
END
seen=$(venv/bin/python run.py)
echo "$seen"
diff <(sed -n '/^# Output seen:/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "componentize-qjs does something else now" >&2
	exit 1
}
