//! libFuzzer on the target `shim_arguments`.
#![no_main]
#![allow(missing_docs, reason = "the macro makes an item without a docstring")]
libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_fuzz::targets::shim_arguments(data));
