//! Text for people. The values in reports come from strangers, so nothing in them may control the display.

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The name of the group without a value.
pub(super) const NULL_NAME: &str = "(null)";

/// The name of all other groups.
pub(super) const OTHER_NAME: &str = "(other)";

/// The name of the only series if there are no groups.
pub(super) const ALL_NAME: &str = "(all)";

/// `text` with characters that are invisible or change the direction of text as `\u{202e}`, in at most `max_columns`
/// columns.
pub(super) fn displayed(text: &str, max_columns: usize) -> String {
    // Each column needs one character, and a character with its marks rarely more than a few.
    let start: String = text.chars().take(max_columns * 8).collect();
    let is_cut = start.len() < text.len();
    let escaped = escape(&start);
    if !is_cut && escaped.width() <= max_columns {
        return escaped;
    }
    let mut columns = 1;
    let kept = escaped.chars().take_while(|char| {
        columns += char.width().unwrap_or(0);
        columns <= max_columns
    });
    kept.chain(['…']).collect()
}

/// The standard library knows which characters are not printable. It also escapes quotation marks and backslashes, and
/// combining marks at the start of a text, which may stay here.
fn escape(text: &str) -> String {
    let plain = ['"', '\'', '\\'];
    let mut escaped = String::with_capacity(text.len());
    for part in text.split_inclusive(plain) {
        let (part, mark) = match part.strip_suffix(plain) {
            Some(stripped) => (stripped, &part[stripped.len()..]),
            None => (part, ""),
        };
        let base = format!("-{part}");
        escaped.extend(base.escape_debug().skip(1));
        escaped.push_str(mark);
    }
    escaped
}

/// Columns of `text` in a terminal.
pub(super) fn columns(text: &str) -> usize {
    text.width()
}

/// `p95` for 0.95.
pub(super) fn quantile_name(quantile: f64) -> String {
    let percent = format!("{:.6}", quantile * 100.0);
    format!("p{}", percent.trim_end_matches('0').trim_end_matches('.'))
}

/// A number with about four significant digits.
pub(super) fn rounded(number: f64) -> String {
    let absolute = number.abs();
    if number == 0.0 {
        "0".to_owned()
    } else if !(1e-4..1e12).contains(&absolute) {
        format!("{number:.3e}")
    } else if absolute >= 1_000.0 || number.fract() == 0.0 {
        format!("{number:.0}")
    } else {
        let decimals = (3 - absolute.log10().floor() as i32).clamp(1, 8) as usize;
        let text = format!("{number:.decimals$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// A time in UTC. `strftime` is the format.
pub(super) fn time(time: Timestamp, strftime: &str) -> String {
    time.to_zoned(TimeZone::UTC).strftime(strftime).to_string()
}

/// The name of a group.
pub(super) fn group_name(group: Option<&str>, is_grouped: bool) -> Cow<'_, str> {
    match group {
        Some(group) => Cow::Borrowed(group),
        None if is_grouped => Cow::Borrowed(NULL_NAME),
        None => Cow::Borrowed(ALL_NAME),
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_controls_the_display() {
        assert_eq!(displayed("München \"東京\" मुंबई 🦀 it's \\", 60), "München \"東京\" मुंबई 🦀 it's \\");
        assert_eq!(displayed("a\u{1b}[31m\r\n\t\0", 60), "a\\u{1b}[31m\\r\\n\\t\\0");
        assert_eq!(
            displayed("\u{202e}abc\u{2066}\u{200f}\u{feff}\u{85}", 60),
            "\\u{202e}abc\\u{2066}\\u{200f}\\u{feff}\\u{85}"
        );
        assert_eq!(displayed("\u{fffe}\u{ffff}\u{2028}\u{e0001}", 60), "\\u{fffe}\\u{ffff}\\u{2028}\\u{e0001}");
    }

    #[test]
    fn a_long_name_is_cut() {
        assert_eq!(displayed(&"x".repeat(10), 10), "x".repeat(10));
        assert_eq!(displayed(&"x".repeat(11), 10), format!("{}…", "x".repeat(9)));
        assert_eq!(displayed(&"東".repeat(10), 10), "東東東東…");
        let marks = format!("a{}", "\u{301}".repeat(1 << 20));
        assert!(displayed(&marks, 10).len() < 200);
    }

    #[test]
    fn numbers_are_rounded_to_four_digits() {
        for (number, expected) in [
            (0.0, "0"),
            (12.0, "12"),
            (12.345, "12.35"),
            (123.456, "123.5"),
            (1234.56, "1235"),
            (0.001_234_56, "0.001235"),
            (-12.5, "-12.5"),
            (1e300, "1.000e300"),
            (1e-9, "1.000e-9"),
            (100.0, "100"),
            (999.96, "1000"),
        ] {
            assert_eq!(rounded(number), expected);
        }
    }

    #[test]
    fn quantiles_have_the_usual_names() {
        for (quantile, expected) in
            [(0.5, "p50"), (0.95, "p95"), (0.999, "p99.9"), (0.07, "p7"), (0.0, "p0"), (1.0, "p100")]
        {
            assert_eq!(quantile_name(quantile), expected);
        }
    }
}
