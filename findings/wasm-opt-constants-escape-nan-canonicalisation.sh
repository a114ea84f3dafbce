#!/usr/bin/env bash
# wasm-opt 108 (Debian binaryen 108-1) before wasmtime 50.0.1 (PyPI) with its canonicalisation of NaNs, on x86_64.
#
# Behaviour: a host that wants the same bits everywhere turns on cranelift_nan_canonicalization. It has no effect on a program
# that wasm-opt has been over: wasm-opt computes operations on constants, and its results are constants, which the host leaves
# as they are. For 0/0 it writes the positive NaN that WebAssembly calls canonical. For sqrt(-1) it writes the negative NaN
# that x86_64 computes, and promote and nearest keep the payload of the operand. So optimising changes the result of 0/0 on a
# host without the option, and the other results on a host with it.
#
# Output seen (the bits of 0/0, sqrt(-1), promotion of a NaN with a payload, nearest of the same NaN):
#   as written: fff8000000000000 fff8000000000000 7ffc000020000000 7fe00001
#   as written, canonicalised by the host: 7ff8000000000000 7ff8000000000000 7ff8000000000000 7fc00000
#   optimised: 7ff8000000000000 fff8000000000000 7ffc000020000000 7fe00001
#   optimised, canonicalised by the host: 7ff8000000000000 fff8000000000000 7ffc000020000000 7fe00001
#
# Needs: apt-get of Debian 12 amd64, python3 with pip and venv. Leaves nothing behind.
set -euo pipefail

binaryen=108-1
wasmtime=50.0.1

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
apt-get -qq -o APT::Sandbox::User=root download "binaryen=$binaryen"
dpkg -x binaryen_*.deb debian
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "wasmtime==$wasmtime"

cat >written.wat <<'END'
(module
  (func (export "divide") (result i64) (i64.reinterpret_f64 (f64.div (f64.const 0) (f64.const 0))))
  (func (export "root") (result i64) (i64.reinterpret_f64 (f64.sqrt (f64.const -1))))
  (func (export "promote") (result i64) (i64.reinterpret_f64 (f64.promote_f32 (f32.const nan:0x200001))))
  (func (export "nearest") (result i32) (i32.reinterpret_f32 (f32.nearest (f32.const nan:0x200001)))))
END
debian/usr/bin/wasm-opt -O written.wat -o optimised.wasm
cat >run.py <<'END'
import wasmtime

for file, name in ("written.wat", "as written"), ("optimised.wasm", "optimised"):
    for canonicalised in False, True:
        config = wasmtime.Config()
        config.cranelift_nan_canonicalization = canonicalised
        engine = wasmtime.Engine(config)
        store = wasmtime.Store(engine)
        exports = wasmtime.Instance(store, wasmtime.Module.from_file(engine, file), []).exports(store)
        bits = [
            f"{exports[function](store) % 2**width:x}"
            for function, width in (("divide", 64), ("root", 64), ("promote", 64), ("nearest", 32))
        ]
        print(f"{name}{', canonicalised by the host' if canonicalised else ''}:", *bits)
END
seen=$(venv/bin/python run.py)
echo "$seen"
diff <(sed -n '/^# Output seen/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "wasm-opt or wasmtime does something else now" >&2
	exit 1
}
