//! Bar charts as SVG files, for the README.
//!
//! Failure path: a file that cannot be written, with its path.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::{IntoFont, Rectangle, SVGBackend, Text, WHITE};
use plotters::style::{Color, RGBColor, ShapeStyle};
use plotters::{drawing::IntoDrawingArea, style::text_anchor};

/// Bars that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Their subject.
    pub label: String,
    /// The bars, from top to bottom.
    pub bars: Vec<Bar>,
}

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// The name of the runtime or figure.
    pub name: String,
    /// Its length, in the chart's unit.
    pub value: f64,
}

/// The width of a chart, in pixels.
const WIDTH: u32 = 760;
/// Room for the names on the left.
const NAMES: i32 = 190;
/// Room for the values on the right.
const VALUES: i32 = 90;
/// The height of a line of text or a bar, with the space between them.
const LINE: i32 = 22;
/// Above and below everything.
const MARGIN: i32 = 14;

const TEXT: RGBColor = RGBColor(0x24, 0x29, 0x2f);
const HEARTH: RGBColor = RGBColor(0xd9, 0x5f, 0x0e);
const FLOOR: RGBColor = RGBColor(0xaf, 0xb8, 0xc1);
const OTHERS: RGBColor = RGBColor(0x54, 0x78, 0xa8);

/// The colour of a bar, by its name.
fn colour(name: &str) -> RGBColor {
    if name.starts_with("Hearth") {
        HEARTH
    } else if name.starts_with("floor") {
        FLOOR
    } else {
        OTHERS
    }
}

/// Draws a chart of horizontal bars, each group to a scale of its own.
///
/// # Errors
/// If the file cannot be written.
pub fn bars(path: &Path, title: &str, unit: &str, groups: &[Group]) -> Result<()> {
    let text = draw(title, unit, groups).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))?;
    std::fs::write(path, text).map_err(|error| anyhow!("cannot write {}: {error}", path.display()))
}

fn draw(title: &str, unit: &str, groups: &[Group]) -> Result<String, Box<dyn std::error::Error>> {
    let lines: usize = groups.iter().map(|group| group.bars.len() + 1).sum();
    let height = 2 * MARGIN + LINE + lines as i32 * LINE + groups.len() as i32 * LINE / 2;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut y = MARGIN;
        area.draw(&Text::new(title.to_owned(), (MARGIN, y), ("sans-serif", 17).into_font().color(&TEXT)))?;
        y += LINE;
        for group in groups {
            y += LINE / 2;
            area.draw(&Text::new(group.label.clone(), (MARGIN, y), ("sans-serif", 14).into_font().color(&TEXT)))?;
            y += LINE;
            let longest = group.bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
            let room = f64::from(WIDTH as i32 - NAMES - VALUES - MARGIN);
            for bar in &group.bars {
                let length = ((bar.value / longest * room) as i32).max(1);
                let right = text_anchor::Pos::new(text_anchor::HPos::Right, text_anchor::VPos::Top);
                let small = ("sans-serif", 13).into_font().color(&TEXT);
                area.draw(&Text::new(bar.name.clone(), (NAMES - 8, y), small.clone().pos(right)))?;
                let style: ShapeStyle = colour(&bar.name).filled();
                area.draw(&Rectangle::new([(NAMES, y), (NAMES + length, y + LINE - 7)], style))?;
                area.draw(&Text::new(format!("{} {unit}", short(bar.value)), (NAMES + length + 6, y), small))?;
                y += LINE;
            }
        }
        area.present()?;
    }
    Ok(text)
}

/// Three figures or so.
fn short(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_every_name_value_and_label() {
        let bar = |name: &str, value| Bar { name: name.into(), value };
        let group = Group { label: "pod".into(), bars: vec![bar("Hearth", 31.25), bar("runc", 240.4)] };
        let text = draw("Starts", "ms", &[group]).unwrap();
        for want in ["<svg", "Starts", "pod", "Hearth", "31.2 ms", "240 ms", "</svg>"] {
            assert!(text.contains(want), "{want} is missing in\n{text}");
        }
        assert!(text.to_lowercase().contains("#d95f0e"), "Hearth has its own colour:\n{text}");
    }
}
