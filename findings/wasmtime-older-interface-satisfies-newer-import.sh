#!/usr/bin/env bash
# wasmtime 50.0.1 (PyPI), versions of interfaces that a component imports and a host defines.
#
# Behaviour: the order of versions does not count, only whether semantic versioning calls them compatible. A component that was
# built for a newer interface than the host has, 1.9.0 for 1.2.0, is linked and runs, unless it imports a function that the
# older one lacks. Of several compatible versions of the host it gets the newest, though it asked for an older one that is not
# there; an exact match comes first. Pre-releases match nothing but themselves. A host that offers its old and its new implementation side by side cannot tell by an import's version which of
# them the component gets.
#
# Output seen (imported version, versions of the host: version called):
#   1.9.0, 1.2.0: 1.2.0
#   1.9.0 with a function that is new in it, 1.2.0: refused, no such function
#   0.2.9, 0.2.1: 0.2.1
#   1.2.0, 1.1.0 1.3.0 1.9.0: 1.9.0
#   1.2.0, 1.2.0 1.9.0: 1.2.0
#   1.2.0-rc.1, 1.2.0: refused
#   1.2.0, 1.3.0-rc.1: refused
#   0.2.1, 0.3.0: refused
#
# Needs: python3 with pip and venv. Leaves nothing behind.
set -euo pipefail

wasmtime=50.0.1

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "wasmtime==$wasmtime"
cat >run.py <<'END'
import wasmtime
from wasmtime import component

engine = wasmtime.Engine()
# Returns what the host's function returns.
TEXT = """
(component
  (import "findings:versions/numbers@VERSION" (instance $numbers (export "number" (func (result u32)))))
  (core func $lowered (canon lower (func $numbers "number")))
  (core module $module
    (import "numbers" "number" (func $number (result i32)))
    (func (export "call") (result i32) (call $number)))
  (core instance $instance
    (instantiate $module (with "numbers" (instance (export "number" (func $lowered))))))
  (func (export "call") (result u32) (canon lift (core func $instance "call"))))
"""


def called(imported, versions, text=TEXT):
    linker = component.Linker(engine)
    with linker.root() as root:
        for number, version in enumerate(versions):
            with root.add_instance(f"findings:versions/numbers@{version}") as interface:
                interface.add_func("number", lambda store, number=number: number)
    store = wasmtime.Store(engine)
    try:
        instance = linker.instantiate(store, component.Component(engine, text.replace("VERSION", imported)))
    except wasmtime.WasmtimeError as error:
        assert "a matching implementation was not found" in str(error), error
        return "refused, no such function" if "`newer`" in str(error) else "refused"
    return versions[instance.get_func(store, "call")(store)]


NEWER = TEXT.replace('(export "number"', '(export "newer" (func)) (export "number"', 1)
print("1.9.0, 1.2.0:", called("1.9.0", ["1.2.0"]))
print("1.9.0 with a function that is new in it, 1.2.0:", called("1.9.0", ["1.2.0"], NEWER))
for imported, versions in (
    ("0.2.9", ["0.2.1"]),
    ("1.2.0", ["1.1.0", "1.3.0", "1.9.0"]),
    ("1.2.0", ["1.2.0", "1.9.0"]),
    ("1.2.0-rc.1", ["1.2.0"]),
    ("1.2.0", ["1.3.0-rc.1"]),
    ("0.2.1", ["0.3.0"]),
):
    print(f"{imported}, {' '.join(versions)}:", called(imported, versions))
END
seen=$(venv/bin/python run.py)
echo "$seen"
diff <(sed -n '/^# Output seen/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "wasmtime does something else now" >&2
	exit 1
}
