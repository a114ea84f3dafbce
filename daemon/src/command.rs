//! `hearthd`'s command line: arguments, configuration, logging, namespace, runtime, run, exit code.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser};

use crate::config::{Config, DEFAULT_FILE};
use crate::logging::{self, Logging};
use crate::metrics::Metrics;
use crate::{daemon, os, traces, wasm};

/// Keeps WebAssembly warm on a Kubernetes node: containerd's tasks of the `hearth` runtime run in
/// this process.
#[derive(Parser)]
#[command(name = "hearthd", version, args_conflicts_with_subcommands = true)]
struct Args {
    /// The configuration file [default: /etc/hearth/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sockets and scratch (over the file's state_dir)
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The module store (over the file's root_dir)
    #[arg(long, value_name = "DIR")]
    root_dir: Option<PathBuf>,
    /// The socket the shim dials (over the file's control_socket)
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,
    /// Where /metrics is served, host:port (over the file's metrics.address)
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<String>,
    /// What is logged, e.g. info or hearthd=debug (over the file's log.level)
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// Take over from a hearthd that runs: it serves the tasks it has until the last has ended, and leaves
    #[arg(long)]
    replace: bool,
    /// Have another process be this unit's main one for systemd, so that a restart of the unit ends no pod
    #[arg(long, value_name = "UNIT")]
    anchor: Option<String>,
    /// Check the configuration, print it and exit
    #[arg(long)]
    check_config: bool,
    /// Print a configuration file that has every key with its default, and exit
    #[arg(long)]
    print_default_config: bool,
}

/// Read if `--config` names no other and it exists.
const DEFAULT_CONFIG: &str = "/etc/hearth/config.toml";

/// Exit status for a configuration that is wrong (EX_CONFIG of sysexits.h): a service manager need not try again.
const CONFIG_IS_WRONG: u8 = 78;

/// Why the daemon ended, in one line with a remedy.
enum Failure {
    /// What is configured cannot be.
    Config(String),
    /// Anything else.
    Other(String),
}

/// What the program does.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == wasm::modules::compile::SUBCOMMAND) {
        return wasm::modules::compile::child_main();
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == os::holder::SUBCOMMAND) {
        return os::holder::child_main();
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == os::holder::PIDS_SUBCOMMAND) {
        return os::holder::pids_child_main();
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == os::anchor::SUBCOMMAND) {
        return os::anchor::child_main();
    }
    let args = Args::parse();
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Config(error)) => {
            eprintln!("hearthd: {error}");
            ExitCode::from(CONFIG_IS_WRONG)
        }
        Err(Failure::Other(error)) => {
            eprintln!("hearthd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The manual page hearthd(8): made of the arguments above, and of what is no argument.
///
/// # Errors
/// None that memory does not have.
pub fn manual() -> std::io::Result<Vec<u8>> {
    let page = clap_mangen::Man::new(Args::command()).title("HEARTHD").section("8").manual("System Administration");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    text.extend_from_slice(include_bytes!("command/manual.roff"));
    Ok(text)
}

fn start(args: Args) -> Result<(), Failure> {
    if args.print_default_config {
        print!("{DEFAULT_FILE}");
        return Ok(());
    }
    let config = configuration(&args).map_err(Failure::Config)?;
    if args.check_config {
        logging::check(&config.log).map_err(Failure::Config)?;
        traces::settings::Settings::of_environment().map_err(Failure::Config)?;
        println!("{config:#?}");
        return Ok(());
    }
    let traces = traces::settings::Settings::of_environment().map_err(Failure::Config)?;
    let metrics = Arc::new(Metrics::new());
    let logging = Logging::start(&config.log, &metrics).map_err(Failure::Config)?;
    // Before the first thread: every thread shares the namespace it is born in.
    os::mount::enter_private_namespace()
        .map_err(|e| Failure::Other(format!("cannot make a private mount namespace (is this root?): {e}")))?;
    os::process::raise_descriptor_limit();
    let (replace, anchor) = (args.replace, args.anchor.clone());
    let reread = Box::new(move || configuration(&args));
    daemon::run(daemon::Setup { config, replace, anchor, reread, metrics, logging, traces }).map_err(Failure::Other)
}

fn configuration(args: &Args) -> Result<Config, String> {
    let default = PathBuf::from(DEFAULT_CONFIG);
    let mut config = match &args.config {
        Some(path) => Config::read(path).map_err(|e| e.to_string())?,
        None if default.exists() => Config::read(&default).map_err(|e| e.to_string())?,
        None => Config::default(),
    };
    let replace = |target: &mut PathBuf, flag: &Option<PathBuf>| {
        if let Some(value) = flag {
            target.clone_from(value);
        }
    };
    replace(&mut config.state_dir, &args.state_dir);
    replace(&mut config.root_dir, &args.root_dir);
    if args.control_socket.is_some() {
        config.control_socket.clone_from(&args.control_socket);
    }
    if let Some(address) = &args.metrics_address {
        config.metrics.address.clone_from(address);
    }
    if let Some(level) = &args.log_level {
        config.log.level.clone_from(level);
    }
    config.check().map_err(|e| e.to_string())?;
    Ok(config)
}
