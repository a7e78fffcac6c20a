//! Filters in jq's language, interpreted by `jaq`.
//!
//! A filter sees one report and nothing else: functions that read the environment, further input, files or the time zone
//! of the machine, or that write or end the process, do not exist.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use jaq_core::data::JustLut;
use jaq_core::load::parse::{BinaryOp, Def, Term};
use jaq_core::load::{Arena, File, Loader, lex, parse};
use jaq_core::{Compiler, Ctx, Vars, unwrap_valr};
use jaq_json::{Num, Val};
use serde::de::IgnoredAny;

use super::fast::{Fast, FastVerdict};

/// Maximum length of a filter.
const MAX_BYTES: usize = 16 << 10;

/// Maximum nesting of brackets. The parser is recursive.
const MAX_DEPTH: usize = 200;

/// Functions that reach outside of the report. `now` is permitted.
const FORBIDDEN_FUNCTIONS: [&str; 8] =
    ["debug_empty", "env", "halt", "input", "inputs", "localtime", "stderr_empty", "strflocaltime"];

/// Definitions that call them.
const FORBIDDEN_DEFINITIONS: [&str; 5] = ["debug", "halt", "halt_error", "stderr", "input_line_number"];

/// A valid filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    code: String,
    /// It is only `select(…)`: each of its outputs is the report.
    is_select: bool,
}

/// The text is not a valid filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(String);

/// What a filter says of a report.
pub enum Verdict<'a> {
    /// Keep the report as it is.
    Keep,
    /// Print this value instead: JSON on one line.
    Value(&'a [u8]),
}

/// A filter that is ready to run on one thread.
pub struct Evaluator {
    fast: Option<Fast>,
    is_select: bool,
    filter: jaq_core::Filter<JustLut<Val>>,
    text: Vec<u8>,
}

impl Filter {
    /// Checks a filter.
    ///
    /// # Errors
    /// Where the filter is wrong, and what is expected there.
    pub fn parse(code: &str) -> Result<Self, FilterError> {
        if code.len() > MAX_BYTES {
            return Err(FilterError(format!("the filter is longer than {MAX_BYTES} bytes")));
        }
        if depth(code) > MAX_DEPTH {
            return Err(FilterError(format!("the filter is nested deeper than {MAX_DEPTH} levels")));
        }
        compile(code)?;
        let is_select = parse_term(code, |term| selected(term).map(|_| ())).is_some();
        Ok(Self { code: code.to_owned(), is_select })
    }

    /// Prepares the filter for one thread.
    #[must_use]
    pub fn evaluator(&self) -> Evaluator {
        let filter = compile(&self.code).expect("it was compiled before");
        let fast = parse_term(&self.code, |term| match selected(term) {
            Some(condition) => Fast::condition(condition),
            None => Fast::new(term),
        });
        Evaluator { fast, is_select: self.is_select, filter, text: Vec::new() }
    }
}

impl Evaluator {
    /// Runs the filter on one report, which is a JSON object on one line. Passes each output that is neither `false` nor
    /// `null` to `each`, until `each` breaks.
    ///
    /// # Errors
    /// The message of the filter's error, such as an index into a number.
    pub fn run<B>(
        &mut self,
        report: &[u8],
        mut each: impl FnMut(Verdict<'_>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, String> {
        if let Some(fast) = &mut self.fast {
            match fast.run(report) {
                FastVerdict::Keep => return Ok(each(Verdict::Keep)),
                FastVerdict::LeaveOut => return Ok(ControlFlow::Continue(())),
                FastVerdict::Value(value) => return Ok(each(Verdict::Value(value))),
                FastVerdict::Reprint(value) => {
                    let value = jaq_json::read::parse_single(value).map_err(|error| error.to_string())?;
                    return Ok(each(Verdict::Value(value.to_string().as_bytes())));
                }
                FastVerdict::Unknown => {}
            }
        }
        self.interpret(report, each)
    }

    fn interpret<B>(
        &mut self,
        report: &[u8],
        mut each: impl FnMut(Verdict<'_>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, String> {
        let value = jaq_json::read::parse_single(report).map_err(|error| error.to_string())?;
        let ctx = Ctx::<JustLut<Val>>::new(&self.filter.lut, Vars::new([]));
        let mut is_kept = false;
        for output in self.filter.id.run((ctx, value)).map(unwrap_valr) {
            let flow = match output.map_err(|error| error.to_string())? {
                Val::Null | Val::Bool(false) => continue,
                // A report is kept once, however often a filter such as `.hosts[].up` says so.
                Val::Bool(true) if is_kept => continue,
                value if self.is_select || matches!(value, Val::Bool(true)) => {
                    if is_kept {
                        continue;
                    }
                    is_kept = true;
                    each(Verdict::Keep)
                }
                value => {
                    self.text.clear();
                    write_json(&mut self.text, value)?;
                    each(Verdict::Value(&self.text))
                }
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Whether a report matches: some output is neither `false` nor `null`. An error of the filter is no match.
    pub fn matches(&mut self, report: &[u8]) -> bool {
        matches!(self.run(report, |_| ControlFlow::Break(())), Ok(ControlFlow::Break(())))
    }
}

/// Passes the parsed filter to `use_term`.
fn parse_term<T>(code: &str, use_term: impl FnOnce(&Term<&str>) -> Option<T>) -> Option<T> {
    let tokens = lex::Lexer::new(code).lex().ok()?;
    use_term(&parse::Parser::new(&tokens).parse(|parser| parser.term()).ok()?)
}

/// The argument of a filter that is only `select(…)`.
fn selected<'a, 's>(term: &'a Term<&'s str>) -> Option<&'a Term<&'s str>> {
    match term {
        Term::Call("select", arguments) if arguments.len() == 1 => arguments.first(),
        Term::BinOp(first, BinaryOp::Pipe(None), rest) if matches!(**first, Term::Id) => selected(rest),
        _ => None,
    }
}

/// Writes a value on one line. As in jq, a number that JSON cannot express becomes `null` or the largest number.
fn write_json(text: &mut Vec<u8>, value: Val) -> Result<(), String> {
    let is_json = |text: &[u8]| serde_json::from_slice::<IgnoredAny>(text).is_ok();
    let mut write = |value: &Val| std::io::Write::write_fmt(text, format_args!("{value}")).map_err(|e| e.to_string());
    write(&value)?;
    if is_json(text) {
        return Ok(());
    }
    text.clear();
    let value = finite(value);
    std::io::Write::write_fmt(text, format_args!("{value}")).map_err(|error| error.to_string())?;
    if is_json(text) { Ok(()) } else { Err("an output is not JSON".to_owned()) }
}

/// The value with numbers that JSON can express.
fn finite(value: Val) -> Val {
    match value {
        Val::Num(Num::Float(number)) if number.is_nan() => Val::Null,
        Val::Num(Num::Float(number)) if number.is_infinite() => Val::Num(Num::Float(f64::MAX.copysign(number))),
        Val::Arr(elements) => Val::Arr(elements.iter().cloned().map(finite).collect::<Vec<_>>().into()),
        Val::Obj(members) => {
            let members = members.iter().map(|(name, value)| (name.clone(), finite(value.clone())));
            Val::obj(members.collect())
        }
        value => value,
    }
}

fn compile(code: &str) -> Result<jaq_core::Filter<JustLut<Val>>, FilterError> {
    let is_permitted = |def: &Def<&str>| !FORBIDDEN_DEFINITIONS.contains(&def.name);
    let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs()).filter(is_permitted);
    let funs = jaq_core::funs::<JustLut<Val>>().chain(jaq_std::funs()).chain(jaq_json::funs());
    let funs = funs.filter(|(name, ..)| !FORBIDDEN_FUNCTIONS.contains(name));
    let arena = Arena::default();
    let modules = Loader::new(defs).load(&arena, File { code, path: () });
    let modules = modules.map_err(|errors| {
        FilterError(first(errors.into_iter().map(|(_, error)| match error {
            jaq_core::load::Error::Io(errors) => first(errors.into_iter().map(|(_, error)| error)),
            jaq_core::load::Error::Lex(errors) => {
                first(errors.into_iter().map(|(expected, at)| expectation(expected.as_str(), code, at)))
            }
            jaq_core::load::Error::Parse(errors) => {
                first(errors.into_iter().map(|(expected, at)| expectation(expected.as_str(), code, at)))
            }
        })))
    })?;
    Compiler::default().with_funs(funs).compile(modules).map_err(|errors| {
        let unknown = errors.into_iter().flat_map(|(_, errors)| errors);
        FilterError(first(unknown.map(|(name, undefined)| format!("unknown {} {name}", undefined.as_str()))))
    })
}

fn first(mut messages: impl Iterator<Item = String>) -> String {
    messages.next().unwrap_or_else(|| "invalid filter".to_owned())
}

/// `expected X at position N, found "…"`.
fn expectation(expected: &str, code: &str, at: &str) -> String {
    let position = jaq_core::load::span(code, at).start;
    let rest = code.get(position..).unwrap_or_default();
    let mut message = format!("expected {expected} at position {}", position + 1);
    let found: String = rest.chars().take(20).collect();
    let written = match found.is_empty() {
        true => write!(message, ", the end"),
        false => write!(message, ", at {found:?}"),
    };
    written.expect("writing to a string cannot fail");
    message
}

/// An upper limit of the nesting of brackets and definitions.
fn depth(code: &str) -> usize {
    let (mut depth, mut minuses, mut max) = (0_usize, 0, 0);
    for byte in code.bytes() {
        match byte {
            // Also in strings, which may contain programs.
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        minuses = match byte {
            b'-' => minuses + 1,
            b' ' | b'\t' | b'\n' | b'\r' => minuses,
            _ => 0,
        };
        max = max.max(depth + minuses);
    }
    let words = |word| code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| *w == word).count();
    max + ["def", "if", "reduce", "foreach", "try", "label", "as"].map(words).iter().sum::<usize>()
}

#[cfg(all(test, not(netwatch_loom)))]
pub(super) mod tests {
    use super::*;

    /// What the interpreter makes of a report. `None` stands for the report itself.
    pub(in crate::query) fn interpreted(filter: &str, report: &[u8]) -> Result<Vec<Option<String>>, String> {
        let mut outputs = Vec::new();
        let done = Filter::parse(filter).unwrap().evaluator().interpret(report, |verdict| {
            outputs.push(match verdict {
                Verdict::Keep => None,
                Verdict::Value(value) => Some(String::from_utf8(value.to_vec()).unwrap()),
            });
            ControlFlow::<()>::Continue(())
        });
        done.map(|_| outputs)
    }

    const REPORT: &[u8] = br#"{"a":{"b":1},"list":[1,2],"up":true,"text":"x\ty"}"#;

    /// `None` stands for the report itself.
    fn outputs(filter: &str) -> Result<Vec<Option<String>>, String> {
        let mut outputs = Vec::new();
        let done = Filter::parse(filter).unwrap().evaluator().run(REPORT, |verdict| {
            outputs.push(match verdict {
                Verdict::Keep => None,
                Verdict::Value(value) => Some(String::from_utf8(value.to_vec()).unwrap()),
            });
            ControlFlow::<()>::Continue(())
        });
        done.map(|_| outputs)
    }

    fn values(values: &[&str]) -> Result<Vec<Option<String>>, String> {
        Ok(values.iter().map(|value| Some((*value).to_owned())).collect())
    }

    #[test]
    fn true_keeps_the_report_false_and_null_do_not_and_other_values_are_printed() {
        assert_eq!(outputs(".a.b == 1"), Ok(vec![None]));
        assert_eq!(outputs(".up"), Ok(vec![None]));
        assert_eq!(outputs(".list[] >= 1"), Ok(vec![None]), "once");
        assert_eq!(outputs(".a.b == 2"), Ok(vec![]));
        assert_eq!(outputs(".missing.member"), Ok(vec![]));
        assert_eq!(outputs("empty"), Ok(vec![]));
        assert_eq!(outputs(".a"), values(&["{\"b\":1}"]));
        assert_eq!(outputs(".list[]"), values(&["1", "2"]));
        assert_eq!(outputs("{n: .a.b, text}"), values(&["{\"n\":1,\"text\":\"x\\ty\"}"]));
        assert!(outputs(".a.b.c").unwrap_err().contains("cannot index"), "{:?}", outputs(".a.b.c"));
        assert_eq!(outputs(".a.b.c?"), Ok(vec![]));
    }

    #[test]
    fn select_keeps_the_report_as_it_is() {
        for filter in ["select(.a.b == 1)", " select( .a.b == 1 ) ", ". | select(.a.b == 1)"] {
            assert_eq!(outputs(filter), Ok(vec![None]), "{filter}");
        }
        for filter in ["select(.a)", "select(.text, .up)", "select(1)", "select(.list[] > 0)", "select(.a.b | . == 1)"]
        {
            assert_eq!(outputs(filter), Ok(vec![None]), "{filter}");
        }
        assert_eq!(outputs("select(.a.b == 2)"), Ok(vec![]));
        assert_eq!(outputs("select(.missing)"), Ok(vec![]));
        assert_eq!(outputs("select(empty)"), Ok(vec![]));
        assert_eq!(outputs("select(.a.b == 1).a"), values(&["{\"b\":1}"]));
    }

    #[test]
    fn every_output_is_json() {
        assert_eq!(outputs("0/0"), values(&["null"]));
        assert_eq!(
            outputs("{r: (1/0), list: [-1/0, nan]}"),
            values(&["{\"r\":1.7976931348623157e308,\"list\":[-1.7976931348623157e308,null]}"])
        );
        assert_eq!(outputs("{(.list): 1}").unwrap_err(), "an output is not JSON");
    }

    #[test]
    fn a_long_filter_is_not_a_deep_one() {
        let id = ".clientId == \"3f2504e0-4f89-11d3-9a0c-0305e82c3301\"";
        assert!(Filter::parse(&vec![id; 100].join(" or ")).is_ok());
        assert!(Filter::parse(&"- ".repeat(300)).is_err());
    }

    #[test]
    fn a_filter_cannot_reach_outside() {
        for filter in [
            "env",
            "$ENV",
            "$ENV.PATH",
            "env.ADMIN_TOKEN",
            "input",
            "inputs",
            "[inputs]",
            "debug",
            "debug(1)",
            "stderr",
            "halt",
            "halt_error",
            "halt(1)",
            "input_filename",
            "import \"a\" as a; 1",
            "include \"a\"; 1",
            "localtime",
            "strflocaltime(\"%c\")",
            "now|localtime",
            "get_search_list",
            "$__prog_args",
            "ltrimstr(env)",
        ] {
            assert!(Filter::parse(filter).is_err(), "{filter}");
        }
        assert!(Filter::parse("now > 0").is_ok());
    }

    #[test]
    fn an_error_names_the_position_and_what_is_expected() {
        for (filter, message) in [
            (".a ==", "expected term at position 6, the end"),
            ("foo(.a)", "unknown filter foo"),
            ("$x", "unknown variable $x"),
            ("(.a", "expected"),
            ("\"a", "expected"),
            ("", "expected term at position 1, the end"),
        ] {
            let error = Filter::parse(filter).unwrap_err().to_string();
            assert!(error.starts_with(message), "{filter}: {error}");
        }
        assert!(Filter::parse(&"(".repeat(10_000)).is_err());
        assert!(Filter::parse(&"-".repeat(10_000)).is_err());
        assert!(Filter::parse(&"x".repeat(20_000)).is_err());
    }
}
