//! `hearthd`'s command line: its flags, its manual page, and the configuration that the flags and the file give.

use std::path::PathBuf;

use clap::{CommandFactory, Parser};

use crate::config::Config;

/// Keeps WebAssembly warm on a Kubernetes node: containerd's tasks of the `hearth` runtime run in
/// this process.
#[derive(Parser)]
#[command(name = "hearthd", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// The configuration file [default: /etc/hearth/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Sockets and scratch (over the file's state_dir)
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The module store (over the file's root_dir)
    #[arg(long, value_name = "DIR")]
    pub root_dir: Option<PathBuf>,
    /// The socket the shim dials (over the file's control_socket)
    #[arg(long, value_name = "PATH")]
    pub control_socket: Option<PathBuf>,
    /// Where /metrics is served, host:port (over the file's metrics.address)
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_address: Option<String>,
    /// What is logged, e.g. info or hearthd=debug (over the file's log.level)
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
    /// Take over from a hearthd that runs: it serves the tasks it has until the last has ended, and leaves
    #[arg(long)]
    pub replace: bool,
    /// Have another process be this unit's main one for systemd, so that a restart of the unit ends no pod
    #[arg(long, value_name = "UNIT")]
    pub anchor: Option<String>,
    /// Check the configuration, print it and exit
    #[arg(long)]
    pub check_config: bool,
    /// Print a configuration file that has every key with its default, and exit
    #[arg(long)]
    pub print_default_config: bool,
}

/// The configuration file without `--config`, if it exists.
const DEFAULT_CONFIG: &str = "/etc/hearth/config.toml";

/// The manual page hearthd(8): the arguments above, and the sections of `manual.roff`.
///
/// # Errors
/// Writing to memory does not fail; the signature is clap_mangen's.
pub fn manual() -> std::io::Result<Vec<u8>> {
    let page = clap_mangen::Man::new(Args::command()).title("HEARTHD").section("8").manual("System Administration");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    text.extend_from_slice(include_bytes!("manual.roff"));
    Ok(text)
}

impl Args {
    /// The configuration: the file's, with the flags over it, checked.
    ///
    /// # Errors
    /// One line: the file cannot be read, or the key with the wrong value.
    pub fn configuration(&self) -> Result<Config, String> {
        let default = PathBuf::from(DEFAULT_CONFIG);
        let mut config = match &self.config {
            Some(path) => Config::read(path).map_err(|e| e.to_string())?,
            None if default.exists() => Config::read(&default).map_err(|e| e.to_string())?,
            None => Config::default(),
        };
        let replace = |target: &mut PathBuf, flag: &Option<PathBuf>| {
            if let Some(value) = flag {
                target.clone_from(value);
            }
        };
        replace(&mut config.state_dir, &self.state_dir);
        replace(&mut config.root_dir, &self.root_dir);
        if self.control_socket.is_some() {
            config.control_socket.clone_from(&self.control_socket);
        }
        if let Some(address) = &self.metrics_address {
            config.metrics.address.clone_from(address);
        }
        if let Some(level) = &self.log_level {
            config.log.level.clone_from(level);
        }
        config.check().map_err(|e| e.to_string())?;
        Ok(config)
    }
}
