//! libFuzzer on the target `reply`.
#![no_main]
#![allow(missing_docs, reason = "the macro makes an item without a docstring")]
libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_fuzz::targets::reply(data));
