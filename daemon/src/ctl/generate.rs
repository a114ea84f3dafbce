//! `hearthctl generate`: man pages and completions from the command lines themselves, for packages.

use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where: `man8`, `bash-completion/completions`, `zsh/vendor-completions` and `fish/vendor_completions.d` in it
    directory: PathBuf,
}

/// Completions, by shell: the directory and the file's name.
const COMPLETIONS: [(Shell, &str, &str); 3] = [
    (Shell::Bash, "bash-completion/completions", "NAME"),
    (Shell::Zsh, "zsh/vendor-completions", "_NAME"),
    (Shell::Fish, "fish/vendor_completions.d", "NAME.fish"),
];

/// Writes them all, those of `hearthd` too. `hearthctl`: its command line.
///
/// # Errors
/// What the file system says.
pub fn run(hearthctl: Command, args: &Args) -> io::Result<()> {
    for mut command in [hearthctl, crate::command::line()] {
        let name = command.get_name().to_owned();
        for (shell, directory, file) in COMPLETIONS {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, &name, &mut script);
            write(&args.directory.join(directory).join(file.replace("NAME", &name)), &script)?;
        }
        pages(command, &name, &args.directory.join("man8"))?;
    }
    Ok(())
}

/// A page for a command, and for each below it.
fn pages(command: Command, name: &str, directory: &Path) -> io::Result<()> {
    let command = command.version(env!("CARGO_PKG_VERSION"));
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
        pages(below.clone(), &format!("{name}-{}", below.get_name()), directory)?;
    }
    let mut page = Vec::new();
    // (clap keeps names for ever, too; this program ends soon.)
    let command = command.name(&*name.to_owned().leak()).disable_help_subcommand(true);
    clap_mangen::Man::new(command).section("8").manual("System Administration").render(&mut page)?;
    write(&directory.join(format!("{name}.8")), &page)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, bytes)
}
