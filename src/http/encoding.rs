//! What a body was compressed with, and how it is unpacked: into as much memory as a body may take, and no more.
//!
//! A body is unpacked when all of it has come, at one go. So a slow client holds no more than the bytes that it has
//! sent, however far they unpack, and there are never more decoders, each with its window, than threads that answer
//! requests.

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use hyper::HeaderMap;
use hyper::header::CONTENT_ENCODING;
use zstd::stream::raw::{DParameter, InBuffer, Operation, OutBuffer};

use super::gathered::Gathered;
use super::refusal::Refusal;

/// What is taken, as `Accept-Encoding` has it.
pub(super) const ACCEPTED: &str = "gzip, deflate, zstd, br";

/// The largest window of a zstd frame, as a power of two: what RFC 9659 allows for HTTP, 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

/// The window of gzip and zlib, as a power of two: the largest there is.
const GZIP_WINDOW_LOG: u8 = 15;

/// The least memory that is taken for what a body unpacks to, if it may be as much.
const LEAST_BYTES: usize = 4 * 1024;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    /// zlib by the standard. What some send instead, deflate without the frame, is taken as well.
    Deflate,
    Zstd,
    Brotli,
}

impl Encoding {
    /// That of a body with these headers; `None` if it is as it is.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        let mut of = None;
        for value in headers.get_all(CONTENT_ENCODING) {
            let value = value.to_str().map_err(|_| Refusal::ContentEncoding)?;
            for name in value.split(',').map(str::trim) {
                let one = match name.to_ascii_lowercase().as_str() {
                    "" | "identity" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "deflate" => Self::Deflate,
                    "zstd" => Self::Zstd,
                    "br" => Self::Brotli,
                    _ => return Err(Refusal::ContentEncoding),
                };
                // One within the other is allowed by HTTP, made by nobody, and a bomb within a bomb.
                if of.replace(one).is_some() {
                    return Err(Refusal::ContentEncoding);
                }
            }
        }
        Ok(of)
    }

    /// What it is called in `Content-Encoding`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
            Self::Brotli => "br",
        }
    }

    /// Appends to `unpacked` what all of `packed` unpacks to.
    pub(super) fn unpack(self, packed: &[u8], unpacked: &mut Gathered) -> Result<(), Refusal> {
        let broken = |reason: String| Refusal::NotDecodable { encoding: self.name(), reason };
        let mut left = packed;
        let mut ended_once = false;
        let mut decoder = Decoder::new(self, left);
        loop {
            // With no room left, the end may still come. If a byte does, there is too much.
            let mut beyond = Vec::new();
            let to = if unpacked.is_full() {
                beyond.reserve_exact(1);
                &mut beyond
            } else {
                unpacked.make_room(unpacked.len() + 1, packed.len().saturating_mul(4).max(LEAST_BYTES))?;
                unpacked.spare()
            };
            let before = (left.len(), to.len());
            let ended = decoder.run(&mut left, to).map_err(|reason| match ended_once && before.1 == to.len() {
                true => broken("other bytes follow its end".to_owned()),
                false => broken(reason),
            })?;
            let wants_more = to.len() < to.capacity() && (left.is_empty() || before == (left.len(), to.len()));
            if !beyond.is_empty() {
                return Err(unpacked.too_large());
            }
            match (ended, self) {
                (true, _) if left.is_empty() => return Ok(()),
                // Several, one behind the other, are as good as one.
                (true, Self::Gzip | Self::Zstd) => (ended_once, decoder) = (true, Decoder::new(self, left)),
                (true, Self::Deflate | Self::Brotli) => return Err(broken("other bytes follow its end".to_owned())),
                (false, _) if wants_more => return Err(broken("it ends too early".to_owned())),
                (false, _) => {}
            }
        }
    }
}

/// The state of unpacking.
enum Decoder {
    Inflate(Decompress),
    Zstd(zstd::stream::raw::Decoder<'static>),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
}

impl Decoder {
    /// One for a body, or what is left of it, that begins with `packed`.
    fn new(encoding: Encoding, packed: &[u8]) -> Self {
        match encoding {
            Encoding::Gzip => Self::Inflate(Decompress::new_gzip(GZIP_WINDOW_LOG)),
            Encoding::Deflate => Self::Inflate(Decompress::new(has_zlib_header(packed))),
            Encoding::Zstd => {
                let mut decoder = zstd::stream::raw::Decoder::new().expect("it needs nothing but memory");
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).expect("it is within zstd's bounds");
                Self::Zstd(decoder)
            }
            // Strict: its window is 16 MiB at the most. `new` would take the large ones that are no part of `br`.
            Encoding::Brotli => {
                let alloc = StandardAlloc::default;
                Self::Brotli(Box::new(BrotliState::new_strict(alloc(), alloc(), alloc())))
            }
        }
    }

    /// Unpacks from `packed`, which moves on, to the spare capacity of `to`, until there is no more of one of them;
    /// says whether the end has come.
    fn run(&mut self, packed: &mut &[u8], to: &mut Vec<u8>) -> Result<bool, String> {
        match self {
            Self::Inflate(inflate) => {
                let before = inflate.total_in();
                let status = inflate.decompress_vec(packed, to, FlushDecompress::None).map_err(|e| e.to_string())?;
                *packed = &packed[(inflate.total_in() - before) as usize..];
                Ok(status == Status::StreamEnd)
            }
            Self::Zstd(decoder) => {
                let (mut from, filled) = (InBuffer::around(packed), to.len());
                let hint = decoder.run(&mut from, &mut OutBuffer::around_pos(to, filled)).map_err(|e| e.to_string())?;
                *packed = &packed[from.pos()..];
                Ok(hint == 0)
            }
            Self::Brotli(state) => {
                let filled = to.len();
                to.resize(to.capacity(), 0);
                let (mut left, mut taken, mut room, mut made) = (packed.len(), 0, to.len() - filled, 0);
                let to_spare = &mut to[filled..];
                let result = BrotliDecompressStream(
                    &mut left, &mut taken, packed, &mut room, &mut made, to_spare, &mut 0, state,
                );
                to.truncate(filled + made);
                *packed = &packed[taken..];
                match result {
                    BrotliResult::ResultSuccess => Ok(true),
                    BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => Ok(false),
                    BrotliResult::ResultFailure => Err("it is corrupt".to_owned()),
                }
            }
        }
    }
}

/// Whether it begins as RFC 1950 has it. Deflate alone would have to begin with a stored block with stray bits, which
/// nobody makes.
fn has_zlib_header(packed: &[u8]) -> bool {
    match packed {
        [method, flags, ..] => {
            method & 0x0f == 8 && method >> 4 <= 7 && u16::from_be_bytes([*method, *flags]).is_multiple_of(31)
        }
        _ => true,
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use hyper::header::HeaderValue;
    use proptest::prelude::*;
    use tokio::sync::Semaphore;
    use zstd::stream::raw::CParameter;

    use super::*;

    const MAX_BYTES: usize = 64 * 1024;

    const ALL: [Encoding; 4] = [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd, Encoding::Brotli];

    fn pack(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Encoding::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Encoding::Zstd => zstd::encode_all(bytes, 3).unwrap(),
            Encoding::Brotli => {
                let params = brotli::enc::BrotliEncoderParams { quality: 1, ..Default::default() };
                let mut packed = Vec::new();
                brotli::BrotliCompress(&mut &*bytes, &mut packed, &params).unwrap();
                packed
            }
        }
    }

    fn unpack(encoding: Encoding, packed: &[u8]) -> Result<Vec<u8>, Refusal> {
        let inflight = Arc::new(Semaphore::new(MAX_BYTES));
        let mut unpacked = Gathered::new(&inflight, MAX_BYTES).unwrap();
        encoding.unpack(packed, &mut unpacked)?;
        assert!(unpacked.spare().capacity() <= MAX_BYTES);
        Ok(unpacked.as_bytes().to_vec())
    }

    fn reason(encoding: Encoding, packed: &[u8]) -> String {
        match unpack(encoding, packed) {
            Err(Refusal::NotDecodable { reason, encoding: name }) if name == encoding.name() => reason,
            other => panic!("{encoding:?}: {other:?}"),
        }
    }

    fn of(values: &[&'static str]) -> Result<Option<Encoding>, Refusal> {
        let headers = values.iter().map(|value| (CONTENT_ENCODING, HeaderValue::from_static(value)));
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value)| assert!(map.append(name, value) || map.len() == 1));
        Encoding::of(&map)
    }

    #[test]
    fn an_encoding_is_known_by_its_names() {
        for (values, encoding) in [
            (&[][..], None),
            (&[""], None),
            (&["identity"], None),
            (&["gzip"], Some(Encoding::Gzip)),
            (&["X-GZip"], Some(Encoding::Gzip)),
            (&["identity, deflate"], Some(Encoding::Deflate)),
            (&["identity", "ZSTD"], Some(Encoding::Zstd)),
            (&[" br "], Some(Encoding::Brotli)),
        ] {
            assert_eq!(of(values).unwrap(), encoding, "{values:?}");
        }
        for values in [&["compress"][..], &["gzip, br"], &["gzip", "gzip"], &["dcb"], &["gzip;q=1"]] {
            assert!(matches!(of(values), Err(Refusal::ContentEncoding)), "{values:?}");
        }
    }

    #[test]
    fn a_body_that_is_cut_short_ends_too_early_wherever_that_is() {
        let bytes: Vec<u8> = (0..2_000_u32).flat_map(|n| (n * n).to_le_bytes()).collect();
        for encoding in ALL {
            let packed = pack(encoding, &bytes);
            assert_eq!(unpack(encoding, &packed).unwrap(), bytes, "{encoding:?}");
            for cut in 0..packed.len() {
                assert_eq!(reason(encoding, &packed[..cut]), "it ends too early", "{encoding:?} {cut}");
            }
        }
    }

    #[test]
    fn what_follows_the_end_is_a_fault_unless_it_is_another_member_or_frame() {
        for encoding in ALL {
            let packed = pack(encoding, b"{}");
            for garbage in [&b"garbage"[..], b"\0\0\0\0", b"\n"] {
                let reason = reason(encoding, &[&packed, garbage].concat());
                let early = reason == "it ends too early" && garbage.len() == 1;
                assert!(reason == "other bytes follow its end" || early, "{encoding:?}: {reason}");
            }
            let twice = unpack(encoding, &[&*packed, &packed].concat());
            match encoding {
                Encoding::Gzip | Encoding::Zstd => assert_eq!(twice.unwrap(), b"{}{}"),
                Encoding::Deflate | Encoding::Brotli => assert!(twice.is_err(), "{encoding:?}"),
            }
        }
    }

    #[test]
    fn deflate_is_taken_with_and_without_its_frame() {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(b"{\"a\":1}").unwrap();
        assert_eq!(unpack(Encoding::Deflate, &encoder.finish().unwrap()).unwrap(), b"{\"a\":1}");
        let stored = DeflateEncoder::new(Vec::new(), Compression::none());
        assert_eq!(unpack(Encoding::Deflate, &stored.finish().unwrap()).unwrap(), b"");
    }

    #[test]
    fn a_body_unpacks_to_as_much_as_the_limit_and_no_more() {
        for encoding in ALL {
            let full = vec![b' '; MAX_BYTES];
            assert_eq!(unpack(encoding, &pack(encoding, &full)).unwrap(), full, "{encoding:?}");
            for bytes in [MAX_BYTES + 1, 100 * MAX_BYTES] {
                let bomb = pack(encoding, &vec![b' '; bytes]);
                let refused = unpack(encoding, &bomb);
                assert!(
                    matches!(refused, Err(Refusal::TooLarge { max_bytes: MAX_BYTES })),
                    "{encoding:?}: {refused:?}"
                );
                // It does not have to come to its end for that.
                let refused = unpack(encoding, &bomb[..bomb.len() / 2]);
                assert!(bytes == MAX_BYTES + 1 || matches!(refused, Err(Refusal::TooLarge { .. })), "{encoding:?}");
            }
        }
    }

    #[test]
    fn what_is_unpacked_is_counted_and_given_back() {
        let inflight = Arc::new(Semaphore::new(MAX_BYTES - 1));
        let packed = pack(Encoding::Gzip, &vec![b' '; MAX_BYTES]);
        let mut unpacked = Gathered::new(&inflight, MAX_BYTES).unwrap();
        let refused = Encoding::Gzip.unpack(&packed, &mut unpacked);
        assert!(matches!(refused, Err(Refusal::TooManyInFlight)), "{refused:?}");
        assert_eq!(MAX_BYTES - 1 - inflight.available_permits(), unpacked.spare().capacity());
        drop(unpacked);
        assert_eq!(inflight.available_permits(), MAX_BYTES - 1);
    }

    #[test]
    fn a_window_larger_than_http_allows_is_refused() {
        // Of unknown length, or the window would be cut down to it.
        let with_window = |log: u32| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.set_parameter(CParameter::WindowLog(log)).unwrap();
            encoder.write_all(b"{}").unwrap();
            encoder.flush().unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(unpack(Encoding::Zstd, &with_window(23)).unwrap(), b"{}");
        assert!(reason(Encoding::Zstd, &with_window(24)).contains("memory"));
        let params =
            |large_window, lgwin| brotli::enc::BrotliEncoderParams { large_window, lgwin, ..Default::default() };
        let with_window = |params| {
            let mut packed = Vec::new();
            brotli::BrotliCompress(&mut &b"{}"[..], &mut packed, &params).unwrap();
            packed
        };
        assert_eq!(unpack(Encoding::Brotli, &with_window(params(false, 24))).unwrap(), b"{}");
        assert_eq!(reason(Encoding::Brotli, &with_window(params(true, 28))), "it is corrupt");
    }

    proptest! {
        // Encoders are slow without optimization.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_is_packed_comes_back(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b' ')], 0..4_000),
            encoding in proptest::sample::select(&ALL[..]),
        ) {
            prop_assert_eq!(unpack(encoding, &pack(encoding, &bytes)).unwrap(), bytes);
        }

        #[test]
        fn damaged_bytes_are_refused_or_do_no_harm(
            (at, mask) in (any::<proptest::sample::Index>(), 1..=u8::MAX),
            encoding in proptest::sample::select(&ALL[..]),
        ) {
            let bytes = br#"{"clientId":"a","hosts":[{"name":"b","history":[{"latency":17}]}]}"#;
            let mut packed = pack(encoding, bytes);
            let at = at.index(packed.len());
            packed[at] ^= mask;
            // Of the four, gzip alone always has a checksum behind a header that can't be taken for another one.
            match unpack(encoding, &packed) {
                Ok(unpacked) if encoding == Encoding::Gzip => prop_assert_eq!(unpacked, bytes),
                Ok(_) | Err(Refusal::NotDecodable { .. } | Refusal::TooLarge { .. }) => {}
                Err(refusal) => prop_assert!(false, "{refusal:?}"),
            }
        }
    }
}
