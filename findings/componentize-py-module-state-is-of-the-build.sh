#!/usr/bin/env bash
# componentize-py 0.25.1 (PyPI), random numbers and hashes of a component in Python; the host is wasmtime 50.0.1 (PyPI).
#
# Behaviour: componentize-py imports the program at build time and stores the memory of the interpreter in the component.
# At the start of an instance it seeds the generator of the module `random` again, and no other state:
#   * random.random() differs between instances, but a random.Random() in a variable of a module, which Python seeds from
#     the system, returns the same sequence in every instance;
#   * the hashes of strings are those of the build. They are equal in all instances, so a client that knows the component
#     knows the keys that collide, and PYTHONHASHSEED has no effect.
# os.environ and sys.argv are those of the instance.
#
# Output seen:
#   random.random(): differ
#   random.Random() of the module: equal
#   random.Random() of the call: differ
#   hash of a string, PYTHONHASHSEED 1 and 2: equal
#   os.environ: differ
#
# Needs: python3 with pip and venv. Leaves nothing behind.
set -euo pipefail

componentize_py=0.25.1
wasmtime=50.0.1

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "componentize-py==$componentize_py" "wasmtime==$wasmtime"

cat >world.wit <<'END'
package findings:random;
world numbers {
    export draw: func() -> string;
}
END
cat >program.py <<'END'
import json, os, random

import wit_world

OF_MODULE = random.Random()


class WitWorld(wit_world.WitWorld):
    def draw(self) -> str:
        of_call = random.Random()
        return json.dumps(
            [random.random(), OF_MODULE.random(), of_call.random(), hash("a string"), os.environ["PYTHONHASHSEED"]]
        )
END
venv/bin/componentize-py --quiet --wit-path world.wit --world numbers componentize program --output numbers.wasm
cat >run.py <<'END'
import json
import wasmtime
from wasmtime import component

engine = wasmtime.Engine()
numbers = component.Component.from_file(engine, "numbers.wasm")
linker = component.Linker(engine)
linker.add_wasip2()


def draw(seed):
    store = wasmtime.Store(engine)
    wasi = wasmtime.WasiConfig()
    wasi.env = [("PYTHONHASHSEED", seed)]
    store.set_wasi(wasi)
    instance = linker.instantiate(store, numbers)
    return json.loads(instance.get_func(store, "draw")(store))


names = [
    "random.random()",
    "random.Random() of the module",
    "random.Random() of the call",
    "hash of a string, PYTHONHASHSEED 1 and 2",
    "os.environ",
]
for name, one, two in zip(names, draw("1"), draw("2")):
    print(f"{name}:", "equal" if one == two else "differ")
END
seen=$(venv/bin/python run.py)
echo "$seen"
diff <(sed -n '/^# Output seen:/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "componentize-py does something else now" >&2
	exit 1
}
