//! Shows a [`Summary`].

mod csv;
mod svg;
mod table;
#[cfg(all(test, not(netwatch_loom)))]
mod tests;
mod text;

use std::io::{self, Write};

use super::Summary;

/// How a summary is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned text for a terminal
    Table,
    /// One JSON object
    Json,
    /// One line per group, or per group and time step
    Csv,
    /// A chart
    Svg,
}

impl Summary {
    /// Writes the summary in `format`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, format: Format, out: &mut impl Write) -> io::Result<()> {
        match format {
            Format::Table => table::write(self, out),
            Format::Json => {
                serde_json::to_writer(&mut *out, self)?;
                writeln!(out)
            }
            Format::Csv => csv::write(self, out),
            Format::Svg => out.write_all(svg::draw(self)?.as_bytes()),
        }
    }
}
