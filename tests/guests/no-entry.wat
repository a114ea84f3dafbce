;; Valid Wasm without an entry point.
(module
  (memory (export "memory") 1)
  (func (export "other")))
