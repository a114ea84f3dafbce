// A service of wasi:http 0.2 in Go, by its canonical ABI.
//
//	/PATH      a greeting
//	POST /sum  the sum of the numbers in a JSON array
package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"unsafe"
)

//go:wasmimport wasi:http/types@0.2.0 [method]incoming-request.path-with-query
func requestPath(request int32, result unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.0 [method]incoming-request.consume
func requestBody(request int32, result unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.0 [method]incoming-body.stream
func bodyInput(body int32, result unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.0 [constructor]fields
func newFields() int32

//go:wasmimport wasi:http/types@0.2.0 [constructor]outgoing-response
func newResponse(fields int32) int32

//go:wasmimport wasi:http/types@0.2.0 [method]outgoing-response.set-status-code
func setStatus(response int32, status int32) int32

//go:wasmimport wasi:http/types@0.2.0 [method]outgoing-response.body
func responseBody(response int32, result unsafe.Pointer)

// The response or an error-code, flattened: the case, then the larger of both.
//
//go:wasmimport wasi:http/types@0.2.0 [static]response-outparam.set
func setResponse(out, failed, a, b int32, c int64, d, e, f, g int32)

//go:wasmimport wasi:http/types@0.2.0 [method]outgoing-body.write
func bodyOutput(body int32, result unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.0 [static]outgoing-body.finish
func finishBody(body, hasTrailers, trailers int32, result unsafe.Pointer)

//go:wasmimport wasi:io/streams@0.2.0 [method]input-stream.blocking-read
func readSome(input int32, length int64, result unsafe.Pointer)

//go:wasmimport wasi:io/streams@0.2.0 [method]output-stream.blocking-write-and-flush
func writeAll(output int32, bytes unsafe.Pointer, length int32, result unsafe.Pointer)

//go:wasmimport wasi:io/streams@0.2.0 [resource-drop]output-stream
func dropOutput(output int32)

// A list in the guest's memory. Go's own pointers have 64 bits, those of the canonical ABI 32.
type list struct {
	at, length uint32
}

func (l list) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(uintptr(l.at))), l.length)
}

// The memory that the host's lists are written to: it must stay where it is, and alive.
var lists [][]byte

//go:wasmexport cabi_realloc
func realloc(old uint32, oldSize, align, size uint32) uint32 {
	if size == 0 {
		return align
	}
	memory := make([]byte, size+align)
	lists = append(lists, memory)
	at := (uint32(uintptr(unsafe.Pointer(&memory[0]))) + align - 1) &^ (align - 1)
	if old != 0 {
		copy(list{at, size}.bytes(), list{old, oldSize}.bytes())
	}
	return at
}

// The handle in a result.
func made(result [2]int32) int32 {
	if result[0]&0xff != 0 {
		panic("the host refused")
	}
	return result[1]
}

func body(request int32) []byte {
	var result [2]int32
	requestBody(request, unsafe.Pointer(&result))
	bodyInput(made(result), unsafe.Pointer(&result))
	input := made(result)
	var all []byte
	for {
		var piece struct {
			failed uint32
			bytes  list
		}
		readSome(input, 65536, unsafe.Pointer(&piece))
		if piece.failed&0xff != 0 {
			return all
		}
		all = append(all, piece.bytes.bytes()...)
	}
}

func answer(out int32, status int32, text string) {
	var result [2]int32
	response := newResponse(newFields())
	setStatus(response, status)
	responseBody(response, unsafe.Pointer(&result))
	body := made(result)
	bodyOutput(body, unsafe.Pointer(&result))
	output := made(result)
	setResponse(out, 0, response, 0, 0, 0, 0, 0, 0)
	var written [3]int32
	writeAll(output, unsafe.Pointer(unsafe.StringData(text)), int32(len(text)), unsafe.Pointer(&written))
	dropOutput(output)
	var finished [8]int64
	finishBody(body, 0, 0, unsafe.Pointer(&finished))
}

//go:wasmexport wasi:http/incoming-handler@0.2.0#handle
func handle(request, out int32) {
	var path struct {
		some uint32
		text list
	}
	requestPath(request, unsafe.Pointer(&path))
	if string(path.text.bytes()) == "/sum" {
		var numbers []int
		if err := json.Unmarshal(body(request), &numbers); err != nil {
			answer(out, 400, err.Error()+"\n")
			return
		}
		// By goroutines, which are scheduled within the instance.
		parts := make(chan int)
		for _, number := range numbers {
			go func() { parts <- number }()
		}
		sum := 0
		for range numbers {
			sum += <-parts
		}
		answer(out, 200, fmt.Sprintf("%d\n", sum))
		return
	}
	answer(out, 200, fmt.Sprintf("hello from %s: %s\n", runtime.Version(), path.text.bytes()))
}

func main() {}
