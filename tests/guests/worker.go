// A worker in Go: worker FILE
//
// FILE is a JSON array of numbers. A goroutine squares each number; the sum of the squares is printed. The exit code is 3
// where FILE cannot be read.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

func main() {
	directory, err := os.Getwd()
	fmt.Println(runtime.Version(), "in", directory, err)
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	var numbers []int
	if err := json.Unmarshal(text, &numbers); err != nil {
		panic(err)
	}
	var all sync.WaitGroup
	squares := make(chan int, len(numbers))
	for _, number := range numbers {
		all.Add(1)
		go func() {
			defer all.Done()
			time.Sleep(time.Millisecond)
			squares <- number * number
		}()
	}
	all.Wait()
	close(squares)
	sum := 0
	for square := range squares {
		sum += square
	}
	fmt.Println(sum)
}
