//! Finds the file of the program that a bundle names, inside its root.
//!
//! The program is `process.args[0]`: absolute, relative to `process.cwd` if it has a slash, else
//! searched in `PATH` and at last in the working directory. Where no plain name exists, each is tried
//! again with `.wasm` appended. `FILE#EXPORT` names an export to call ([`Wanted::readings`]).
//!
//! The file is opened with the daemon's rights, whatever its mode: an image's Wasm file seldom has
//! the execute bit, which has no meaning for WebAssembly. Only a regular file is opened for reading: opening a FIFO or
//! a device can block or have effects.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

use hearth_base::error::{Error, Result};
use hearth_base::wanted::Wanted;
use hearth_os::in_root::RootDir;

/// The longest program name or working directory, in bytes: the kernel's own `PATH_MAX`.
const PATH_BYTES_MAX: usize = 4096;

/// Directories of `PATH` that are searched; the others are ignored.
const PATH_DIRECTORIES_MAX: usize = 64;

/// Names listed in a message about a program that was not found.
const NAMES_SHOWN: usize = 8;

/// runc's words for a path without a file.
const NO_SUCH_FILE: &str = "no such file or directory";

/// runc's words for a name that no directory of `PATH` has.
const NOT_ON_PATH: &str = "executable file not found in $PATH";

/// runc's words for a file that is no program.
const NOT_PERMITTED: &str = "permission denied";

/// The directories that Linux runtimes search when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program's file, open for reading.
#[derive(Debug)]
pub struct ProgramFile {
    /// The regular file.
    pub file: File,
    /// Its path inside the root, links not followed; for messages.
    pub path: String,
    /// The export to call, if the name had one.
    pub export: Option<Arc<str>>,
    /// Whether the search touched nothing but the root's own mount, so that the root's identity
    /// decides its result.
    pub on_root_mount: bool,
}

/// A program's file, looked up and not opened.
#[derive(Debug)]
pub struct LocatedProgram {
    /// An `O_PATH` descriptor of the regular file.
    pub file: OwnedFd,
    /// As in [`ProgramFile`].
    pub path: String,
    /// As in [`ProgramFile`].
    pub export: Option<Arc<str>>,
    /// As in [`ProgramFile`].
    pub on_root_mount: bool,
}

impl LocatedProgram {
    /// Opens the file for reading.
    ///
    /// # Errors
    /// `Internal` if the kernel refuses.
    pub fn open(self) -> Result<ProgramFile> {
        let LocatedProgram { file, path, export, on_root_mount } = self;
        // The descriptor names the file itself: no rename can put another in its place now.
        let file = File::open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).map_err(|e| unopened(&path, e))?;
        Ok(ProgramFile { file, path, export, on_root_mount })
    }
}

fn unopened(path: &str, error: std::io::Error) -> Error {
    Error::Internal(format!("cannot open {path}: {error}"))
}

/// One name to try.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    path: String,
    export: Option<String>,
    /// Whether `.wasm` was appended to what the user wrote.
    appended: bool,
}

/// [`locate`]s the program and opens it.
///
/// # Errors
/// As [`locate`].
pub fn find(root: BorrowedFd<'_>, wanted: &Wanted) -> Result<ProgramFile> {
    locate(root, wanted)?.open()
}

/// Finds the program in the root file system whose directory is `root`. Makes blocking system calls
/// on files that may be a volume's: not for a thread that serves requests.
///
/// # Errors
/// `InvalidArgument` with what was tried, or why a name was refused; never `NotFound`, which
/// containerd reads as "the task is gone". The text has the words of runc, by which clients choose the exit code of a
/// container that did not start: 127 for `NO_SUCH_FILE` and `NOT_ON_PATH`, 126 for `NOT_PERMITTED`
/// (docker: `setExitCodeFromError` in `daemon/errors.go` of moby).
pub fn locate(root: BorrowedFd<'_>, wanted: &Wanted) -> Result<LocatedProgram> {
    let candidates = candidates(wanted)?;
    let root = RootDir::of(root);
    let mut on_root_mount = true;
    let mut not_a_file = None;
    for candidate in &candidates {
        let found = root.look_up(OsStr::new(&candidate.path));
        on_root_mount &= found.on_root_mount;
        let file = match found.file {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(refused(&candidate.path, error)),
        };
        let stat = fstat(&file).map_err(|e| unopened(&candidate.path, e.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            not_a_file.get_or_insert((candidate.path.clone(), kind));
            continue;
        }
        return Ok(LocatedProgram {
            file,
            path: candidate.path.clone(),
            export: candidate.export.as_deref().map(Arc::from),
            on_root_mount,
        });
    }
    Err(match not_a_file {
        Some((path, kind)) => {
            let kind = name_of(kind);
            Error::InvalidArgument(format!(
                "{path} is {kind}, not a program ({NOT_PERMITTED}): name the .wasm file itself"
            ))
        }
        None => missing(&wanted.program, &candidates),
    })
}

/// All names to try, in order. Pure.
fn candidates(wanted: &Wanted) -> Result<Vec<Candidate>> {
    let Wanted { program, path, cwd } = wanted;
    if program.is_empty() {
        return Err(Error::InvalidArgument(
            "process.args names no program: set the image's entry point, or a command, to its .wasm file".into(),
        ));
    }
    for (what, text) in [("the program's name", program), ("process.cwd", cwd)] {
        if text.len() > PATH_BYTES_MAX || text.contains('\0') {
            return Err(Error::InvalidArgument(format!(
                "{what} must be at most {PATH_BYTES_MAX} bytes long and have no NUL character"
            )));
        }
    }
    let path = path.as_deref().unwrap_or(DEFAULT_PATH);
    let mut seen = BTreeSet::new();
    let mut candidates = Vec::new();
    for suffix in ["", ".wasm"] {
        for (file, export) in wanted.readings() {
            for directory in directories(file, path, cwd) {
                let path = format!("{directory}{file}{suffix}");
                if seen.insert(path.clone()) {
                    candidates.push(Candidate {
                        path,
                        export: export.map(str::to_string),
                        appended: !suffix.is_empty(),
                    });
                }
            }
        }
    }
    Ok(candidates)
}

/// The directories a name is looked for in, each ending in a slash (or empty for an absolute name).
fn directories(file: &str, path: &str, cwd: &str) -> Vec<String> {
    let within = |directory: &str| {
        let mut text =
            if directory.starts_with('/') { String::new() } else { format!("{}/", cwd.trim_end_matches('/')) };
        text.push_str(directory.trim_end_matches('/'));
        if !text.ends_with('/') {
            text.push('/');
        }
        text
    };
    if file.starts_with('/') {
        vec![String::new()]
    } else if file.contains('/') {
        vec![within("")]
    } else {
        // An empty element of PATH is the working directory, as for execvp(3).
        path.split(':').take(PATH_DIRECTORIES_MAX).map(within).chain([within("")]).collect()
    }
}

fn refused(path: &str, error: Errno) -> Error {
    Error::InvalidArgument(match error {
        Errno::LOOP => format!(
            "{path} goes through too many symbolic links, most likely in a circle, or through one of /proc, which are never followed"
        ),
        error => format!("cannot look up {path}: {error}"),
    })
}

fn missing(program: &str, candidates: &[Candidate]) -> Error {
    let plain: Vec<_> = candidates.iter().filter(|c| !c.appended).map(|c| c.path.as_str()).collect();
    let shown = plain.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>().join(", ");
    let more =
        if plain.len() > NAMES_SHOWN { format!(" and {} more", plain.len() - NAMES_SHOWN) } else { String::new() };
    let reason = if program.contains('/') { NO_SUCH_FILE } else { NOT_ON_PATH };
    Error::InvalidArgument(format!(
        "no program {program:?} in the container's root file system ({reason}): tried {shown}{more}, also with .wasm appended; check the image's entry point and PATH"
    ))
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::RegularFile | FileType::Symlink | FileType::Unknown => "no regular file",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use hearth_base::wanted::CUTS_MAX;

    use super::*;

    fn wanted(program: &str) -> Wanted {
        Wanted { program: program.into(), path: Some("/usr/bin:/bin".into()), cwd: "/work".into() }
    }

    fn names(wanted: &Wanted) -> Vec<String> {
        candidates(wanted).unwrap().into_iter().map(|c| c.path).collect()
    }

    #[test]
    fn names_are_tried_as_a_shell_would_and_then_with_wasm_appended() {
        assert_eq!(names(&wanted("/app")), ["/app", "/app.wasm"]);
        assert_eq!(names(&wanted("./app")), ["/work/./app", "/work/./app.wasm"]);
        assert_eq!(
            names(&wanted("app")),
            ["/usr/bin/app", "/bin/app", "/work/app", "/usr/bin/app.wasm", "/bin/app.wasm", "/work/app.wasm"]
        );
        let relative = Wanted { path: Some("lib::/".into()), cwd: "/".into(), ..wanted("app") };
        assert_eq!(names(&relative), ["/lib/app", "/app", "/lib/app.wasm", "/app.wasm"]);
        let unset = Wanted { path: None, ..wanted("app") };
        assert_eq!(names(&unset)[..2], ["/usr/local/sbin/app", "/usr/local/bin/app"]);
    }

    #[test]
    fn a_name_is_split_at_the_last_hash_first() {
        let got: Vec<_> = candidates(&wanted("/a#b#c")).unwrap().into_iter().map(|c| (c.path, c.export)).collect();
        let want = [
            ("/a#b#c", None),
            ("/a#b", Some("c")),
            ("/a", Some("b#c")),
            ("/a#b#c.wasm", None),
            ("/a#b.wasm", Some("c")),
            ("/a.wasm", Some("b#c")),
        ];
        assert_eq!(got, want.map(|(path, export)| (path.to_string(), export.map(str::to_string))));
        // The part after the hash does not make a bare name a path.
        assert_eq!(names(&wanted("app#wasi:cli/run"))[1..3], ["/usr/bin/app", "/bin/app"]);
        assert_eq!(names(&wanted("/app#")), ["/app#", "/app#.wasm"]);
        assert_eq!(names(&wanted("#run")).iter().filter(|n| !n.contains("#run")).count(), 0);
    }

    #[test]
    fn names_that_cannot_be_are_refused_before_any_system_call() {
        for program in ["".to_string(), "a\0b".into(), "x".repeat(5000)] {
            assert!(matches!(candidates(&wanted(&program)), Err(Error::InvalidArgument(_))), "{program:?}");
        }
        let many = Wanted { path: Some("/d:".repeat(5000)), ..wanted(&"#a".repeat(1000)) };
        assert!(candidates(&many).unwrap().len() <= 2 * (1 + CUTS_MAX) * (PATH_DIRECTORIES_MAX + 1));
    }

    struct Root(tempfile::TempDir);

    impl Root {
        fn new(files: &[&str]) -> Root {
            let root = Root(tempfile::tempdir().unwrap());
            for file in files {
                let path = root.0.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, file).unwrap();
            }
            root
        }

        fn find(&self, wanted: &Wanted) -> Result<(String, Option<String>), String> {
            let root = File::open(self.0.path()).unwrap();
            let mut found = find(root.as_fd(), wanted).map_err(|e| {
                assert!(matches!(e, Error::InvalidArgument(_)), "{e:?}");
                e.to_string()
            })?;
            assert!(found.on_root_mount);
            let mut text = String::new();
            found.file.read_to_string(&mut text).unwrap();
            Ok((text, found.export.map(|e| e.to_string())))
        }
    }

    #[test]
    fn the_first_regular_file_wins() {
        let root = Root::new(&["bin/app.wasm", "bin/tool", "usr/bin/tool/part", "work/local.wasm", "a#b", "a"]);
        let table = [
            ("app", "bin/app.wasm", None),
            ("app.wasm#main", "bin/app.wasm", Some("main")),
            ("app#main", "bin/app.wasm", Some("main")),
            ("tool", "bin/tool", None),
            ("local", "work/local.wasm", None),
            ("/a#b", "a#b", None),
            ("/a#b#c", "a#b", Some("c")),
            ("/a#c", "a", Some("c")),
            ("../a", "a", None),
        ];
        for (program, file, export) in table {
            let got = root.find(&wanted(program)).unwrap();
            assert_eq!(got, (file.to_string(), export.map(str::to_string)), "{program}");
        }
    }

    #[test]
    fn what_cannot_be_run_is_named_with_its_reason() {
        let root = Root::new(&["dir/file", "work/x"]);
        symlink("../../../etc/passwd", root.0.path().join("climb")).unwrap();
        symlink("circle", root.0.path().join("circle")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.0.path().join("fifo"), FileType::Fifo, 0o600.into(), 0).unwrap();
        let table = [
            ("/dir", "/dir is a directory, not a program (permission denied)"),
            // Opening it would wait for a writer for ever.
            ("/fifo", "/fifo is a FIFO"),
            // Above the root is the root.
            ("/climb", "no program \"/climb\""),
            ("../../x", "no program \"../../x\""),
            ("/circle", "circle"),
            (
                "/none",
                "no program \"/none\" in the container's root file system (no such file or directory): tried /none, also with .wasm appended",
            ),
            ("none", "(executable file not found in $PATH): tried /usr/bin/none, /bin/none, /work/none, also"),
        ];
        for (program, want) in table {
            let error = root.find(&wanted(program)).unwrap_err();
            assert!(error.contains(want), "{program}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
