//! Markdown tables that are readable as plain text too. Pure.

use std::fmt;

/// A table; its first columns are text, the others are numbers.
#[derive(Debug)]
pub struct Table {
    text_columns: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings and no rows.
    pub fn new(text_columns: usize, headings: &[&str]) -> Table {
        Table { text_columns, rows: vec![headings.iter().map(ToString::to_string).collect()] }
    }

    /// Adds a row, as long as the headings.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.rows[0].len());
        self.rows.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows[0].len();
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        // Three dashes make a Markdown column.
        let widths: Vec<usize> = (0..columns).map(|column| width(column).max(3)).collect();
        for (line, row) in self.rows.iter().enumerate() {
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                match column < self.text_columns {
                    true => write!(f, "| {cell:<width$} ")?,
                    false => write!(f, "| {cell:>width$} ")?,
                }
            }
            writeln!(f, "|")?;
            if line == 0 {
                for (column, &width) in widths.iter().enumerate() {
                    match column < self.text_columns {
                        true => write!(f, "|:{:-<width$}-", "")?,
                        false => write!(f, "|-{:-<width$}:", "")?,
                    }
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

/// Microseconds as they are read best: tenths below 100, whole ones above.
pub fn micros(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// Microseconds, shown as milliseconds.
pub fn millis(micros: f64) -> String {
    let millis = micros / 1e3;
    if millis < 10.0 { format!("{millis:.2}") } else { format!("{millis:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_the_script() {
        let mut table = Table::new(1, &["scenario", "p50 ≈"]);
        table.row(["a".into(), "1.0".into()]);
        table.row(["longer name".into(), "12345678".into()]);
        let expected = "\
| scenario    |    p50 ≈ |
|:------------|---------:|
| a           |      1.0 |
| longer name | 12345678 |
";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn microseconds_keep_three_figures_or_so() {
        assert_eq!(micros(1.26), "1.3");
        assert_eq!(micros(99.94), "99.9");
        assert_eq!(micros(1234.5), "1234");
        assert_eq!(micros(1235.5), "1236");
    }
}
