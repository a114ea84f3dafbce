//! Writes the seeds of every target: `seeds DIRECTORY` makes `DIRECTORY/TARGET/seed-N`, and prints each target.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a tool, not the daemon")]

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or_else(|| std::io::Error::other("say the directory: seeds DIRECTORY"))?;
    for target in hearth_fuzz::TARGETS {
        let folder = directory.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
        println!("{}", target.name);
    }
    Ok(())
}
