//! Numbers of JSON.

/// Numbers up to here are exact as `f64`.
const MAX_EXACT: u64 = 1 << 53;

/// Powers of ten that are exact as `f64`.
const POWERS_OF_TEN: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// The number that `json`, a valid JSON value, stands for. `None` if the value is no number, or too large for `f64`.
pub(super) fn number(json: &[u8]) -> Option<f64> {
    if !matches!(json.first()?, b'-' | b'0'..=b'9') {
        return None;
    }
    short(json).or_else(|| std::str::from_utf8(json).ok()?.parse().ok().filter(|number: &f64| number.is_finite()))
}

/// The fast path for numbers without an exponent. A quotient of two exact numbers is rounded correctly: Clinger, *How
/// to read floating point numbers accurately*, PLDI 1990.
fn short(json: &[u8]) -> Option<f64> {
    let (is_negative, digits) = match json {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.len() > 17 {
        return None;
    }
    let (mut integer, mut point) = (0_u64, None);
    for (index, byte) in digits.iter().enumerate() {
        match byte {
            b'0'..=b'9' => integer = integer * 10 + u64::from(byte - b'0'),
            b'.' => point = Some(index),
            _ => return None,
        }
    }
    let fraction_digits = point.map_or(0, |point| digits.len() - 1 - point);
    (integer <= MAX_EXACT).then(|| {
        let number = integer as f64 / POWERS_OF_TEN[fraction_digits];
        if is_negative { -number } else { number }
    })
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_finite_numbers_are_numbers() {
        for (json, expected) in [
            ("0", Some(0.0)),
            ("-0.5", Some(-0.5)),
            ("12.50", Some(12.5)),
            ("1e3", Some(1_000.0)),
            ("9007199254740993", Some(9_007_199_254_740_992.0)),
            ("123456789012345678901234567890", Some(1.234_567_890_123_456_8e29)),
            ("1e999", None),
            ("-1e999", None),
            ("\"1\"", None),
            ("null", None),
            ("true", None),
            ("[1]", None),
            ("", None),
        ] {
            assert_eq!(number(json.as_bytes()), expected, "{json}");
        }
    }

    proptest! {
        #[test]
        fn numbers_are_those_of_the_standard_library(json in r"-?((0|[1-9][0-9]{0,20})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?|9\.[0-9]{14,15})") {
            let expected = json.parse::<f64>().ok().filter(|number| number.is_finite());
            prop_assert_eq!(number(json.as_bytes()), expected);
        }
    }
}
