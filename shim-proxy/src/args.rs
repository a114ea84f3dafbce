//! The command line, as containerd's Go shims take it.
//!
//! `-flag value`, `-flag=value` and the same with two dashes; switches are `-debug` or `-debug=false`. Unlike Go's
//! `flag` package, flags are also taken after the action, because containerd has put it in both places. Every flag of
//! containerd 1.6 to 2.3 is known; the flags without a meaning here (`-debug`, `-publish-binary`, `-socket`,
//! `-debug-socket`) are read and dropped.
//!
//! Fails on an unknown flag or action, a missing value, and text that is not UTF-8.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::failure::{Failure, Result};

/// Flags and actions, for `-help`.
pub const USAGE: &str = "\
Usage: containerd-shim-hearth-v1 [flags] start|delete

Started by containerd for the runtime io.containerd.hearth.v1; not meant to be run by hand.

  start                 ask hearthd for a task socket and print its address
  delete                unmount the bundle's rootfs and print a DeleteResponse

  -namespace NAME       containerd's namespace
  -id ID                task or sandbox id
  -address PATH         containerd's gRPC socket
  -bundle PATH          the bundle (default: the working directory)
  -info                 print a RuntimeInfo and exit
  -v, -version          print the version and exit
  -debug, -publish-binary PATH, -socket PATH, -debug-socket PATH
                        accepted and ignored
Environment:
  TTRPC_ADDRESS           containerd's ttrpc socket
  HEARTH_CONTROL_SOCKET   hearthd's control socket (default: /run/hearth/control.sock)
";

/// The action of a command line.
#[derive(Debug, PartialEq, Eq)]
pub enum Invocation {
    /// `start`: hand out a task socket.
    Start(Flags),
    /// `delete`: clean up after a task.
    Delete(Flags),
    /// `-info`: describe the runtime.
    Info,
    /// `-v`: print the version.
    Version,
    /// `-help`: print [`USAGE`].
    Help,
}

/// The flags with a meaning. An empty value counts as none, as in Go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `-namespace`: containerd's namespace.
    pub namespace: String,
    /// `-id`: task or sandbox id.
    pub id: String,
    /// `-address`: containerd's gRPC socket, with or without `unix://`.
    pub address: String,
    bundle: PathBuf,
}

impl Flags {
    /// The bundle: `-bundle`, else the working directory, where containerd starts its shims.
    ///
    /// # Errors
    /// If `-bundle` is not the absolute path of a directory below `/`. A path with `..` is refused: the shim must
    /// unmount the directory that containerd named.
    pub fn bundle(&self) -> Result<Bundle> {
        let path = &self.bundle;
        if path.as_os_str().is_empty() {
            // The working directory of a bundle that is already removed has no name any more.
            return Ok(env::current_dir().map_or(Bundle::Gone, Bundle::At));
        }
        let problem = if path.as_os_str().as_bytes().contains(&0) {
            "contains a NUL byte"
        } else if !path.is_absolute() {
            "is not absolute"
        } else if path.components().any(|c| c == Component::ParentDir) {
            "contains '..'"
        } else if path.parent().is_none() {
            "is the root directory"
        } else {
            return Ok(Bundle::At(path.clone()));
        };
        Err(Failure::new(format!(
            "the bundle path {path:?} {problem}: pass the directory that containerd made for the task"
        )))
    }
}

/// Where the bundle is.
#[derive(Debug, PartialEq, Eq)]
pub enum Bundle {
    /// At this absolute path, which need not exist.
    At(PathBuf),
    /// It was the working directory and is removed.
    Gone,
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// As the module says.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation> {
    let mut args = args.into_iter();
    let mut flags = Flags::default();
    let (mut version, mut info, mut help) = (false, false, false);
    let mut ignored = false;
    let mut actions = Vec::new();
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            actions.extend(args.by_ref());
            break;
        }
        if bytes.first() != Some(&b'-') || bytes == b"-" {
            actions.push(arg);
            continue;
        }
        let flag = Flag::split(bytes)?;
        match flag.name {
            "namespace" => flags.namespace = flag.text(&mut args)?,
            "id" => flags.id = flag.text(&mut args)?,
            "address" => flags.address = flag.text(&mut args)?,
            "bundle" => flags.bundle = flag.value(&mut args)?.into(),
            "publish-binary" | "socket" | "debug-socket" => drop(flag.value(&mut args)?),
            "debug" => flag.switch(&mut ignored)?,
            "v" | "version" => flag.switch(&mut version)?,
            "info" => flag.switch(&mut info)?,
            "h" | "help" => flag.switch(&mut help)?,
            name => return Err(Failure::new(format!("unknown flag -{name}: see -help"))),
        }
    }
    if help {
        return Ok(Invocation::Help);
    }
    if version {
        return Ok(Invocation::Version);
    }
    if info {
        return Ok(Invocation::Info);
    }
    match actions.as_slice() {
        [action] if action == "start" => Ok(Invocation::Start(flags)),
        [action] if action == "delete" => Ok(Invocation::Delete(flags)),
        [action] => Err(Failure::new(format!("unknown action {action:?}: it is 'start' or 'delete'"))),
        [] => Err(Failure::new(
            "no action: containerd passes 'start' or 'delete'; this program is not meant to be run by hand, see -help",
        )),
        [_, extra, ..] => Err(Failure::new(format!("unexpected argument {extra:?} after the action: see -help"))),
    }
}

/// One flag as written: its name, and the value if it is joined by `=`.
struct Flag<'a> {
    name: &'a str,
    joined: Option<&'a [u8]>,
}

impl<'a> Flag<'a> {
    fn split(arg: &'a [u8]) -> Result<Self> {
        let bare = arg.strip_prefix(b"--").unwrap_or(&arg[1..]);
        let (name, joined) = match bare.iter().position(|&b| b == b'=') {
            Some(at) => (&bare[..at], Some(&bare[at + 1..])),
            None => (bare, None),
        };
        match std::str::from_utf8(name) {
            Ok(name) if !name.is_empty() && !name.starts_with('-') => Ok(Self { name, joined }),
            _ => Err(Failure::new(format!("bad flag {:?}: see -help", Path::new(std::ffi::OsStr::from_bytes(arg))))),
        }
    }

    fn value(&self, rest: &mut impl Iterator<Item = OsString>) -> Result<OsString> {
        match self.joined {
            Some(value) => Ok(OsString::from_vec(value.to_vec())),
            None => rest.next().ok_or_else(|| Failure::new(format!("-{} needs a value: see -help", self.name))),
        }
    }

    fn text(&self, rest: &mut impl Iterator<Item = OsString>) -> Result<String> {
        self.value(rest)?.into_string().map_err(|value| Failure::new(format!("-{} {value:?} is not UTF-8", self.name)))
    }

    /// Go's spellings of a boolean.
    fn switch(&self, target: &mut bool) -> Result<()> {
        *target = match self.joined {
            None | Some(b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True") => true,
            Some(b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False") => false,
            Some(_) => {
                return Err(Failure::new(format!(
                    "-{} is a switch: it takes 'true' or 'false' after '=', or nothing",
                    self.name
                )));
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
