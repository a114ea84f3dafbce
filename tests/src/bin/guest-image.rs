//! `guest-image GUEST`: an image of one of the stories' guests, `hearth.test/GUEST:1`, as an archive on stdout, for
//! checks written as scripts.

use std::io::Write;
use std::process::ExitCode;

use hearth_tests::{Guest, Image, Runtime};

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let guest = match name.as_str() {
        "hello" => Guest::HELLO,
        "sleep" => Guest::SLEEP,
        "await" => Guest::AWAIT,
        _ => {
            eprintln!("guest-image: there are hello, sleep and await, not {name:?}");
            return ExitCode::from(2);
        }
    };
    let image = Image::of(&guest, Runtime::Hearth);
    match std::io::stdout().write_all(&image.to_tar()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-image: {error}");
            ExitCode::FAILURE
        }
    }
}
