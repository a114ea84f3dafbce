//! `hearthctl modules warm`: a compile before the first start.

use std::path::PathBuf;
use std::time::Duration;

use crate::CtlError;
use crate::client::DaemonClient;
use crate::output::Printer;
use hearth_base::operator::{Question, Warm, Warmed};

/// How long a compile may take: longer than each limit of the daemon.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The images and files to compile.
#[derive(clap::Args)]
pub struct Args {
    /// An image's name as containerd has it, such as docker.io/library/hello:1, or the path of a .wasm file
    #[arg(required = true, value_name = "IMAGE|FILE")]
    what: Vec<String>,
    /// containerd's namespace of the images [default: the first of ahead.namespaces]
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
}

pub fn run(args: &Args, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let mut all = Vec::new();
    for what in &args.what {
        let warmed: Warmed = client.ask_for(&Question::Warm(asked(what, args.namespace.clone())), PATIENCE)?;
        if !output.json {
            let digest: String = warmed.module.chars().take(12).collect();
            let text = match warmed.compiled {
                true => format!("compiled in {:.1} s", warmed.seconds),
                false => "was compiled before".into(),
            };
            output.line(format!("{digest}  {what}: {text}"))?;
        }
        all.push(warmed);
    }
    if output.json {
        output.json(&all)?;
    }
    Ok(())
}

/// A file if there is one of that name, as a shell's completion would have it; else an image.
fn asked(what: &str, namespace: Option<String>) -> Warm {
    match PathBuf::from(what).canonicalize() {
        Ok(path) if path.is_file() => Warm::File { path: path.display().to_string() },
        _ => Warm::Image { namespace, name: what.to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_file_is_meant_as_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().canonicalize().unwrap().display().to_string();
        assert_eq!(asked(&path, None), Warm::File { path });
        let image = Warm::Image { namespace: Some("x".into()), name: "a/b:1".into() };
        assert_eq!(asked("a/b:1", Some("x".into())), image);
    }
}
