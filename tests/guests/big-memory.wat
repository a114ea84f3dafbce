;; Has 64 MiB of memory before it runs.
(module
  (memory (export "memory") 1024)
  (func (export "_start")))
