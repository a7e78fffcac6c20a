//! Tests of the report checks: examples, and comparisons with serde_json.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn at(line: usize, column: usize) -> Position {
    Position { line, column }
}

/// The lines of a valid body, and whether they borrow from the body.
fn lines(body: &str) -> (Vec<String>, bool) {
    let reports = Reports::check(body.as_bytes()).unwrap_or_else(|invalid| panic!("{body:?}: {invalid}"));
    let lines: Vec<_> = std::str::from_utf8(reports.as_bytes()).unwrap().split('\n').map(str::to_owned).collect();
    assert_eq!(lines.len(), reports.count());
    (lines, matches!(reports.lines, Cow::Borrowed(_)))
}

/// The fault of an invalid body that is not a batch.
fn fault(body: &[u8]) -> Fault {
    let invalid = Reports::check(body).unwrap_err();
    assert_eq!(invalid.element, None, "{invalid}");
    invalid.fault
}

#[test]
fn an_object_on_one_line_is_not_changed() {
    for body in [
        r"{}",
        r#"{"a":1,"a":2}"#,
        r#"{ "n" : [ 1e999, -0.0, 12345678901234567890123 ] , "s":"\u0000\ud800 é 💡"}"#,
        "{\"separators that are not line breaks\":\"\u{2028}\u{2029}\u{85}\"}",
    ] {
        let report = Reports::check(body.as_bytes()).unwrap();
        assert_eq!(report.as_bytes(), body.as_bytes());
        assert!(matches!(report.lines, Cow::Borrowed(_)));
        assert_eq!(report.count(), 1);
    }
}

#[test]
fn outer_white_space_is_removed_and_inner_line_breaks_become_spaces() {
    let report = Reports::check(b"\r\n {\r\n\t\"a\": [1,\n2],\r\"b\":\"\\n\"\n} \t\n").unwrap();
    assert_eq!(report.as_bytes(), b"{  \t\"a\": [1, 2], \"b\":\"\\n\" }");
}

#[test]
fn a_body_of_only_white_space_is_empty() {
    assert_eq!(fault(b""), Fault::Empty);
    assert_eq!(fault(b" \r\n\t"), Fault::Empty);
}

#[test]
fn invalid_utf8_is_refused_with_its_position() {
    assert_eq!(fault(b"{\"a\":\"\xff\"}"), Fault::NotUtf8(at(1, 7)));
    assert_eq!(fault(b"{\n\"\xc3\"}"), Fault::NotUtf8(at(2, 2)));
    // A surrogate (CESU-8) and an overlong form.
    assert!(matches!(fault(b"{\"a\":\"\xed\xa0\x80\"}"), Fault::NotUtf8(_)));
    assert!(matches!(fault(b"{\"a\":\"\xc0\xaf\"}"), Fault::NotUtf8(_)));
}

#[test]
fn invalid_json_is_refused_with_the_position_of_the_fault() {
    for (body, line, column) in [
        (&b"hello"[..], 1, 1),
        (b"{\"a\":1", 1, 6),
        (b"{\"a\":}", 1, 6),
        (b"{\"a\":1,}", 1, 8),
        (b"{'a':1}", 1, 2),
        (b"{\"a\":01}", 1, 7),
        (b"{\"a\":1.}", 1, 8),
        (b"{\"a\":+1}", 1, 6),
        (b"{\"a\":NaN}", 1, 6),
        (b"{\n\"a\": tru}", 2, 9),
        (b"{} {}", 1, 4),
        (b"[{}] {}", 1, 6),
        (b"[{}]\n[{}]", 2, 1),
        (b"{\"a\":\"\t\"}", 1, 6),
        (b"{\"a\":\"\\x\"}", 1, 8),
        (b"{\"a\":\"\\u12\"}", 1, 12),
        (b"// c\n{}", 1, 1),
        (b"\xef\xbb\xbf{}", 1, 1),
        (b"{}\0", 1, 3),
        (b"\x0c{}", 1, 1),
        (b"{\n", 2, 1),
    ] {
        match fault(body) {
            Fault::NotJson { reason, position } => {
                assert_eq!(position, at(line, column), "{:?}: {reason}", body.escape_ascii().to_string());
                assert!(!reason.is_empty() && !reason.contains("column"), "{reason}");
            }
            other => panic!("{:?}: {other:?}", body.escape_ascii().to_string()),
        }
    }
}

#[test]
fn json_that_is_not_an_object_is_refused_with_the_type_that_was_found() {
    for (body, found) in
        [(&b"\"{}\""[..], "a string"), (b"true", "a boolean"), (b"null", "null"), (b"-12.5", "a number")]
    {
        assert_eq!(fault(body), Fault::NotAnObject { found, position: at(1, 1) });
    }
    assert_eq!(fault(b"\n 1"), Fault::NotAnObject { found: "a number", position: at(2, 2) });
}

#[test]
fn depth_is_limited_and_brackets_within_strings_do_not_count() {
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    assert!(Reports::check(nested(MAX_DEPTH).as_bytes()).is_ok());
    assert!(serde_json::from_str::<Value>(&nested(MAX_DEPTH)).is_ok());
    assert!(serde_json::from_str::<Value>(&nested(MAX_DEPTH + 1)).is_err());
    assert_eq!(fault(nested(MAX_DEPTH + 1).as_bytes()), Fault::TooDeep(at(1, "{\"a\":".len() + MAX_DEPTH)));
    let late = format!("{{\"wide\":[{}0],\"a\":{}}}", "[],".repeat(1_000), nested(MAX_DEPTH));
    assert!(matches!(fault(late.as_bytes()), Fault::TooDeep(at) if at.column > 3_000));
    let wide = format!("{{\"a\":[{}0]}}", "[],{},".repeat(1_000));
    assert!(Reports::check(wide.as_bytes()).is_ok());
    let strings = format!("{{\"a\":\"\\\"{}\\\\\",\"b\":[]}}", "[{".repeat(1_000));
    assert!(Reports::check(strings.as_bytes()).is_ok());
}

/// The depth of a value. The reference implementation for [`too_deep`].
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[test]
fn very_deep_nesting_does_not_exhaust_the_stack() {
    let body = format!("{{\"a\":{}{}}}", "[".repeat(500_000), "]".repeat(500_000));
    assert!(matches!(fault(body.as_bytes()), Fault::TooDeep(_)));
    let body = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
    let found = Fault::NotAnObject { found: "an array", position: at(1, 2) };
    assert_eq!(Reports::check(body.as_bytes()), Err(Invalid { fault: found, element: Some(0) }));
}

#[test]
fn each_object_in_an_array_becomes_one_line() {
    assert_eq!(lines(r#"[{"a":1},{"b":[{}, 2]}]"#).0, [r#"{"a":1}"#, r#"{"b":[{}, 2]}"#]);
    assert_eq!(lines("\n[ {} ,\n{\r\n\"a\":\n1}\t]\r\n").0, ["{}", "{  \"a\": 1}"]);
    assert_eq!(lines(" [ {\"a\":1} ] "), (vec!["{\"a\":1}".to_owned()], true), "a single object is not copied");
    assert_eq!(fault(b" [ ] "), Fault::Empty);
}

#[test]
fn each_object_that_begins_on_a_new_line_becomes_one_line() {
    let two = vec!["{\"a\":1}".to_owned(), "{}".to_owned()];
    for body in ["{\"a\":1}\n{}", "{\"a\":1}\n{}\n", "\n\n {\"a\":1}\n{} "] {
        assert_eq!(lines(body), (two.clone(), true), "{body:?} must not be copied");
    }
    for body in ["{\"a\":1}\r\n{}\r\n", "{\"a\":1}\n\n{}", "{\"a\":1}\n {}", "{\"a\":1} \n{}"] {
        assert_eq!(lines(body), (two.clone(), false), "{body:?} must be copied");
    }
    assert_eq!(lines("{}\n{\n}\n{}\n\n{}").0, ["{}", "{ }", "{}", "{}"]);
}

#[test]
fn the_lines_are_never_longer_than_the_body() {
    for body in ["[{},{},{}]", "{}\n\n{}\n{}", "[{\n},{}]", "{\n}"] {
        let reports = Reports::check(body.as_bytes()).unwrap();
        assert!(reports.as_bytes().len() <= body.len());
        let Cow::Owned(lines) = reports.lines else { panic!("{body:?} must be copied") };
        assert!(lines.capacity() <= body.len() + 1, "{body:?}: {}", lines.capacity());
    }
}

#[test]
fn a_fault_in_a_batch_is_reported_with_its_element_and_its_position_in_the_body() {
    let deep = format!("{{}}\n{{\"a\":{}{}}}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    for (body, element, line, column) in [
        (&b"[1]"[..], 0, 1, 2),
        (b"[{},\n {},\n null]", 2, 3, 2),
        (b"[{},[{}]]", 1, 1, 5),
        (b"[{},{\"a\":01}]", 1, 1, 11),
        (b"[{},]", 1, 1, 5),
        (b"[{} {}]", 1, 1, 5),
        (b"[{}", 1, 1, 3),
        (b"[{},\n{\"a\":\"\xff\"}]", 1, 2, 7),
        (b"{}\n\n{\"a\":}", 1, 3, 6),
        (b"{}\nhello", 1, 2, 1),
        (b"{}\n[{}]", 1, 2, 1),
        (b"1\n{}", 0, 1, 1),
        (b"{}\n{} {}", 1, 2, 4),
        (b"{}\n{}\n{\"a\":\"\xff\"}", 2, 3, 7),
        (b"{}\n\xff", 1, 2, 1),
        (b"[{},1,{\"a\":\"\xff\"}]", 1, 1, 5),
        (deep.as_bytes(), 1, 2, 132),
    ] {
        let invalid = Reports::check(body).unwrap_err();
        let position = format!("line {line} column {column}");
        assert_eq!(invalid.element, Some(element), "{:?}: {invalid}", body.escape_ascii().to_string());
        assert_eq!(
            invalid.fault.position(),
            Some(at(line, column)),
            "{:?}: {invalid}",
            body.escape_ascii().to_string()
        );
        assert!(invalid.to_string().contains(&position), "{invalid}");
        assert!(invalid.to_string().ends_with(&format!(", in element {element} of the batch")), "{invalid}");
    }
}

/// White space, with at least one line break if `with_line_break` is true.
fn blank(with_line_break: bool) -> impl Strategy<Value = String> {
    let any = "[ \t\r\n]{0,3}";
    if with_line_break { (any, any).prop_map(|(a, b)| format!("{a}\n{b}")).boxed() } else { any.boxed() }
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            proptest::collection::btree_map(".*", inner, 0..8).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_object_is_accepted_and_has_the_same_value_on_one_line(
        map in proptest::collection::btree_map(".*", json(), 0..8),
        pretty in any::<bool>(),
    ) {
        let value = Value::Object(map.into_iter().collect());
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let report = Reports::check(text.as_bytes()).unwrap();
        prop_assert!(!report.as_bytes().contains(&b'\n') && !report.as_bytes().contains(&b'\r'));
        prop_assert_eq!(report.as_bytes().len(), text.len());
        let folded: Value = serde_json::from_slice(report.as_bytes()).unwrap();
        let sent: Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(folded, sent);
    }

    #[test]
    fn a_batch_in_any_layout_gives_the_same_lines_as_its_objects_one_by_one(
        objects in proptest::collection::vec(
            (proptest::collection::btree_map(".*", json(), 0..4), any::<bool>(), blank(false), blank(true)),
            1..6,
        ),
        (before, after) in (blank(false), blank(false)),
    ) {
        let texts: Vec<_> = objects
            .iter()
            .map(|(map, pretty, _, _)| {
                let text = if *pretty { serde_json::to_string_pretty(map) } else { serde_json::to_string(map) };
                text.unwrap()
            })
            .collect();
        let one_by_one: Vec<_> = texts.iter().flat_map(|text| lines(text).0).collect();

        let elements = texts.iter().zip(&objects).map(|(text, (_, _, blank, _))| format!("{blank}{text}{blank}"));
        let array = format!("{before}[{}]{after}", elements.collect::<Vec<_>>().join(","));
        prop_assert_eq!(lines(&array).0, one_by_one.clone());

        let lined = texts.iter().zip(&objects).map(|(text, (_, _, _, blank))| format!("{text}{blank}"));
        let lined = format!("{before}{}{after}", lined.collect::<String>());
        prop_assert_eq!(lines(&lined).0, one_by_one.clone());

        let plain = one_by_one.join("\n");
        prop_assert_eq!(lines(&plain), (one_by_one, true));
    }

    #[test]
    fn each_line_of_an_accepted_body_is_a_json_object(body in "[\\[\\]{}\",:0-9a-z\\\\ \n\r\t]{0,40}") {
        if let Ok(reports) = Reports::check(body.as_bytes()) {
            let lines: Vec<_> = reports.as_bytes().split(|byte| *byte == b'\n').collect();
            prop_assert_eq!(lines.len(), reports.count());
            for line in lines {
                prop_assert!(serde_json::from_slice::<Value>(line).unwrap().is_object());
                prop_assert!(!line.contains(&b'\r'));
            }
        }
    }
}

proptest! {
    // Fewer cases than usual: each case is several kilobytes long.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_depth_check_agrees_with_the_reference_implementation(
        below in proptest::collection::vec((json(), any::<bool>(), 0..4_usize), 100..160),
    ) {
        // Each level contains the next level and a sibling: a shallow value, or a string of brackets.
        let deep = below.into_iter().fold(Value::Null, |inner, (sibling, object, wide)| {
            let sibling = if wide == 0 && depth(&sibling) < 3 { sibling } else { "]}[{\\\"".repeat(wide).into() };
            match object {
                true => serde_json::json!({ "sibling": sibling, "inner": inner }),
                false => serde_json::json!([sibling, inner]),
            }
        });
        let value = serde_json::json!({ "a": deep });
        let found = Reports::check(value.to_string().as_bytes()).map(|_| ());
        prop_assert_eq!(found.is_ok(), depth(&value) <= MAX_DEPTH, "{:?}", found);
    }
}
