//! How the installed containerd reads a configuration: `containerd --config FILE config dump` reads it as a start
//! does, changes nothing and prints the result.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::edit;

/// How containerd reads a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// It has the handler.
    HasHandler,
    /// It reads the file, and has no such handler.
    NoHandler,
    /// It reads the file, and its CRI plugin is turned off under this name.
    CriDisabled(String),
    /// It refuses the file, with its last line of text.
    Refused(String),
    /// It cannot be asked, for this reason.
    NotAsked(String),
}

/// The containerd to ask.
#[derive(Debug, Clone)]
pub struct Containerd {
    /// Its program.
    pub program: PathBuf,
}

impl Containerd {
    /// Its release, such as `1.7.24`.
    ///
    /// # Errors
    /// One line: the program cannot be started, or prints something else.
    pub fn release(&self) -> Result<String, String> {
        let program = self.program.display();
        let output = Command::new(&self.program).arg("--version").output().map_err(|e| format!("{program}: {e}"))?;
        // containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3
        let text = String::from_utf8_lossy(&output.stdout);
        match text.split_whitespace().nth(2) {
            Some(release) if major(release).is_some() => Ok(release.to_owned()),
            _ => Err(format!("{program} --version prints {:?}", text.trim())),
        }
    }

    /// How it reads the file at `path`.
    pub fn read(&self, path: &Path, handler: &str) -> Reading {
        let mut command = Command::new(&self.program);
        let output = match command.arg("--config").arg(path).args(["config", "dump"]).output() {
            Ok(output) => output,
            Err(error) => return Reading::NotAsked(format!("{}: {error}", self.program.display())),
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
            let place = path.display().to_string();
            return Reading::Refused(last.map_or_else(|| output.status.to_string(), |last| last.replace(&place, "it")));
        }
        let dump = String::from_utf8_lossy(&output.stdout);
        let reading = || match edit::disabled_cri(&dump)? {
            Some(name) => Ok(Reading::CriDisabled(name)),
            None if edit::dump_has_handler(&dump, handler)? => Ok(Reading::HasHandler),
            None => Ok(Reading::NoHandler),
        };
        reading().unwrap_or_else(|e: String| Reading::NotAsked(format!("the answer of `containerd config dump` {e}")))
    }

    /// How it would read a file at `path` with this text. The text is beside that path for the time: relative
    /// imports mean the same.
    pub fn read_text(&self, path: &Path, text: &str, handler: &str) -> Reading {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let candidate = std::fs::create_dir_all(directory).and_then(|()| {
            // (A name that no import of *.toml matches.)
            let mut file = tempfile::Builder::new().prefix(".hearth-candidate-").tempfile_in(directory)?;
            file.write_all(text.as_bytes())?;
            Ok(file)
        });
        match candidate {
            Ok(file) => self.read(file.path(), handler),
            Err(error) => Reading::NotAsked(format!("a file beside {} cannot be made: {error}", path.display())),
        }
    }
}

/// The first number of a release.
pub fn major(release: &str) -> Option<u32> {
    release.trim_start_matches('v').split('.').next()?.parse().ok().filter(|major| *major >= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_told_by_its_first_number() {
        assert_eq!(
            ["1.6.20~ds1", "v2.1.9", "2", "0.9", "x", ""].map(major),
            [Some(1), Some(2), Some(2), None, None, None]
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_no_refusal() {
        let absent = Containerd { program: "/nonexistent/containerd".into() };
        assert!(absent.release().unwrap_err().contains("/nonexistent/containerd"));
        assert!(matches!(absent.read(Path::new("/dev/null"), "hearth"), Reading::NotAsked(_)));
    }
}
