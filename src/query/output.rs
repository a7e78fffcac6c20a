//! The formats in which reports are printed.

use std::io::{self, Write};
use std::ops::ControlFlow;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON value per line
    Ndjson,
    /// One JSON array
    Json,
    /// Comma-separated values; the members of the first value are the columns
    Csv,
}

/// Prints JSON values, each of which is on one line.
pub struct Output<W: Write> {
    format: Format,
    to: W,
    /// How many values may still be printed.
    left: usize,
    printed: usize,
    columns: Option<Vec<String>>,
    /// Values with members that are no columns.
    incomplete_rows: usize,
}

impl<W: Write> Output<W> {
    /// Prints at most `limit` values.
    pub fn new(format: Format, to: W, limit: Option<usize>) -> Self {
        Self { format, to, left: limit.unwrap_or(usize::MAX), printed: 0, columns: None, incomplete_rows: 0 }
    }

    /// Prints the values in `lines`, which end with line breaks. Breaks when no more values may be printed.
    ///
    /// # Errors
    /// Errors of the writer.
    pub fn lines(&mut self, lines: &[u8]) -> io::Result<ControlFlow<()>> {
        if self.format == Format::Ndjson && self.left == usize::MAX {
            self.to.write_all(lines)?;
            return Ok(ControlFlow::Continue(()));
        }
        let mut rest = lines;
        while self.left > 0
            && let Some(end) = memchr::memchr(b'\n', rest)
        {
            let (line, next) = rest.split_at(end + 1);
            rest = next;
            self.left -= 1;
            match self.format {
                Format::Ndjson => self.to.write_all(line)?,
                Format::Json => {
                    self.to.write_all(if self.printed == 0 { b"[\n" } else { b",\n" })?;
                    self.to.write_all(&line[..end])?;
                }
                Format::Csv => self.row(&line[..end])?,
            }
            self.printed += 1;
        }
        Ok(if self.left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Makes everything visible that was printed so far.
    ///
    /// # Errors
    /// Errors of the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    /// Prints the end. Returns the writer, and what the user should know, if anything.
    ///
    /// # Errors
    /// Errors of the writer.
    pub fn finish(mut self) -> io::Result<(W, Option<String>)> {
        match self.format {
            Format::Json if self.printed == 0 => self.to.write_all(b"[]\n")?,
            Format::Json => self.to.write_all(b"\n]\n")?,
            Format::Ndjson | Format::Csv => {}
        }
        self.to.flush()?;
        let rows = self.incomplete_rows;
        let notice = (rows > 0).then(|| format!("{rows} rows have members that are no columns of the first row"));
        Ok((self.to, notice))
    }

    /// Prints an object as a row of its members, an array as a row of its elements, and any other value alone.
    fn row(&mut self, json: &[u8]) -> io::Result<()> {
        let mut row = csv::WriterBuilder::new().flexible(true).from_writer(&mut self.to);
        match json.first() {
            Some(b'{') => {
                let Members(members) = serde_json::from_slice(json)?;
                let is_first = self.columns.is_none();
                let columns = self.columns.get_or_insert_with(|| {
                    let mut columns: Vec<String> = Vec::new();
                    for (name, _) in &members {
                        if !columns.contains(name) {
                            columns.push(name.clone());
                        }
                    }
                    columns
                });
                if is_first {
                    row.write_record(columns.iter())?;
                }
                // The last member of a name counts, as in jq.
                let cell = |column: &String| {
                    let member = members.iter().rev().find(|(name, _)| name == column);
                    member.map_or_else(String::new, |(_, value)| cell(value))
                };
                self.incomplete_rows += usize::from(members.iter().any(|(name, _)| !columns.contains(name)));
                row.write_record(columns.iter().map(cell))?;
            }
            Some(b'[') => {
                let elements: Vec<&RawValue> = serde_json::from_slice(json)?;
                row.write_record(elements.into_iter().map(cell))?;
            }
            _ => row.write_record([cell(serde_json::from_slice(json)?)])?,
        }
        row.flush()
    }
}

/// A string as it is, `null` as nothing, and any other value as JSON.
fn cell(value: &RawValue) -> String {
    match value.get() {
        "null" => String::new(),
        json if json.starts_with('"') => serde_json::from_str(json).unwrap_or_else(|_| json.to_owned()),
        json => json.to_owned(),
    }
}

/// The members of an object in their order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    fn print(format: Format, limit: Option<usize>, lines: &str) -> (String, Option<String>) {
        let mut text = Vec::new();
        let mut output = Output::new(format, &mut text, limit);
        let flow = output.lines(lines.as_bytes()).unwrap();
        assert_eq!(flow.is_break(), limit.is_some_and(|limit| limit <= lines.lines().count()));
        let (_, notice) = output.finish().unwrap();
        (String::from_utf8(text).unwrap(), notice)
    }

    #[test]
    fn json_is_one_array_and_a_limit_counts_values() {
        let lines = "{\"a\":1}\n2\n\"x\"\n";
        assert_eq!(print(Format::Ndjson, None, lines).0, lines);
        assert_eq!(print(Format::Ndjson, Some(2), lines).0, "{\"a\":1}\n2\n");
        assert_eq!(print(Format::Json, None, lines).0, "[\n{\"a\":1},\n2,\n\"x\"\n]\n");
        assert_eq!(print(Format::Json, None, "").0, "[]\n");
        assert_eq!(print(Format::Json, Some(1), lines).0, "[\n{\"a\":1}\n]\n");
        assert_eq!(print(Format::Ndjson, Some(0), lines).0, "");
    }

    #[test]
    fn csv_has_the_members_of_the_first_value_as_columns() {
        let lines = "{\"b\":1,\"a\":\"x,\\\"y\\\"\\n\"}\n{\"a\":null,\"b\":{\"c\":[1]}}\n{\"a\":1,\"z\":2}\n";
        let (text, notice) = print(Format::Csv, None, lines);
        assert_eq!(text, "b,a\n1,\"x,\"\"y\"\"\n\"\n\"{\"\"c\"\":[1]}\",\n,1\n");
        assert_eq!(notice.unwrap(), "1 rows have members that are no columns of the first row");
        assert_eq!(print(Format::Csv, None, "[1,\"a\"]\n\"b,c\"\n3\n"), ("1,a\n\"b,c\"\n3\n".to_owned(), None));
        assert_eq!(print(Format::Csv, None, "{\"a\":1,\"a\":2}\n").0, "a\n2\n");
    }
}
