//! A generated module of over a megabyte, whose result is known.

/// The exit code of [`Guest::BIG`](super::Guest::BIG) if its result is right.
pub const BIG_CODE: i32 = 42;

/// A module of many functions, each a chain of arithmetic on its argument; `_start` calls one after
/// another and compares the result with the one computed here.
pub fn module() -> Vec<u8> {
    const FUNCTIONS: u32 = 3000;
    const STEPS: u32 = 80;
    let mut random = 0x9e37_79b9_u32;
    let mut next = || {
        // xorshift: any fixed sequence is good enough.
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random
    };
    let mut value = 1_u32;
    let mut text = String::from(
        "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))\n\
         (memory (export \"memory\") 1)\n",
    );
    for index in 0..FUNCTIONS {
        text += &format!("(func $f{index} (param i32) (result i32) (local.get 0)\n");
        for _ in 0..STEPS {
            let constant = next();
            let (instruction, result) = match next() % 4 {
                0 => ("i32.add", value.wrapping_add(constant)),
                1 => ("i32.xor", value ^ constant),
                2 => ("i32.mul", value.wrapping_mul(constant)),
                _ => ("i32.rotl", value.rotate_left(constant % 32)),
            };
            text += &format!("(i32.const {}) {instruction}\n", constant as i32);
            value = result;
        }
        text += ")\n";
    }
    text += "(func (export \"_start\") (i32.const 1)\n";
    for index in 0..FUNCTIONS {
        text += &format!("(call $f{index})\n");
    }
    text += &format!(
        "(if (i32.eq (i32.const {})) (then (call $exit (i32.const {BIG_CODE}))))\n\
         (call $exit (i32.const 1))))",
        value as i32
    );
    wat::parse_str(&text).expect("the text is well-formed")
}
