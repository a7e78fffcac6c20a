//! A summary as CSV (RFC 4180, with a header).
//!
//! ```text
//!   series,group,time,count,errors,min,mean,max,p50,p95,p99,distinct
//!   group,api,2026-11-22T12:00:00Z,3,0,12.5,20,31,19.9,30.9,31,2
//!   other,,2026-11-22T12:00:00Z,…
//! ```
//!
//! The column `series` is `group`, or `other` for all other groups together. With time steps, there is one line for each
//! point; without, the column `time` is missing. Names are written as they are.

use std::io::{self, Write};

use super::text::quantile_name;
use crate::query::stats::{Measures, Point, Summary};

pub(super) fn write(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    let has_time = summary.step_seconds.is_some();
    let mut header = vec!["series".to_owned(), "group".to_owned()];
    header.extend(has_time.then(|| "time".to_owned()));
    header.extend(["count", "errors", "min", "mean", "max"].map(str::to_owned));
    header.extend(summary.quantiles.iter().map(|quantile| quantile_name(*quantile)));
    header.push("distinct".to_owned());
    csv.write_record(&header)?;

    let groups = summary.series.iter().map(|series| ("group", series.group.as_deref(), &series.total, &series.points));
    let other = summary.other.iter().map(|other| ("other", None, &other.total, &other.points));
    for (kind, group, total, points) in groups.chain(other) {
        let mut write = |time: Option<String>, measures: &Measures| {
            let mut record = vec![kind.to_owned(), group.unwrap_or_default().to_owned()];
            record.extend(time);
            record.extend([measures.count.to_string(), measures.errors.to_string()]);
            let Measures { min, mean, max, .. } = measures;
            record.extend([min, mean, max].into_iter().chain(&measures.quantiles).map(number));
            record.push(measures.distinct.map_or_else(String::new, |distinct| distinct.to_string()));
            csv.write_record(&record)
        };
        if has_time {
            points.iter().try_for_each(|Point { time, measures }| write(Some(time.to_string()), measures))?;
        } else {
            write(None, total)?;
        }
    }
    csv.flush()
}

fn number(number: &Option<f64>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}
