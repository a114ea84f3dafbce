//! The program that a bundle asks for, before it is looked up: its name, and the export that the name may ask for.

/// Places in a name at which it is cut into a file and an export, at most.
pub const CUTS_MAX: usize = 8;

/// The program of a bundle, and the names that its look-up depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// `process.args[0]`, as the user wrote it.
    pub program: String,
    /// The value of `PATH` in the environment, if it is set.
    pub path: Option<String>,
    /// `process.cwd`, absolute.
    pub cwd: String,
}

impl Wanted {
    /// The files that the name can mean, each with the export to call: the name as a whole, then `FILE#EXPORT` cut at
    /// each `#` from the last one on, so that a file that really has a `#` in its name is found first.
    pub fn readings(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        std::iter::once((self.program.as_str(), None)).chain(self.cuts())
    }

    /// The export that the name asks for where it names no file: after the last `#`.
    pub fn export(&self) -> Option<&str> {
        self.cuts().find_map(|(_, export)| export)
    }

    fn cuts(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let program = self.program.as_str();
        program
            .rmatch_indices('#')
            .map(|(at, _)| (&program[..at], &program[at + 1..]))
            .filter(|(file, export)| !file.is_empty() && !export.is_empty())
            .map(|(file, export)| (file, Some(export)))
            .take(CUTS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(program: &str) -> Wanted {
        Wanted { program: program.into(), path: None, cwd: "/".into() }
    }

    #[test]
    fn a_name_is_read_as_a_whole_and_then_cut_from_the_last_sign_on() {
        type Row<'a> = (&'a str, &'a [(&'a str, Option<&'a str>)], Option<&'a str>);
        let table: [Row<'_>; 8] = [
            ("app", &[("app", None)], None),
            ("app#run", &[("app#run", None), ("app", Some("run"))], Some("run")),
            ("a#b#run", &[("a#b#run", None), ("a#b", Some("run")), ("a", Some("b#run"))], Some("run")),
            ("app#", &[("app#", None)], None),
            ("#run", &[("#run", None)], None),
            ("#", &[("#", None)], None),
            ("app##", &[("app##", None), ("app", Some("#"))], Some("#")),
            ("/a b/\u{e4}#\u{f6}", &[("/a b/\u{e4}#\u{f6}", None), ("/a b/\u{e4}", Some("\u{f6}"))], Some("\u{f6}")),
        ];
        for (program, readings, export) in table {
            assert_eq!(wanted(program).readings().collect::<Vec<_>>(), readings, "{program}");
            assert_eq!(wanted(program).export(), export, "{program}");
        }
        assert_eq!(wanted(&"#a".repeat(100)).readings().count(), 1 + CUTS_MAX);
    }
}
