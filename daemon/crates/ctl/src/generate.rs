//! Texts made from the command line itself: completions for shells, and manual pages for packages.

use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;

use crate::CtlError;

/// The shell.
#[derive(clap::Args)]
pub struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// The directory.
#[derive(clap::Args)]
pub struct Manual {
    /// The directory for the pages: hearthd(8), hearthctl(8), and one for each command
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Prints the completions: `hearthctl completion bash > /etc/bash_completion.d/hearthctl`.
pub fn completion(args: &Completion, mut command: Command) -> Result<(), CtlError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "hearthctl", &mut text);
    io::Write::write_all(&mut io::stdout(), &text)?;
    Ok(())
}

/// Writes the pages.
pub fn manual(args: &Manual, command: Command) -> Result<(), CtlError> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    std::fs::write(args.directory.join("hearthd.8"), hearth_base::command_line::manual()?)?;
    write(&command, &args.directory)
}

fn write(command: &Command, directory: &Path) -> Result<(), CtlError> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_string();
    let page =
        clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).section("8").manual("System Administration");
    let mut text = Vec::new();
    page.render(&mut text)?;
    std::fs::write(directory.join(format!("{name}.8")), text)?;
    command.get_subcommands().filter(|command| !command.is_hide_set()).try_for_each(|command| write(command, directory))
}
