//! A program in Rust: prints its arguments, an environment variable, a file and its stdin in upper case, and ends with
//! the exit code given.
//!
//! `report FILE CODE`; without both arguments the exit code is 64, and 66 where FILE cannot be read.

use std::io::Read;
use std::process::exit;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, file, code] = arguments.as_slice() else {
        eprintln!("usage: report FILE CODE");
        exit(64);
    };
    println!("hello from Rust");
    for (number, argument) in arguments.iter().enumerate() {
        println!("arg {number}: {argument}");
    }
    println!("env GREETING={}", std::env::var("GREETING").unwrap_or_default());
    match std::fs::read_to_string(file) {
        Ok(text) => println!("{file} has {} bytes: {}", text.len(), text.trim_end()),
        Err(error) => {
            eprintln!("{file}: {error}");
            exit(66);
        }
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).expect("stdin is UTF-8");
    print!("{}", text.to_uppercase());
    eprintln!("{} lines read", text.lines().count());
    exit(code.parse().expect("CODE is a number"));
}
