//! Each format is parsed again.

use std::num::NonZeroU32;

use super::Format;
use crate::query::TimeRange;
use crate::query::stats::{BatchTime, Options, Stats, Summary};

/// A group that tries everything.
const HOSTILE: &str = "\"</text><script>alert(1)</script>&'\u{1}\u{1b}[31m\u{202e}\u{fffe}\r\n,;é東";

fn summary(step_seconds: Option<u32>, groups: &[&str], top: usize) -> Summary {
    let path = |text: &str| text.parse().expect("a path");
    let options = Options {
        path: path(".n"),
        by: Some(path(".g")),
        errors: Some(path(".e")),
        distinct: Some(path(".n")),
        step_seconds: step_seconds.and_then(NonZeroU32::new),
        quantiles: vec![0.5, 0.999],
        top,
        time: path(".t"),
        range: TimeRange::default(),
    };
    let mut stats = Stats::new(options, 1 << 20);
    for (index, group) in groups.iter().enumerate() {
        for n in 0..20 - index {
            let line = serde_json::json!({"g": group, "n": n * 10, "t": 1_795_348_800_000_u64 + n as u64 * 20_000})
                .to_string();
            let batch = BatchTime { time: jiff::Timestamp::UNIX_EPOCH, is_in_range: true };
            stats.add(line.as_bytes(), batch, |_| true);
        }
    }
    stats.finish()
}

fn text(summary: &Summary, format: Format) -> String {
    let mut out = Vec::new();
    summary.write(format, &mut out).expect("writing to memory succeeds");
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn json_has_the_documented_members() {
    let summary = summary(Some(60), &[HOSTILE, "b", "c"], 2);
    let json: serde_json::Value = serde_json::from_str(&text(&summary, Format::Json)).expect("JSON");
    assert_eq!(json["series"][0]["group"], HOSTILE);
    assert_eq!((&json["path"], &json["by"], &json["step_seconds"]), (&".n".into(), &".g".into(), &60.into()));
    assert_eq!(json["series"][0]["points"][0]["time"], "2026-11-22T12:00:00Z");
    assert_eq!(json["series"][0]["points"][0]["count"], 3);
    assert_eq!(json["series"][0]["quantiles"].as_array().map(Vec::len), Some(2));
    assert_eq!(json["other"]["count"], 18);
    assert_eq!((&json["reports"], &json["reports_matched"], &json["limited"]), (&57.into(), &57.into(), &false.into()));
    let names = |value: &serde_json::Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let measures = ["count", "distinct", "errors", "max", "mean", "min"];
    let series = names(&json["series"][0]);
    assert_eq!(series, ["count", "distinct", "errors", "group", "max", "mean", "min", "points", "quantiles"]);
    assert!(measures.iter().all(|name| names(&json["other"]).iter().any(|other| other == name)));
}

#[test]
fn csv_keeps_every_name_and_number() {
    let csv = text(&summary(None, &[HOSTILE, "b", "c"], 2), Format::Csv);
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let header = reader.headers().expect("a header").clone();
    let expected = ["series", "group", "count", "errors", "min", "mean", "max", "p50", "p99.9", "distinct"];
    assert_eq!(header.iter().collect::<Vec<_>>(), expected);
    let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().expect("valid CSV");
    assert_eq!(
        rows.iter().map(|row| (&row[0], &row[1], &row[2])).collect::<Vec<_>>(),
        [("group", HOSTILE, "20"), ("group", "b", "19"), ("other", "", "18"),]
    );
    let points = text(&summary(Some(60), &["b"], 2), Format::Csv);
    let mut reader = csv::Reader::from_reader(points.as_bytes());
    assert_eq!(reader.headers().expect("a header").get(2), Some("time"));
    assert_eq!(reader.records().count(), 7);
}

#[test]
fn a_table_is_aligned_and_has_no_control_characters() {
    for step in [None, Some(60)] {
        let table = text(&summary(step, &[HOSTILE, "b", "東京"], 5), Format::Table);
        assert!(!table.chars().any(|char| char.is_control() && char != '\n'), "{table:?}");
        assert!(!table.contains(['\u{202e}', '\u{fffe}']), "{table:?}");
        let first_table = table.split("\n\n").next().expect("a table");
        let ends = |line: &str| unicode_width::UnicodeWidthStr::width(line);
        let widths: Vec<usize> = first_table.lines().map(ends).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
    }
}

#[test]
fn a_summary_of_nothing_is_shown_in_every_format() {
    for step in [None, Some(60)] {
        let empty = summary(step, &[], 5);
        assert!(text(&empty, Format::Table).starts_with("No values in 0 reports"));
        assert_eq!(text(&empty, Format::Csv).lines().count(), 1);
        assert!(text(&empty, Format::Svg).contains("No values"));
        assert!(text(&empty, Format::Json).contains("\"series\":[]"));
    }
}

/// Checks what browsers require of XML: tags are closed in order, and text has no forbidden characters.
fn assert_well_formed(svg: &str) {
    let mut open = Vec::new();
    let mut rest = svg;
    while let Some((before, tag)) = rest.split_once('<') {
        assert!(!before.contains('>'), "{before}");
        let (tag, after) = tag.split_once('>').expect("each tag ends");
        assert!(!tag.contains('<') && tag.matches('"').count() % 2 == 0, "{tag}");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop().as_deref(), Some(name)),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split_whitespace().next().expect("a name").to_owned()),
        }
        for reference in before.split('&').skip(1) {
            assert!(
                ["amp;", "lt;", "gt;", "quot;", "apos;"].iter().any(|name| reference.starts_with(name)),
                "{before}"
            );
        }
        rest = after;
    }
    assert_eq!(open, Vec::<String>::new());
    assert!(
        !svg.chars()
            .any(|char| (char.is_control() && char != '\n') || matches!(char, '\u{fffe}' | '\u{ffff}' | '\u{202e}'))
    );
}

#[test]
fn a_chart_with_hostile_names_is_well_formed_and_contains_no_script() {
    for (step, groups) in [(None, 3), (Some(60), 3), (Some(60), 1), (Some(1), 3), (Some(86_400 * 365), 2)] {
        let mut summary = summary(step, &[HOSTILE, "]]>", "<!--"][..groups], 5);
        summary.path = HOSTILE.to_owned();
        let svg = text(&summary, Format::Svg);
        assert_well_formed(&svg);
        assert!(!svg.contains("<script"), "{svg}");
        assert!(svg.contains("&lt;/text&gt;&lt;script&gt;"), "the name is shown: {svg}");
        assert!(!svg.contains("href") && !svg.contains("url("), "it is self-contained");
    }
}

#[test]
fn extreme_numbers_are_drawn() {
    let path = |text: &str| text.parse().expect("a path");
    for numbers in ["[1.7e308,-1.7e308]", "[0]", "[1e-250]", "[-1]", "[5e-324]", "[1,1e300]"] {
        for step_seconds in [None, NonZeroU32::new(1)] {
            let options = Options {
                path: path(".n[]"),
                by: None,
                errors: None,
                distinct: None,
                step_seconds,
                quantiles: vec![0.0, 0.5, 1.0],
                top: 1,
                time: path(".t"),
                range: TimeRange::default(),
            };
            let mut stats = Stats::new(options, 1 << 20);
            for time in ["\"-009999-01-02T01:59:59Z\"", "0", "\"9999-12-30T22:00:00Z\""] {
                let line = format!(r#"{{"n":{numbers},"t":{time}}}"#);
                stats.add(line.as_bytes(), BatchTime { time: jiff::Timestamp::MAX, is_in_range: true }, |_| true);
            }
            let svg = text(&stats.finish(), Format::Svg);
            assert_well_formed(&svg);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
