//! The nesting limit of reports.

/// Maximum nesting depth of arrays and objects, including the outermost one. Source: the recursion limit of serde_json,
/// so that every stored report can be parsed with it.
pub const MAX_DEPTH: usize = 127;

/// The offset of the first bracket of `json`, which is valid JSON, that is nested deeper than [`MAX_DEPTH`].
pub(super) fn too_deep(json: &[u8]) -> Option<usize> {
    // JSON that is nested too deep has more than MAX_DEPTH opening brackets, and as many closing brackets after them.
    // Counting brackets, also within strings, is a vector operation. It clears most reports without an exact scan.
    let mut opened = 0;
    for (index, chunk) in json.chunks(CHUNK_BYTES).enumerate() {
        opened += count(chunk, b'{');
        if opened > MAX_DEPTH {
            let rest = &json[index * CHUNK_BYTES..];
            let closed: usize = rest.chunks(CHUNK_BYTES).map(|chunk| count(chunk, b'}')).sum();
            return if closed > MAX_DEPTH { first_too_deep(json) } else { None };
        }
    }
    None
}

/// Bytes per chunk. The count of a chunk fits in one byte.
const CHUNK_BYTES: usize = 255;

/// Counts a curly bracket and the square bracket of the same direction, which differs in one bit.
fn count(chunk: &[u8], bracket: u8) -> usize {
    usize::from(chunk.iter().map(|byte| u8::from(byte | 0x20 == bracket)).sum::<u8>())
}

/// The exact scan for [`too_deep`].
fn first_too_deep(json: &[u8]) -> Option<usize> {
    let (mut depth, mut offset) = (0_usize, 0);
    while offset < json.len() {
        match json[offset] {
            b'"' => offset += string_bytes(&json[offset + 1..]),
            b'{' | b'[' if depth == MAX_DEPTH => return Some(offset),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        offset += 1;
    }
    None
}

/// The length of a JSON string after its opening quotation mark, including the closing one.
fn string_bytes(json: &[u8]) -> usize {
    let mut offset = 0;
    while let Some(found) = memchr::memchr2(b'"', b'\\', &json[offset..]) {
        offset += found + 1;
        if json[offset - 1] == b'"' {
            break;
        }
        offset += 1; // the escaped byte
    }
    offset
}
