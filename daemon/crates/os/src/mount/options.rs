//! mount(8)'s option words, as containerd and OCI specs use them.

use rustix::mount::MountFlags;

/// Whether a bind mount shows the mounts below its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// No: `bind`.
    One,
    /// Yes, all: `rbind`.
    Tree,
}

/// Whether later mounts and unmounts on the node show in a bind mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// No: `private`, the default of an OCI runtime.
    Private,
    /// Yes: `slave`. `shared` means the same here, since a guest cannot mount.
    Slave,
}

/// The meaning of a list of mount options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags of the mount itself.
    pub flags: MountFlags,
    /// Flags of the mount and of all mounts below it (`rro` and the other recursive words).
    pub tree_flags: MountFlags,
    /// Set if it is a bind mount.
    pub bind: Option<Bind>,
    /// For bind mounts.
    pub propagation: Propagation,
    /// The other words: the file system's own options.
    pub data: Vec<String>,
}

/// The effect of a word on the flags.
enum Word {
    Set(MountFlags),
    Clear(MountFlags),
    SetTree(MountFlags),
    ClearTree(MountFlags),
    Bind(Bind),
    Propagation(Propagation),
    Ignored,
}

fn word(option: &str) -> Option<Word> {
    use MountFlags as F;
    use Word::{Clear, ClearTree, Ignored, Set, SetTree};
    Some(match option {
        "ro" => Set(F::RDONLY),
        "rw" => Clear(F::RDONLY),
        "nosuid" => Set(F::NOSUID),
        "suid" => Clear(F::NOSUID),
        "nodev" => Set(F::NODEV),
        "dev" => Clear(F::NODEV),
        "noexec" => Set(F::NOEXEC),
        "exec" => Clear(F::NOEXEC),
        "sync" => Set(F::SYNCHRONOUS),
        "async" => Clear(F::SYNCHRONOUS),
        "dirsync" => Set(F::DIRSYNC),
        "noatime" => Set(F::NOATIME),
        "atime" => Clear(F::NOATIME),
        "nodiratime" => Set(F::NODIRATIME),
        "diratime" => Clear(F::NODIRATIME),
        "relatime" => Set(F::RELATIME),
        "norelatime" => Clear(F::RELATIME),
        "strictatime" => Set(F::STRICTATIME),
        "nostrictatime" => Clear(F::STRICTATIME),
        "lazytime" => Set(F::LAZYTIME),
        "nolazytime" => Clear(F::LAZYTIME),
        "nosymfollow" => Set(F::NOSYMFOLLOW),
        "symfollow" => Clear(F::NOSYMFOLLOW),
        "rro" => SetTree(F::RDONLY),
        "rrw" => ClearTree(F::RDONLY),
        "rnosuid" => SetTree(F::NOSUID),
        "rsuid" => ClearTree(F::NOSUID),
        "rnodev" => SetTree(F::NODEV),
        "rdev" => ClearTree(F::NODEV),
        "rnoexec" => SetTree(F::NOEXEC),
        "rexec" => ClearTree(F::NOEXEC),
        "rnoatime" => SetTree(F::NOATIME),
        "ratime" => ClearTree(F::NOATIME),
        "rnodiratime" => SetTree(F::NODIRATIME),
        "rdiratime" => ClearTree(F::NODIRATIME),
        "rrelatime" => SetTree(F::RELATIME),
        "rnorelatime" => ClearTree(F::RELATIME),
        "rstrictatime" => SetTree(F::STRICTATIME),
        "rnostrictatime" => ClearTree(F::STRICTATIME),
        "rnosymfollow" => SetTree(F::NOSYMFOLLOW),
        "rsymfollow" => ClearTree(F::NOSYMFOLLOW),
        "bind" => Word::Bind(Bind::One),
        "rbind" => Word::Bind(Bind::Tree),
        "private" | "rprivate" | "unbindable" | "runbindable" => Word::Propagation(Propagation::Private),
        "slave" | "rslave" | "shared" | "rshared" => Word::Propagation(Propagation::Slave),
        "" | "defaults" | "mand" | "nomand" | "iversion" | "noiversion" | "silent" | "loud" => Ignored,
        _ => return None,
    })
}

impl MountOptions {
    /// Parses a list. Of words that contradict each other the last one wins, as in mount(8).
    pub fn parse<S: AsRef<str>>(options: &[S]) -> MountOptions {
        let mut parsed = MountOptions {
            flags: MountFlags::empty(),
            tree_flags: MountFlags::empty(),
            bind: None,
            propagation: Propagation::Private,
            data: Vec::new(),
        };
        for option in options.iter().map(AsRef::as_ref) {
            match word(option) {
                Some(Word::Set(flags)) => parsed.flags.insert(flags),
                Some(Word::Clear(flags)) => parsed.flags.remove(flags),
                Some(Word::SetTree(flags)) => parsed.tree_flags.insert(flags),
                Some(Word::ClearTree(flags)) => parsed.tree_flags.remove(flags),
                Some(Word::Bind(bind)) => parsed.bind = Some(bind),
                Some(Word::Propagation(propagation)) => parsed.propagation = propagation,
                Some(Word::Ignored) => {}
                None => parsed.data.push(option.to_string()),
            }
        }
        parsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> MountOptions {
        MountOptions::parse(&text.split(',').collect::<Vec<_>>())
    }

    #[test]
    fn option_words_are_read_as_mount_8_reads_them() {
        use MountFlags as F;
        let cases = [
            ("", F::empty(), F::empty(), None, Propagation::Private, ""),
            ("ro,rbind,rprivate", F::RDONLY, F::empty(), Some(Bind::Tree), Propagation::Private, ""),
            ("bind,rslave", F::empty(), F::empty(), Some(Bind::One), Propagation::Slave, ""),
            ("ro,rw", F::empty(), F::empty(), None, Propagation::Private, ""),
            ("rw,ro", F::RDONLY, F::empty(), None, Propagation::Private, ""),
            ("rbind,rro,rshared", F::empty(), F::RDONLY, Some(Bind::Tree), Propagation::Slave, ""),
            (
                "nosuid,noexec,nodev,size=65536k,mode=755",
                F::NOSUID | F::NOEXEC | F::NODEV,
                F::empty(),
                None,
                Propagation::Private,
                "size=65536k,mode=755",
            ),
            ("nosuid,suid,relatime,defaults", F::RELATIME, F::empty(), None, Propagation::Private, ""),
            (
                "index=off,lowerdir=/a:/b",
                F::empty(),
                F::empty(),
                None,
                Propagation::Private,
                "index=off,lowerdir=/a:/b",
            ),
        ];
        for (text, flags, tree_flags, bind, propagation, data) in cases {
            let data = data.split(',').filter(|word| !word.is_empty()).map(String::from).collect();
            assert_eq!(options(text), MountOptions { flags, tree_flags, bind, propagation, data }, "{text}");
        }
    }
}
