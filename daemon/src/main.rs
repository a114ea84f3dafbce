//! `hearthd`.
fn main() {}
