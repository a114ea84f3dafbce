//! A service of wasi:http 0.2 in Rust, by its canonical ABI (`http.wit` has the types), with the standard library alone.
//!
//! * `/PATH`: a greeting.
//! * `/words`: how often each word of the body occurs, a line each, the most frequent first.

use std::alloc::{Layout, alloc, realloc};
use std::collections::BTreeMap;

#[link(wasm_import_module = "wasi:http/types@0.2.0")]
extern "C" {
    #[link_name = "[method]incoming-request.path-with-query"]
    fn request_path(request: i32, result: *mut OptionalList);
    #[link_name = "[method]incoming-request.consume"]
    fn request_body(request: i32, result: *mut Made);
    #[link_name = "[method]incoming-body.stream"]
    fn body_input(body: i32, result: *mut Made);
    #[link_name = "[constructor]fields"]
    fn new_fields() -> i32;
    #[link_name = "[constructor]outgoing-response"]
    fn new_response(fields: i32) -> i32;
    #[link_name = "[method]outgoing-response.body"]
    fn response_body(response: i32, result: *mut Made);
    // The response or an error-code, flattened: the case, then the larger of both.
    #[link_name = "[static]response-outparam.set"]
    fn set_response(out: i32, failed: i32, a: i32, b: i32, c: i64, d: i32, e: i32, f: i32, g: i32);
    #[link_name = "[method]outgoing-body.write"]
    fn body_output(body: i32, result: *mut Made);
    #[link_name = "[static]outgoing-body.finish"]
    fn finish_body(body: i32, has_trailers: i32, trailers: i32, result: *mut [u64; 8]);
}

#[link(wasm_import_module = "wasi:io/streams@0.2.0")]
extern "C" {
    #[link_name = "[method]input-stream.blocking-read"]
    fn read_some(input: i32, length: u64, result: *mut OptionalList);
    #[link_name = "[method]output-stream.blocking-write-and-flush"]
    fn write_all(output: i32, bytes: *const u8, length: usize, result: *mut [u32; 3]);
    #[link_name = "[resource-drop]output-stream"]
    fn drop_output(output: i32);
}

/// `result<handle>`.
#[repr(C)]
#[derive(Default)]
struct Made {
    failed: u8,
    handle: i32,
}

/// `option<string>`, and `result<list<u8>, error>`: case 1 of the first and case 0 of the second have the list.
#[repr(C)]
struct OptionalList {
    case: u8,
    at: *mut u8,
    length: usize,
}

impl OptionalList {
    /// The list that the host wrote to memory from [`cabi_realloc`].
    fn take(&self) -> Vec<u8> {
        if self.length == 0 {
            return Vec::new();
        }
        // SAFETY: the canonical ABI gives the memory, of exactly this length, to the guest.
        unsafe { Vec::from_raw_parts(self.at, self.length, self.length) }
    }
}

/// Calls a function that makes a handle.
fn made(call: impl FnOnce(&mut Made)) -> i32 {
    let mut result = Made::default();
    call(&mut result);
    assert_eq!(result.failed, 0, "the host refused");
    result.handle
}

fn list(call: impl FnOnce(&mut OptionalList)) -> OptionalList {
    let mut result = OptionalList { case: 0, at: std::ptr::null_mut(), length: 0 };
    call(&mut result);
    result
}

/// The host asks for memory for the lists that it returns.
#[no_mangle]
unsafe extern "C" fn cabi_realloc(old: *mut u8, old_size: usize, align: usize, size: usize) -> *mut u8 {
    if size == 0 {
        return std::ptr::without_provenance_mut(align);
    }
    let layout = |size| Layout::from_size_align(size, align).expect("the host asks for a valid alignment");
    match old_size {
        0 => alloc(layout(size)),
        _ => realloc(old, layout(old_size), size),
    }
}

fn body(request: i32) -> Vec<u8> {
    let body = made(|result| unsafe { request_body(request, result) });
    let input = made(|result| unsafe { body_input(body, result) });
    let mut all = Vec::new();
    loop {
        let piece = list(|result| unsafe { read_some(input, 65536, result) });
        if piece.case != 0 {
            return all;
        }
        all.extend(piece.take());
    }
}

fn answer(out: i32, text: &str) {
    unsafe {
        let response = new_response(new_fields());
        let body = made(|result| response_body(response, result));
        let output = made(|result| body_output(body, result));
        set_response(out, 0, response, 0, 0, 0, 0, 0, 0);
        // One call takes 4096 bytes at most.
        for piece in text.as_bytes().chunks(4096) {
            write_all(output, piece.as_ptr(), piece.len(), &mut [0; 3]);
        }
        drop_output(output);
        finish_body(body, 0, 0, &mut [0; 8]);
    }
}

fn words(text: &str) -> String {
    let mut counts = BTreeMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word.to_lowercase()).or_insert(0) += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.iter().map(|(word, count)| format!("{count} {word}\n")).collect()
}

#[export_name = "wasi:http/incoming-handler@0.2.0#handle"]
extern "C" fn handle(request: i32, out: i32) {
    let path = list(|result| unsafe { request_path(request, result) });
    let path = if path.case == 1 { String::from_utf8(path.take()).expect("a string is UTF-8") } else { String::new() };
    match path.as_str() {
        "/words" => answer(out, &words(&String::from_utf8_lossy(&body(request)))),
        _ => answer(out, &format!("hello from Rust: {path}\n")),
    }
}
