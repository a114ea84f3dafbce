//! `hearthd`'s command line: arguments, configuration, logging, namespace, runtime, run, exit code.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

use hearth_base::command_line::Args;
use hearth_base::config::DEFAULT_FILE;
use hearth_observe::logging::{self, Logging};
use hearth_observe::metrics::Metrics;
use hearth_observe::traces;
use hearth_os as os;
use hearth_wasm as wasm;

use crate::cell::zygote;
use crate::daemon::{self, anchor};

/// Exit status for a configuration that is wrong (EX_CONFIG of sysexits.h): a service manager need not try again.
const CONFIG_IS_WRONG: u8 = 78;

/// Why the daemon ended, in one line with a remedy.
enum Failure {
    /// The configuration is wrong.
    Config(String),
    /// Anything else.
    Other(String),
}

/// Runs the program, or the helper process that its first argument names.
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
    if std::env::args_os().nth(1).is_some_and(|word| word == zygote::SUBCOMMAND) {
        return zygote::child_main();
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == anchor::SUBCOMMAND) {
        return anchor::child_main();
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

fn start(args: Args) -> Result<(), Failure> {
    if args.print_default_config {
        print!("{DEFAULT_FILE}");
        return Ok(());
    }
    let config = args.configuration().map_err(Failure::Config)?;
    if args.check_config {
        logging::check(&config.log).map_err(Failure::Config)?;
        traces::settings::Settings::of_environment().map_err(Failure::Config)?;
        println!("{config:#?}");
        return Ok(());
    }
    let traces = traces::settings::Settings::of_environment().map_err(Failure::Config)?;
    let metrics = Arc::new(Metrics::new());
    let logging = Logging::start(&config.log, &metrics).map_err(Failure::Config)?;
    // Before the first thread: a thread has the mount namespace of the thread that starts it.
    os::mount::enter_private_namespace()
        .map_err(|e| Failure::Other(format!("cannot make a private mount namespace (is this root?): {e}")))?;
    os::process::raise_descriptor_limit();
    let (replace, anchor) = (args.replace, args.anchor.clone());
    let reread = Box::new(move || args.configuration());
    daemon::run(daemon::Setup { config, replace, anchor, reread, metrics, logging, traces }).map_err(Failure::Other)
}
