//! A summary as aligned text: one table of groups and, with time steps, one of all points.

use std::io::{self, Write};

use super::text::{OTHER_NAME, columns, displayed, group_name, quantile_name, rounded};
use crate::query::stats::{Measures, Point, Summary};

/// Longer names are cut.
const MAX_NAME_COLUMNS: usize = 48;

pub(super) fn write(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    let names = summary.series.iter().map(|series| {
        let name = group_name(series.group.as_deref(), summary.by.is_some());
        (displayed(&name, MAX_NAME_COLUMNS), &series.total, &series.points)
    });
    let other = summary.other.iter().map(|other| (OTHER_NAME.to_owned(), &other.total, &other.points));
    let rows: Vec<_> = names.chain(other).collect();
    if rows.is_empty() {
        writeln!(out, "No values in {} reports.", summary.reports_matched)?;
        return Ok(());
    }
    let group = summary.by.as_ref().map_or_else(|| "GROUP".to_owned(), |by| displayed(by, MAX_NAME_COLUMNS));
    let show = Shown::new(summary);

    let totals = rows.iter().map(|(name, total, _)| [vec![name.clone()], show.cells(total)].concat());
    align(&[vec![group.clone()], show.header()].concat(), totals, 1, out)?;
    if summary.step_seconds.is_some() {
        writeln!(out)?;
        let points = rows.iter().flat_map(|(name, _, points)| points.iter().map(move |point| (name, point)));
        let points = points.map(|(name, Point { time, measures })| {
            [vec![name.clone(), time.to_string()], show.cells(measures)].concat()
        });
        align(&[vec![group, "TIME".to_owned()], show.header()].concat(), points, 2, out)?;
    }
    let reports = match summary.reports == summary.reports_matched {
        true => format!("{} reports", summary.reports),
        false => format!("{} of {} reports match", summary.reports_matched, summary.reports),
    };
    let note = if summary.limited { "; too many groups, steps or values for the memory: see (other)" } else { "" };
    writeln!(out, "\n{reports}{note}")
}

/// Which columns are shown.
struct Shown<'a> {
    quantiles: &'a [f64],
    errors: bool,
    distinct: bool,
}

impl<'a> Shown<'a> {
    fn new(summary: &'a Summary) -> Self {
        Self { quantiles: &summary.quantiles, errors: summary.with_errors, distinct: summary.with_distinct }
    }

    fn header(&self) -> Vec<String> {
        let mut header = vec!["COUNT".to_owned()];
        header.extend(self.errors.then(|| "ERRORS".to_owned()));
        header.extend(["MIN", "MEAN"].map(str::to_owned));
        header.extend(self.quantiles.iter().map(|quantile| quantile_name(*quantile).to_uppercase()));
        header.push("MAX".to_owned());
        header.extend(self.distinct.then(|| "DISTINCT".to_owned()));
        header
    }

    fn cells(&self, measures: &Measures) -> Vec<String> {
        let number = |number: &Option<f64>| number.map_or_else(|| "-".to_owned(), rounded);
        let mut cells = vec![measures.count.to_string()];
        cells.extend(self.errors.then(|| measures.errors.to_string()));
        cells.extend([number(&measures.min), number(&measures.mean)]);
        cells.extend(measures.quantiles.iter().map(number));
        cells.push(number(&measures.max));
        cells.extend(measures.distinct.map(|distinct| distinct.to_string()));
        cells
    }
}

/// Writes rows in columns. The first `left` columns are aligned on the left, the others on the right.
fn align(
    header: &[String],
    rows: impl Iterator<Item = Vec<String>>,
    left: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let rows: Vec<Vec<String>> = rows.collect();
    let all = || std::iter::once(header).chain(rows.iter().map(Vec::as_slice));
    let widths: Vec<usize> =
        (0..header.len()).map(|column| all().map(|row| columns(&row[column])).max().unwrap_or(0)).collect();
    for row in all() {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let blanks = " ".repeat(width - columns(cell));
            line.push_str(if index == 0 { "" } else { "  " });
            line.push_str(&if index < left {
                [cell.as_str(), &blanks].concat()
            } else {
                [&blanks, cell.as_str()].concat()
            });
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
