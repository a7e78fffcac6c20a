//! A summary as a self-contained SVG image.
//!
//! With time steps, there is one small chart for each of the largest groups, with one line per quantile. Without, there
//! is one bar per group, with one color per quantile. All values are scaled to 0..1 first, so that the chart library
//! sees no extreme numbers.

use std::io;
use std::ops::Range;

use jiff::Timestamp;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::text::{OTHER_NAME, columns, displayed, group_name, quantile_name, rounded, time};
use crate::query::stats::{Measures, Point, Summary};

const WIDTH: u32 = 960;
const MARGIN: u32 = 16;
const HEADER: u32 = 64;

/// More charts would be too small to read.
const MAX_CHARTS: usize = 8;
const CHART_HEIGHT: u32 = 220;
const ONLY_CHART_HEIGHT: u32 = 400;

const BAR_HEIGHT: u32 = 28;
const NAME_WIDTH: u32 = 220;
const VALUE_WIDTH: u32 = 72;

const MAX_NAME_COLUMNS: usize = 26;
const MAX_PATH_COLUMNS: usize = 50;

const TEXT: RGBColor = RGBColor(0x1f, 0x29, 0x33);
const FAINT_TEXT: RGBColor = RGBColor(0x5b, 0x67, 0x75);
const GRID: RGBColor = RGBColor(0xe3, 0xe7, 0xec);

/// From the smallest to the largest quantile.
const COLORS: [RGBColor; 5] = [
    RGBColor(0x16, 0x7f, 0x92),
    RGBColor(0x3b, 0x6f, 0xc9),
    RGBColor(0xd9, 0x8e, 0x1f),
    RGBColor(0xd8, 0x5f, 0x2f),
    RGBColor(0xbe, 0x35, 0x4b),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

/// One row or chart.
struct Shown<'a> {
    name: String,
    total: &'a Measures,
    points: &'a [Point],
}

pub(super) fn draw(summary: &Summary) -> io::Result<String> {
    let groups = summary.series.iter().map(|series| Shown {
        name: displayed(&group_name(series.group.as_deref(), summary.by.is_some()), MAX_NAME_COLUMNS),
        total: &series.total,
        points: &series.points,
    });
    let other = summary.other.iter();
    let other = other.map(|other| Shown { name: OTHER_NAME.to_owned(), total: &other.total, points: &other.points });
    let mut shown: Vec<Shown<'_>> = groups.chain(other).filter(|shown| shown.total.count > 0).collect();
    let has_charts = shown.iter().any(|shown| !shown.points.is_empty());
    if has_charts {
        shown.retain(|shown| !shown.points.is_empty());
        shown.truncate(MAX_CHARTS);
    }
    let height = HEADER
        + MARGIN
        + match (has_charts, shown.len() as u32) {
            (_, 0) => BAR_HEIGHT,
            (true, 1) => ONLY_CHART_HEIGHT,
            (true, charts) => CHART_HEIGHT * charts.div_ceil(2),
            (false, bars) => BAR_HEIGHT * (bars + 1),
        };

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        draw_all(summary, &shown, has_charts, &root).map_err(io::Error::other)?;
        root.present().map_err(io::Error::other)?;
    }
    // For screen readers.
    let title = format!("<svg role=\"img\" aria-label=\"{}\" ", attribute(&title(summary)));
    Ok(svg.replacen("<svg ", &title, 1))
}

fn draw_all(summary: &Summary, shown: &[Shown<'_>], has_charts: bool, root: &Area<'_>) -> Drawn {
    root.fill(&WHITE)?;
    let (header, body) = root.split_vertically(HEADER);
    draw_header(summary, shown, has_charts, &header)?;
    let body = body.margin(0, MARGIN, MARGIN, MARGIN);
    if shown.is_empty() {
        let text = format!("No values in {} reports", summary.reports_matched);
        return write(&body, &text, (0, BAR_HEIGHT as i32 / 2), HPos::Left, 15, FAINT_TEXT);
    }
    if !has_charts {
        return draw_bars(summary, shown, &body);
    }
    let times = shown.iter().flat_map(|shown| shown.points.iter().map(|point| point.time.as_second()));
    let step = summary.step_seconds.unwrap_or(1) as i64;
    let (first, last) = times.fold((i64::MAX, i64::MIN), |(first, last), time| (first.min(time), last.max(time)));
    let times = first..last.max(first + step);
    let areas = match shown.len() {
        1 => vec![body],
        charts => body.split_evenly((charts.div_ceil(2), 2)),
    };
    shown.iter().zip(&areas).try_for_each(|(shown, area)| draw_chart(summary, shown, &times, step, area))
}

/// What the image shows, in words.
fn title(summary: &Summary) -> String {
    let path = displayed(&summary.path, MAX_PATH_COLUMNS);
    match &summary.by {
        Some(by) => format!("{path} by {}", displayed(by, MAX_PATH_COLUMNS)),
        None => path,
    }
}

fn draw_header(summary: &Summary, shown: &[Shown<'_>], has_charts: bool, area: &Area<'_>) -> Drawn {
    let margin = MARGIN as i32;
    write(area, &title(summary), (margin, 22), HPos::Left, 20, TEXT)?;
    let values: u64 = summary.series.iter().map(|series| series.total.count).sum();
    let values = values + summary.other.as_ref().map_or(0, |other| other.total.count);
    let mut facts = vec![format!("{values} values in {} reports", summary.reports_matched)];
    if has_charts && let Some(seconds) = summary.step_seconds {
        let times = || shown.iter().flat_map(|shown| shown.points.iter().map(|point| point.time));
        if let (Some(first), Some(last)) = (times().min(), times().max()) {
            let format = if seconds.is_multiple_of(60) { "%Y-%m-%d %H:%M" } else { "%Y-%m-%d %H:%M:%S" };
            let day = |at| time(at, format);
            facts.push(format!("{} to {} UTC, every {}", day(first), day(last), length(seconds)));
        }
        let groups = summary.series.len() + usize::from(summary.other.is_some());
        if groups > shown.len() {
            facts.push(format!("the largest {} of {groups} groups", shown.len()));
        }
    }
    write(area, &facts.join(" · "), (margin, 46), HPos::Left, 14, FAINT_TEXT)?;
    // The legend, from right to left.
    let mut right = (WIDTH - MARGIN) as i32;
    for (index, quantile) in summary.quantiles.iter().enumerate().rev() {
        let name = quantile_name(*quantile);
        write(area, &name, (right, 22), HPos::Right, 14, TEXT)?;
        right -= 8 * columns(&name) as i32 + 6;
        let color = color(index, summary.quantiles.len());
        area.draw(&Rectangle::new([(right - 10, 17), (right, 27)], color.filled()))?;
        right -= 26;
        if right < WIDTH as i32 / 2 {
            break;
        }
    }
    Ok(())
}

/// A duration as people write it.
fn length(seconds: u64) -> String {
    match [(86_400, "d"), (3_600, "h"), (60, "m")].into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

/// The quantiles of one group over time.
fn draw_chart(summary: &Summary, shown: &Shown<'_>, times: &Range<i64>, step: i64, area: &Area<'_>) -> Drawn {
    let quantiles = || shown.points.iter().flat_map(|point| point.measures.quantiles.iter().flatten().copied());
    let values = Scale::new(quantiles());
    let x = |time: Timestamp| (time.as_second() - times.start) as f64 / (times.end - times.start) as f64;
    let (interval, format) = time_ticks(times);
    let first_tick = times.start.div_euclid(interval) + i64::from(times.start.rem_euclid(interval) > 0);
    let x_ticks = (first_tick..=times.end.div_euclid(interval))
        .filter_map(|tick| Timestamp::from_second(tick * interval).ok())
        .map(|tick| (x(tick), time(tick, format)))
        .collect();
    let y_ticks = values.ticks().iter().map(|tick| (values.scaled(*tick), rounded(*tick))).collect();

    if summary.by.is_some() {
        write(area, &shown.name, (8, 10), HPos::Left, 15, TEXT)?;
    }
    let count = format!("{} values", shown.total.count);
    write(area, &count, (area.dim_in_pixel().0 as i32 - 12, 10), HPos::Right, 13, FAINT_TEXT)?;
    let area = area.margin(22, 4, 0, 12);
    let mut chart = ChartBuilder::on(&area)
        .x_label_area_size(26)
        .y_label_area_size(56)
        .build_cartesian_2d(Axis(x_ticks), Axis(y_ticks))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(GRID)
        .label_style(("sans-serif", 13).into_font().color(&FAINT_TEXT))
        .draw()?;

    for (index, _) in summary.quantiles.iter().enumerate() {
        let color = color(index, summary.quantiles.len());
        let points: Vec<(i64, f64, f64)> = shown
            .points
            .iter()
            .filter_map(|Point { time, measures }| {
                let number = measures.quantiles.get(index).copied().flatten()?;
                Some((time.as_second(), x(*time), values.scaled(number)))
            })
            .collect();
        // A step without values interrupts the line.
        for line in points.chunk_by(|one, next| next.0 - one.0 <= step) {
            let line: Vec<(f64, f64)> = line.iter().map(|(_, x, y)| (*x, *y)).collect();
            match line.as_slice() {
                [point] => chart.draw_series([Circle::new(*point, 2, color.filled())])?,
                _ => chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?,
            };
        }
    }
    Ok(())
}

/// The quantiles of all groups.
fn draw_bars(summary: &Summary, shown: &[Shown<'_>], area: &Area<'_>) -> Drawn {
    let quantiles = || shown.iter().flat_map(|shown| shown.total.quantiles.iter().flatten().copied());
    let values = Scale::new(quantiles());
    let width = area.dim_in_pixel().0 as i32;
    // Five columns of numbers leave enough space for the bars.
    let numbers = summary.quantiles.len().min(5);
    let left = NAME_WIDTH as i32;
    let right = width - VALUE_WIDTH as i32 * (numbers as i32 + 1);
    let x = |number: f64| left + (f64::from(right - left) * values.scaled(number)).round() as i32;
    let column = |index: usize| right + VALUE_WIDTH as i32 * (index as i32 + 1);

    for (index, quantile) in summary.quantiles.iter().take(numbers).enumerate() {
        write(area, &quantile_name(*quantile), (column(index), 12), HPos::Right, 13, FAINT_TEXT)?;
    }
    write(area, "values", (column(numbers), 12), HPos::Right, 13, FAINT_TEXT)?;
    let bottom = (BAR_HEIGHT * (shown.len() as u32 + 1)) as i32;
    for tick in values.ticks() {
        write(area, &rounded(tick), (x(tick), 12), HPos::Center, 12, FAINT_TEXT)?;
        area.draw(&PathElement::new([(x(tick), 22), (x(tick), bottom)], GRID))?;
    }
    for (row, Shown { name, total, .. }) in shown.iter().enumerate() {
        let top = (BAR_HEIGHT * (row as u32 + 1)) as i32;
        let middle = top + BAR_HEIGHT as i32 / 2;
        write(area, name, (0, middle), HPos::Left, 15, TEXT)?;
        // The largest first, so that the others are drawn on top of it.
        let mut bars: Vec<(usize, f64)> =
            total.quantiles.iter().enumerate().filter_map(|(index, number)| Some((index, (*number)?))).collect();
        bars.sort_by(|(_, one), (_, another)| another.abs().total_cmp(&one.abs()));
        for (index, number) in bars {
            let ends = [(x(0.0).min(x(number)), top + 7), (x(0.0).max(x(number)), top + BAR_HEIGHT as i32 - 7)];
            area.draw(&Rectangle::new(ends, color(index, summary.quantiles.len()).filled()))?;
        }
        for (index, number) in total.quantiles.iter().take(numbers).enumerate() {
            let text = number.map_or_else(|| "-".to_owned(), rounded);
            write(area, &text, (column(index), middle), HPos::Right, 14, TEXT)?;
        }
        write(area, &total.count.to_string(), (column(numbers), middle), HPos::Right, 14, FAINT_TEXT)?;
    }
    Ok(())
}

/// A color for a quantile. Few quantiles have colors that are easy to tell apart.
fn color(index: usize, count: usize) -> RGBColor {
    COLORS[index * (COLORS.len() - 1) / count.saturating_sub(1).max(1)]
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), h_pos: HPos, size: u32, color: RGBColor) -> Drawn {
    let style = ("sans-serif", size).into_font().color(&color).pos(Pos::new(h_pos, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style))
}

/// The content of an attribute in quotation marks.
fn attribute(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The axis of numbers, which includes zero.
struct Scale {
    lower: f64,
    upper: f64,
}

/// Larger numbers are drawn as this number, so that differences are finite.
const MAX_NUMBER: f64 = 1e300;

impl Scale {
    fn new(numbers: impl Iterator<Item = f64>) -> Self {
        let clamped = numbers.map(|number| number.clamp(-MAX_NUMBER, MAX_NUMBER));
        let (lower, upper) =
            clamped.fold((0.0_f64, 0.0_f64), |(lower, upper), number| (lower.min(number), upper.max(number)));
        let space = (upper - lower) * 0.04;
        let this = Self {
            lower: if lower < 0.0 { lower - space } else { 0.0 },
            upper: if upper > 0.0 { upper + space } else { 0.0 },
        };
        if this.upper - this.lower > 1e-300 { this } else { Self { lower: 0.0, upper: 1.0 } }
    }

    fn scaled(&self, number: f64) -> f64 {
        ((number - self.lower) / (self.upper - self.lower)).clamp(0.0, 1.0)
    }

    /// A fifth of the axis or a little less, as 1, 2 or 5 times a power of ten.
    fn tick_interval(&self) -> f64 {
        let least = (self.upper - self.lower) / 6.0;
        let power = 10_f64.powf(least.log10().floor());
        [1.0, 2.0, 5.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|interval| *interval >= least)
            .unwrap_or(10.0 * power)
    }

    fn ticks(&self) -> Vec<f64> {
        let interval = self.tick_interval();
        let (first, last) = ((self.lower / interval).ceil() as i64, (self.upper / interval).floor() as i64);
        (first..=last).map(|tick| tick as f64 * interval).collect()
    }
}

/// An axis from 0 to 1, with the places of its ticks and their labels.
struct Axis(Vec<(f64, String)>);

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        start + (f64::from(end - start) * value).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.0.iter().map(|(place, _)| *place).collect()
    }

    fn range(&self) -> Range<f64> {
        0.0..1.0
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.0.iter().find(|(place, _)| place == value).map(|(_, label)| label.clone()).unwrap_or_default()
    }
}

/// The distance of the ticks on the axis of time in seconds, and how they are written.
fn time_ticks(times: &Range<i64>) -> (i64, &'static str) {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let seconds = times.end - times.start;
    let intervals = [1, 5, 15, 30]
        .into_iter()
        .chain([1, 5, 10, 15, 30].map(|minutes| minutes * MINUTE))
        .chain([1, 2, 3, 6, 12].map(|hours| hours * HOUR))
        .chain([1, 2, 7, 14, 30, 90, 180, 365, 3_650, 36_500, 365_000].map(|days| days * DAY));
    let interval = intervals.into_iter().find(|interval| seconds / interval <= 6).unwrap_or(seconds);
    let format = match (interval, seconds) {
        (..MINUTE, _) => "%H:%M:%S",
        (..DAY, ..=DAY) => "%H:%M",
        (..DAY, _) => "%m-%d %H:%M",
        _ => "%Y-%m-%d",
    };
    (interval, format)
}
