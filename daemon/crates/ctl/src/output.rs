//! How answers are printed: tables for people, JSON for programs, colours only on a terminal.

use std::io::{self, BufWriter, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde::Serialize;

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set or `TERM` is `dumb`.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The meaning of a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// No colour.
    Plain,
    /// A heading, or a detail.
    Dim,
    /// Well.
    Good,
    /// An operator should look at this.
    Warn,
    /// Wrong.
    Bad,
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Tone::Plain => Style::new(),
            Tone::Dim => Style::new().dimmed(),
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Warn => AnsiColor::Yellow.on_default(),
            Tone::Bad => AnsiColor::Red.on_default(),
        }
    }
}

/// Prints answers.
pub struct Printer {
    to: Box<dyn Write>,
    /// JSON instead of text.
    pub json: bool,
    color: bool,
    /// Whether standard output is a terminal.
    pub terminal: bool,
}

impl Printer {
    /// Standard output.
    pub fn stdout(json: bool, color: ColorChoice) -> Printer {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let color = match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                terminal && set("NO_COLOR").is_none() && set("TERM").is_none_or(|terminal| terminal != "dumb")
            }
        };
        Printer { to: Box::new(BufWriter::new(stdout)), json, color, terminal }
    }

    /// Without colours, into memory: for tests.
    #[cfg(test)]
    pub fn to_memory() -> (Printer, tests::Printed) {
        let printed = tests::Printed::default();
        let to = Box::new(printed.clone());
        (Printer { to, json: false, color: false, terminal: false }, printed)
    }

    /// Prints an answer as JSON.
    ///
    /// # Errors
    /// As the writer.
    pub fn json(&mut self, answer: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.to, answer)?;
        self.to.write_all(b"\n")
    }

    /// Prints an answer as JSON on one line.
    ///
    /// # Errors
    /// As the writer.
    pub fn json_line(&mut self, answer: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.to, answer)?;
        self.to.write_all(b"\n")
    }

    /// Prints a control sequence.
    ///
    /// # Errors
    /// As the writer.
    pub fn raw(&mut self, text: &str) -> io::Result<()> {
        self.to.write_all(text.as_bytes())
    }

    /// Prints a line.
    ///
    /// # Errors
    /// As the writer.
    pub fn line(&mut self, text: impl AsRef<str>) -> io::Result<()> {
        self.to.write_all(text.as_ref().as_bytes())?;
        self.to.write_all(b"\n")
    }

    /// Prints a table: its columns are as wide as their widest cell.
    ///
    /// # Errors
    /// As the writer.
    pub fn table(&mut self, table: &Table) -> io::Result<()> {
        for line in table.lines(self.color) {
            self.line(line)?;
        }
        Ok(())
    }

    /// `text` in the colour for `tone`, where there are colours.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        paint(self.color, tone, text)
    }

    /// Flushes the lines printed so far.
    ///
    /// # Errors
    /// As the writer.
    pub fn finish(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn paint(color: bool, tone: Tone, text: &str) -> String {
    let style = if color { tone.style() } else { Style::new() };
    format!("{style}{text}{style:#}")
}

/// A cell of a table.
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A text with a colour.
    pub fn toned(tone: Tone, text: impl Into<String>) -> Cell {
        Cell { text: printable(&text.into()), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell::toned(Tone::Plain, text)
    }
}

/// The most bytes of one text that are shown.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// `text` with each control character escaped: a text of a guest or an image must not control the terminal.
pub fn printable(text: &str) -> String {
    hearth_base::text::shown(text, TEXT_BYTES_MAX).into_owned()
}

/// Rows under headings. A heading that begins with `>` is of a column of numbers, aligned to the right.
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// No rows yet.
    pub fn new(headings: &[&'static str]) -> Table {
        Table { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are headings.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.headings.len());
        self.rows.push(cells);
    }

    fn lines(&self, color: bool) -> Vec<String> {
        let names: Vec<_> = self.headings.iter().map(|heading| heading.trim_start_matches('>')).collect();
        let mut widths: Vec<_> = names.iter().map(|name| name.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let right: Vec<_> = self.headings.iter().map(|heading| heading.starts_with('>')).collect();
        let line = |cells: &mut dyn Iterator<Item = (&str, Tone)>| {
            let mut line = String::new();
            for (column, (text, tone)) in cells.enumerate() {
                let blanks = " ".repeat(widths[column] - text.chars().count());
                if column > 0 {
                    line.push_str("  ");
                }
                let painted = paint(color, tone, text);
                match right[column] {
                    true => line.extend([blanks.as_str(), painted.as_str()]),
                    false => line.extend([painted.as_str(), blanks.as_str()]),
                }
            }
            line.truncate(line.trim_end().len());
            line
        };
        let mut lines = Vec::new();
        if names.iter().any(|name| !name.is_empty()) {
            lines.push(line(&mut names.iter().map(|name| (*name, Tone::Dim))));
        }
        lines.extend(self.rows.iter().map(|row| line(&mut row.iter().map(|cell| (cell.text.as_str(), cell.tone)))));
        lines
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// The text printed into memory.
    #[derive(Clone, Default)]
    pub struct Printed(Arc<Mutex<Vec<u8>>>);

    impl Printed {
        /// All of it.
        pub fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Printed {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn columns_are_as_wide_as_they_have_to_be_and_numbers_are_on_the_right() {
        let mut table = Table::new(&["NAME", ">CPU"]);
        table.row(vec!["a".into(), "10 ms".into()]);
        table.row(vec!["longer".into(), Cell::toned(Tone::Bad, "1 s")]);
        assert_eq!(table.lines(false), ["NAME      CPU", "a       10 ms", "longer    1 s"]);
        assert!(table.lines(true)[2].ends_with("\x1b[31m1 s\x1b[0m"));
    }

    #[test]
    fn control_characters_are_not_printed() {
        assert_eq!(printable("a\x1b[2Jb\n"), r"a\u{1b}[2Jb\n");
    }
}
