//! The values at several paths of one report, found in one walk over its bytes.
//!
//! The walk builds no values and allocates nothing: it remembers where the values are. The steps of all paths form a
//! tree. Everything outside of this tree is skipped.
//!
//! If an object has several members with the same name, the last one counts, as in jq. The walk takes back the values
//! of an earlier member when it meets the later one.
//!
//! # Pairs
//!
//! Two paths can be paired, such as `.hosts[].history[].latency` and `.hosts[].name`. The shared steps up to the last
//! shared `[]`, here `.hosts[]`, are their scope. Values are paired if they are in the same element of the scope:
//! each latency with the name of its own host. Without a shared `[]`, the scope is the whole report.

use std::ops::Range;

use super::path::{Path, Step};

/// Maximum number of paths of one walk.
pub(super) const MAX_PATHS: usize = 8;

/// Finds the values at fixed paths.
#[derive(Debug)]
pub(super) struct Extractor {
    /// The tree of all steps. The first node is the report.
    nodes: Vec<Node>,
    paths: usize,
    pairs: Vec<(usize, usize)>,
}

#[derive(Debug, Default)]
struct Node {
    /// The paths that end here.
    ends: Vec<usize>,
    /// The members of an object that paths pass, with their nodes.
    members: Vec<(String, usize)>,
    /// The elements of an array that paths pass by index, with their nodes.
    indexes: Vec<(usize, usize)>,
    /// The node of every element of an array.
    each: Option<usize>,
    /// All paths that end here or below.
    paths: Vec<usize>,
    /// The pairs whose scope is an element that this node stands for.
    scopes: Vec<usize>,
    /// The pairs whose scope is here or below.
    pairs: Vec<usize>,
}

/// The byte range of a value in its report.
pub(super) type Span = Range<u32>;

/// The values of one report. Reused for each report, to avoid allocations.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The values of each path, in the order of the report.
    values: Vec<Vec<Span>>,
    /// For each pair: the number of values of both paths at the end of each element of the scope.
    scopes: Vec<Vec<(u32, u32)>>,
}

impl Extractor {
    /// Prepares a walk for `paths`. `pairs` contains the indexes of paths that are paired.
    ///
    /// # Panics
    /// If there are more than [`MAX_PATHS`] paths, or a pair contains the index of no path.
    pub(super) fn new(paths: &[&Path], pairs: &[(usize, usize)]) -> Self {
        assert!(paths.len() <= MAX_PATHS && pairs.len() <= MAX_PATHS, "too many paths");
        let mut this = Self { nodes: vec![Node::default()], paths: paths.len(), pairs: pairs.to_vec() };
        for (path, steps) in paths.iter().map(|path| path.steps()).enumerate() {
            this.nodes[0].paths.push(path);
            let mut node = 0;
            for step in steps {
                node = this.child(node, step);
                this.nodes[node].paths.push(path);
            }
            this.nodes[node].ends.push(path);
        }
        for (pair, (one, another)) in pairs.iter().enumerate() {
            let shared = paths[*one].shared_steps(paths[*another]);
            let mut node = 0;
            for step in &paths[*one].steps()[..shared] {
                this.nodes[node].pairs.push(pair);
                node = this.child(node, step);
            }
            this.nodes[node].pairs.push(pair);
            if shared > 0 {
                this.nodes[node].scopes.push(pair);
            }
        }
        this
    }

    /// The node after `step` from `node`, which may be new.
    fn child(&mut self, node: usize, step: &Step) -> usize {
        let new = self.nodes.len();
        let parent = &mut self.nodes[node];
        let known = match step {
            Step::Member(name) => parent.members.iter().find(|(known, _)| known == name).map(|(_, node)| *node),
            Step::Index(index) => parent.indexes.iter().find(|(known, _)| known == index).map(|(_, node)| *node),
            Step::Each => parent.each,
        };
        if let Some(known) = known {
            return known;
        }
        match step {
            Step::Member(name) => parent.members.push((name.clone(), new)),
            Step::Index(index) => parent.indexes.push((*index, new)),
            Step::Each => parent.each = Some(new),
        }
        self.nodes.push(Node::default());
        new
    }

    /// Finds the values in `line`, a report. Returns false, and no values, if the line is not a JSON object. A line
    /// that is not valid JSON may also give some values.
    pub(super) fn find(&self, line: &[u8], found: &mut Found) -> bool {
        found.reset(self.paths, self.pairs.len());
        let start = skip_blank(line, 0);
        let walk = Walk { line, nodes: &self.nodes, pairs: &self.pairs };
        let is_object = line.get(start) == Some(&b'{') && u32::try_from(line.len()).is_ok();
        if !is_object || walk.value(start, 0, found).is_none() {
            found.reset(self.paths, self.pairs.len());
            return false;
        }
        for (pair, (one, another)) in self.pairs.iter().enumerate() {
            let end = found.lens(*one, *another);
            if found.scopes[pair].last() != Some(&end) {
                found.scopes[pair].push(end);
            }
        }
        true
    }
}

/// The bytes of `line` at `span`.
pub(super) fn bytes<'a>(line: &'a [u8], span: &Span) -> &'a [u8] {
    &line[span.start as usize..span.end as usize]
}

impl Found {
    /// The values at a path, in the order of the report.
    pub(super) fn values(&self, path: usize) -> &[Span] {
        &self.values[path]
    }

    /// Calls `take` for each element of the scope of a pair, with the values of both paths in it. An element without
    /// values of the first path may be left out.
    pub(super) fn for_each_scope(
        &self,
        pair: usize,
        (one, another): (usize, usize),
        mut take: impl FnMut(&[Span], &[Span]),
    ) {
        let mut start = (0, 0);
        for end in &self.scopes[pair] {
            if start.0 < end.0 {
                let in_scope = |path: usize, start: u32, end: u32| &self.values[path][start as usize..end as usize];
                take(in_scope(one, start.0, end.0), in_scope(another, start.1, end.1));
            }
            start = *end;
        }
    }

    fn reset(&mut self, paths: usize, pairs: usize) {
        self.values.iter_mut().for_each(Vec::clear);
        self.values.resize_with(paths, Vec::new);
        self.scopes.iter_mut().for_each(Vec::clear);
        self.scopes.resize_with(pairs, Vec::new);
    }

    fn lens(&self, one: usize, another: usize) -> (u32, u32) {
        (self.values[one].len() as u32, self.values[another].len() as u32)
    }
}

/// The members of one object that were read, and the numbers of values and scopes before each of them.
#[derive(Default)]
struct Seen {
    members: u32,
    values: [u32; MAX_PATHS],
    scopes: [u32; MAX_PATHS],
}

impl Seen {
    /// Before the member at `index` is read: takes back what an earlier member with its name contained.
    fn begin(&mut self, index: usize, node: &Node, found: &mut Found) {
        if self.members & (1 << index) == 0 {
            self.members |= 1 << index;
            // A path and a pair are below one member only.
            node.paths.iter().for_each(|path| self.values[*path] = found.values[*path].len() as u32);
            node.pairs.iter().for_each(|pair| self.scopes[*pair] = found.scopes[*pair].len() as u32);
        } else {
            node.paths.iter().for_each(|path| found.values[*path].truncate(self.values[*path] as usize));
            node.pairs.iter().for_each(|pair| found.scopes[*pair].truncate(self.scopes[*pair] as usize));
        }
    }
}

/// One walk over a line. Each method starts at an offset and returns the offset after what it has read, or `None` if
/// the line is not valid JSON.
struct Walk<'a> {
    line: &'a [u8],
    nodes: &'a [Node],
    pairs: &'a [(usize, usize)],
}

impl Walk<'_> {
    /// Reads the value at `start`. The recursion is as deep as the longest path.
    fn value(&self, start: usize, node: usize, found: &mut Found) -> Option<usize> {
        let node = &self.nodes[node];
        let end = match self.line.get(start)? {
            b'{' if !node.members.is_empty() => self.object(start, node, found)?,
            b'[' if node.each.is_some() || !node.indexes.is_empty() => self.array(start + 1, node, found)?,
            _ => skip_value(self.line, start)?,
        };
        for path in &node.ends {
            found.values[*path].push(start as u32..end as u32);
        }
        Some(end)
    }

    fn object(&self, start: usize, node: &Node, found: &mut Found) -> Option<usize> {
        let mut seen = Seen::default();
        for_each_member(self.line, start, |name, value| {
            match node.members.iter().position(|(member, _)| name.is(member)) {
                Some(index) => {
                    let child = node.members[index].1;
                    seen.begin(index, &self.nodes[child], found);
                    self.value(value, child, found)
                }
                None => skip_value(self.line, value),
            }
        })
    }

    fn array(&self, start: usize, node: &Node, found: &mut Found) -> Option<usize> {
        let line = self.line;
        let mut at = skip_blank(line, start);
        if *line.get(at)? == b']' {
            return Some(at + 1);
        }
        for index in 0.. {
            let element = at;
            let mut end = None;
            for (wanted, child) in &node.indexes {
                if *wanted == index {
                    end = Some(self.value(element, *child, found)?);
                }
            }
            if let Some(child) = node.each {
                end = Some(self.value(element, child, found)?);
                for pair in &self.nodes[child].scopes {
                    let (one, another) = self.pairs[*pair];
                    let lens = found.lens(one, another);
                    found.scopes[*pair].push(lens);
                }
            }
            at = match end {
                Some(end) => end,
                None => skip_value(line, element)?,
            };
            at = skip_blank(line, at);
            match line.get(at)? {
                b',' => at = skip_blank(line, at + 1),
                b']' => return Some(at + 1),
                _ => return None,
            }
        }
        None
    }
}

impl Path {
    /// The first value at this path in `line`, a report, as JSON text. For several paths, an [`Extractor`] is faster.
    pub(super) fn first<'a>(&self, line: &'a [u8]) -> Option<&'a [u8]> {
        let start = skip_blank(line, 0);
        let start = first(line, start, self.steps())?;
        Some(&line[start..skip_value(line, start)?])
    }
}

/// The offset of the first value after `steps` from the value at `start`.
fn first(line: &[u8], start: usize, steps: &[Step]) -> Option<usize> {
    let Some((step, steps)) = steps.split_first() else { return Some(start) };
    match (step, line.get(start)?) {
        (Step::Member(wanted), b'{') => {
            let mut member = None;
            for_each_member(line, start, |name, value| {
                member = if name.is(wanted) { Some(value) } else { member };
                skip_value(line, value)
            })?;
            first(line, member?, steps)
        }
        (Step::Index(_) | Step::Each, b'[') => {
            let mut index = 0;
            let mut at = skip_blank(line, start + 1);
            while *line.get(at)? != b']' {
                match step {
                    Step::Index(wanted) if *wanted == index => return first(line, at, steps),
                    Step::Each => {
                        if let Some(found) = first(line, at, steps) {
                            return Some(found);
                        }
                    }
                    _ => {}
                }
                at = skip_blank(line, skip_value(line, at)?);
                at = if *line.get(at)? == b',' { skip_blank(line, at + 1) } else { at };
                index += 1;
            }
            None
        }
        _ => None,
    }
}

/// Calls `read` for each member of the object at `start`, with the offset of its value. `read` returns the offset after
/// the value. Returns the offset after the object.
#[inline]
fn for_each_member<'a>(
    line: &'a [u8],
    start: usize,
    mut read: impl FnMut(Name<'a>, usize) -> Option<usize>,
) -> Option<usize> {
    let mut at = skip_blank(line, start + 1);
    if *line.get(at)? == b'}' {
        return Some(at + 1);
    }
    loop {
        let (name, end) = string(line, at)?;
        at = skip_blank(line, end);
        if *line.get(at)? != b':' {
            return None;
        }
        at = read(name, skip_blank(line, at + 1))?;
        at = skip_blank(line, at);
        match line.get(at)? {
            b',' => at = skip_blank(line, at + 1),
            b'}' => return Some(at + 1),
            _ => return None,
        }
    }
}

/// The name of a member as it is written.
struct Name<'a> {
    raw: &'a [u8],
    is_escaped: bool,
}

impl Name<'_> {
    fn is(&self, name: &str) -> bool {
        if self.is_escaped {
            self.decoded().is_some_and(|decoded| decoded == name)
        } else {
            self.raw == name.as_bytes()
        }
    }

    /// Rare, so it may allocate.
    #[cold]
    fn decoded(&self) -> Option<String> {
        let quoted = [b"\"", self.raw, b"\""].concat();
        serde_json::from_slice(&quoted).ok()
    }
}

/// The string whose opening quotation mark is at `start`, and the offset after it.
fn string(line: &[u8], start: usize) -> Option<(Name<'_>, usize)> {
    if *line.get(start)? != b'"' {
        return None;
    }
    let (end, is_escaped) = string_end(line, start + 1)?;
    Some((Name { raw: &line[start + 1..end], is_escaped }, end + 1))
}

/// The offset of the closing quotation mark of the string whose content starts at `start`, and whether the string
/// contains escapes.
fn string_end(line: &[u8], start: usize) -> Option<(usize, bool)> {
    let (mut at, mut is_escaped) = (start, false);
    loop {
        at += quote_or_backslash(line.get(at..)?)?;
        if line[at] == b'"' {
            return Some((at, is_escaped));
        }
        is_escaped = true;
        at += 2;
    }
}

/// The offset of the first quotation mark or backslash. Most strings are too short for a vector search.
#[inline]
fn quote_or_backslash(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The lowest set bit belongs to the first byte that is zero: Sean Anderson, Bit Twiddling Hacks.
        let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word & (ONES << 7);
        let matches = zero_bytes(word ^ (ONES * u64::from(b'"'))) | zero_bytes(word ^ (ONES * u64::from(b'\\')));
        if matches != 0 {
            return Some(index * 8 + matches.trailing_zeros() as usize / 8);
        }
    }
    let found = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'));
    found.map(|offset| words.len() * 8 + offset)
}

/// The offset after the value at `start`.
fn skip_value(line: &[u8], start: usize) -> Option<usize> {
    match line.get(start)? {
        b'"' => Some(string_end(line, start + 1)?.0 + 1),
        b'{' | b'[' => skip_container(line, start),
        b',' | b'}' | b']' | b':' => None,
        _ => {
            let is_end = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
            Some(line[start..].iter().position(is_end).map_or(line.len(), |bytes| start + bytes))
        }
    }
}

fn skip_container(line: &[u8], start: usize) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, start);
    loop {
        match line.get(at)? {
            b'"' => at = string_end(line, at + 1)?.0,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return Some(at + 1),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
}

#[inline]
fn skip_blank(line: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\n' | b'\r') = line.get(at) {
        at += 1;
    }
    at
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn path(text: &str) -> Path {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// The values of the first path, each with the values of the second path that it is paired with.
    fn paired(line: &str, one: &str, another: &str) -> Vec<(String, Vec<String>)> {
        let (one, another) = (path(one), path(another));
        let extractor = Extractor::new(&[&one, &another], &[(0, 1)]);
        let mut found = Found::default();
        assert!(extractor.find(line.as_bytes(), &mut found), "{line}");
        let text = |span: &Span| line[span.start as usize..span.end as usize].to_owned();
        let mut pairs = Vec::new();
        found.for_each_scope(0, (0, 1), |values, groups| {
            pairs.extend(values.iter().map(|value| (text(value), groups.iter().map(text).collect())));
        });
        pairs
    }

    fn values(line: &str, at: &str) -> Vec<String> {
        paired(line, at, ".no-such-member".replace('-', "_").as_str()).into_iter().map(|(value, _)| value).collect()
    }

    /// What the module promises, on values: each value with the index of every element that leads to it.
    fn naive<'a>(value: &'a Value, steps: &[Step]) -> Vec<(Vec<usize>, &'a Value)> {
        let Some((step, rest)) = steps.split_first() else { return vec![(Vec::new(), value)] };
        match (step, value) {
            (Step::Member(name), Value::Object(members)) => {
                members.get(name).map(|member| naive(member, rest)).unwrap_or_default()
            }
            (Step::Index(index), Value::Array(elements)) => {
                elements.get(*index).map(|element| naive(element, rest)).unwrap_or_default()
            }
            (Step::Each, Value::Array(elements)) => {
                let found = elements.iter().enumerate().flat_map(|(index, element)| {
                    naive(element, rest)
                        .into_iter()
                        .map(move |(indexes, value)| ([vec![index], indexes].concat(), value))
                });
                found.collect()
            }
            _ => Vec::new(),
        }
    }

    fn naive_paired(line: &str, one: &str, another: &str) -> Vec<(Value, Vec<Value>)> {
        let report: Value = serde_json::from_str(line).expect("valid JSON");
        let (one, another) = (path(one), path(another));
        let shared = &one.steps()[..one.shared_steps(&another)];
        let arrays = shared.iter().filter(|step| **step == Step::Each).count();
        let groups = naive(&report, another.steps());
        let values = naive(&report, one.steps()).into_iter();
        let groups_of = |indexes: &[usize]| {
            let of_scope = groups.iter().filter(|(group, _)| group[..arrays] == indexes[..arrays]);
            of_scope.map(|(_, group)| (*group).clone()).collect()
        };
        values.map(|(indexes, value)| (value.clone(), groups_of(&indexes))).collect()
    }

    #[test]
    fn a_value_is_paired_with_the_group_of_its_own_element() {
        let line = r#"{"hosts":[{"name":"a","history":[{"ms":1},{"ms":2}]},{"history":[{"ms":3}]},{"history":[{"ms":4}],"name":"c"}]}"#;
        let paired = paired(line, ".hosts[].history[].ms", ".hosts[].name");
        let expected = [("1", vec!["\"a\""]), ("2", vec!["\"a\""]), ("3", vec![]), ("4", vec!["\"c\""])];
        let expected: Vec<(String, Vec<String>)> = expected
            .into_iter()
            .map(|(value, groups)| (value.to_owned(), groups.into_iter().map(str::to_owned).collect()))
            .collect();
        assert_eq!(paired, expected);
    }

    #[test]
    fn the_last_of_several_members_with_the_same_name_counts() {
        assert_eq!(values(r#"{"a":1,"a":2}"#, ".a"), ["2"]);
        assert_eq!(values(r#"{"a":1,"\u0061":2}"#, ".a"), ["2"]);
        assert_eq!(values(r#"{"\u0061":1,"b":0,"a":2}"#, ".a"), ["2"]);
        assert_eq!(values(r#"{"a":[{"b":1},{"b":2}],"a":[{"b":3}]}"#, ".a[].b"), ["3"]);
        assert_eq!(values(r#"{"a":[{"b":1}],"a":null}"#, ".a[].b"), Vec::<String>::new());
        assert_eq!(values(r#"{"a":{"b":1},"a":{"c":2}}"#, ".a.b"), Vec::<String>::new());
        let line = r#"{"a":[{"g":1,"v":1}],"a":[{"g":2,"v":2},{"v":3}]}"#;
        assert_eq!(paired(line, ".a[].v", ".a[].g"), [("2".into(), vec!["2".into()]), ("3".into(), vec![])]);
    }

    #[test]
    fn strings_do_not_end_at_escaped_quotation_marks() {
        let line = r#" { "x" : "\\\"},{" , "y\"" : [ "]\\" , {"a":"}"} ] , "a" : { "b\\" : 1 , "b" : "\"" } } "#;
        assert_eq!(values(line, ".a.b"), [r#""\"""#]);
        assert_eq!(values(line, r#".a."b\\""#), ["1"]);
        assert_eq!(values(line, r#"."y\""[0]"#), [r#""]\\""#]);
        assert_eq!(values(line, ".")[0], line.trim());
    }

    #[test]
    fn a_line_that_is_no_object_has_no_values() {
        let (a, b) = (path(".a"), path(".a.b"));
        let extractor = Extractor::new(&[&a, &b], &[(0, 1)]);
        let mut found = Found::default();
        for line in [
            "",
            " ",
            "[1]",
            "1",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":{\"b\":\"",
            "{\"a\":\"\\",
            "{a:1}",
            "{\"a\":}",
        ] {
            assert!(!extractor.find(line.as_bytes(), &mut found), "{line}");
            assert!(found.values(0).is_empty() && found.values(1).is_empty(), "{line}");
            assert_eq!(a.first(line.as_bytes()), None, "{line}");
        }
    }

    const PATHS: [&str; 16] = [
        ".",
        ".a",
        ".b",
        ".a.b",
        ".a[]",
        ".a[].b",
        ".a[].a",
        ".a[].b[]",
        ".a[].b[].a",
        ".a[].b[].b",
        ".a[0]",
        ".a[1].b",
        ".a[0][]",
        ".a[][]",
        ".a[][].b",
        ".b[].a",
    ];

    fn json() -> impl Strategy<Value = String> {
        let blank = || prop_oneof![8 => Just(""), 1 => Just(" "), 1 => Just("\t ")];
        let name = || {
            prop_oneof![
                4 => Just(r#""a""#), 4 => Just(r#""b""#), 1 => Just(r#""\u0061""#), 1 => Just(r#""\u0062""#),
                1 => Just(r#""""#), 1 => Just(r#""a\"""#), 1 => Just(r#""longer name \\""#),
            ]
        };
        let leaf = prop_oneof![
            (0..100_u32).prop_map(|number| number.to_string()),
            Just("null".to_owned()),
            Just("-1.5e3".to_owned()),
            Just("true".to_owned()),
            Just(r#""\"]}\\""#.to_owned()),
            Just(r#""a b""#.to_owned()),
        ];
        let array = |values: Vec<(String, &str)>| {
            let values: Vec<_> = values.iter().map(|(value, blank)| format!("{blank}{value}{blank}")).collect();
            format!("[{}]", values.join(","))
        };
        let object = |members: Vec<(&str, String, &str)>| {
            let members =
                members.iter().map(|(name, value, blank)| format!("{blank}{name}{blank}:{blank}{value}{blank}"));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        };
        let value = leaf.prop_recursive(5, 40, 4, move |inner| {
            prop_oneof![
                prop::collection::vec((inner.clone(), blank()), 0..4).prop_map(array),
                prop::collection::vec((name(), inner, blank()), 0..4).prop_map(object),
            ]
        });
        prop::collection::vec((name(), value, blank()), 0..4).prop_map(object)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn values_and_pairs_are_those_of_a_naive_evaluator(
            line in json(), one in prop::sample::select(&PATHS[..]), another in prop::sample::select(&PATHS[..])
        ) {
            let parse = |json: &String| serde_json::from_str::<Value>(json).expect("valid JSON");
            let actual: Vec<(Value, Vec<Value>)> = paired(&line, one, another)
                .iter()
                .map(|(value, groups)| (parse(value), groups.iter().map(parse).collect()))
                .collect();
            prop_assert_eq!(&actual, &naive_paired(&line, one, another));
            let first = path(one).first(line.as_bytes()).map(|json| serde_json::from_slice(json).expect("valid JSON"));
            prop_assert_eq!(first, actual.first().map(|(value, _)| value.clone()));
        }

        #[test]
        fn no_line_makes_the_walk_panic(line in r#"[{}\[\]",:\\ab0 ]{0,40}"#, one in prop::sample::select(&PATHS[..])) {
            let (one, another) = (path(one), path(".a[].b"));
            let mut found = Found::default();
            Extractor::new(&[&one, &another], &[(0, 1)]).find(line.as_bytes(), &mut found);
            one.first(line.as_bytes());
        }
    }
}
