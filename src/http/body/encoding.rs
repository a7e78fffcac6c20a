//! Content encodings, and decoding within the limits of a body.
//!
//! A body is decoded when all of it has arrived, so a slow client holds only the bytes that it has sent. Decoding
//! yields often, because one worker serves many connections. The number of concurrent decoders, each with its window,
//! is limited.

use std::time::{Duration, Instant};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use hyper::HeaderMap;
use hyper::header::CONTENT_ENCODING;
use zstd::stream::raw::{DParameter, InBuffer, Operation, OutBuffer};

use super::body_buffer::BodyBuffer;
use crate::http::error::ApiError;

/// The accepted encodings, as the value of `Accept-Encoding`.
const ACCEPTED: &str = "gzip, deflate, zstd, br";

/// Base-2 logarithm of the maximum window of a zstd frame: 8 MiB. Source: RFC 9659.
const ZSTD_WINDOW_LOG: u32 = 23;

/// Base-2 logarithm of the window of gzip and zlib: the maximum.
const GZIP_WINDOW_LOG: u8 = 15;

/// Minimum initial memory for a decoded body, as far as the limits permit it.
const LEAST_BYTES: usize = 4 * 1024;

/// Maximum number of zstd frames or gzip members in a body. Each one costs several microseconds, even if it is empty.
const MAX_FRAMES: usize = 256;

/// Maximum number of bytes that are decoded at once. Most encodings decode them within a few hundred microseconds.
const SLICE_BYTES: usize = 16 * 1024;

/// How long a task decodes before it yields to the other tasks of its worker.
const YIELD_INTERVAL: Duration = Duration::from_millis(1);

/// A content encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Encoding {
    Gzip,
    /// zlib (RFC 1950). Some clients send deflate without the zlib header, which is accepted, too.
    Deflate,
    Zstd,
    Brotli,
}

impl Encoding {
    /// The encoding of a body with these headers. `None` if the body is not encoded.
    pub(in crate::http) fn of(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let mut of = None;
        for value in headers.get_all(CONTENT_ENCODING) {
            let value = value.to_str().map_err(|_| ApiError::ContentEncoding { accepted: ACCEPTED })?;
            for name in value.split(',').map(str::trim) {
                let one = match name.to_ascii_lowercase().as_str() {
                    "" | "identity" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "deflate" => Self::Deflate,
                    "zstd" => Self::Zstd,
                    "br" => Self::Brotli,
                    _ => return Err(ApiError::ContentEncoding { accepted: ACCEPTED }),
                };
                // HTTP permits nested encodings. No client sends them, and they can hide decompression bombs.
                if of.replace(one).is_some() {
                    return Err(ApiError::ContentEncoding { accepted: ACCEPTED });
                }
            }
        }
        Ok(of)
    }

    /// Its name in `Content-Encoding`.
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
            Self::Brotli => "br",
        }
    }

    /// Decodes all of `encoded` and appends the result to `decoded`. Yields about once per millisecond.
    pub(in crate::http) async fn decode(self, encoded: &[u8], decoded: &mut BodyBuffer) -> Result<(), ApiError> {
        let broken = |reason: String| ApiError::NotDecodable { encoding: self.name(), reason };
        let mut left = encoded;
        let mut frames = 1;
        let mut decoder = Decoder::new(self, left);
        let mut resumed = Instant::now();
        loop {
            if resumed.elapsed() >= YIELD_INTERVAL {
                tokio::task::yield_now().await;
                resumed = Instant::now();
            }
            // At the limit, the end may follow. If a byte follows, the body is too large.
            let mut beyond = Vec::new();
            let to = if decoded.is_full() {
                beyond.reserve_exact(1);
                &mut beyond
            } else {
                decoded.reserve(decoded.len() + 1, encoded.len().saturating_mul(4).max(LEAST_BYTES))?;
                decoded.spare()
            };
            let before = (left.len(), to.len());
            let mut slice = &left[..left.len().min(SLICE_BYTES)];
            let slice_bytes = slice.len();
            let ended = decoder.run(&mut slice, to).map_err(|reason| match frames > 1 && before.1 == to.len() {
                true => broken("other bytes follow the end".to_owned()),
                false => broken(reason),
            })?;
            left = &left[slice_bytes - slice.len()..];
            let wants_more = to.len() < to.capacity() && (left.is_empty() || before == (left.len(), to.len()));
            if !beyond.is_empty() {
                return Err(decoded.too_large());
            }
            match (ended, self) {
                (true, _) if left.is_empty() => return Ok(()),
                (true, Self::Gzip | Self::Zstd) if frames == MAX_FRAMES => {
                    return Err(broken(format!("it has more than {MAX_FRAMES} frames or members")));
                }
                // Several members or frames are permitted.
                (true, Self::Gzip | Self::Zstd) => {
                    decoder.restart();
                    frames += 1;
                }
                (true, Self::Deflate | Self::Brotli) => return Err(broken("other bytes follow the end".to_owned())),
                (false, _) if wants_more => return Err(broken("it ends too early".to_owned())),
                (false, _) => {}
            }
        }
    }
}

/// The state of a decoder.
enum Decoder {
    Inflate(Decompress),
    Zstd(zstd::stream::raw::Decoder<'static>),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
}

impl Decoder {
    /// A decoder for the rest of a body, which begins with `encoded`.
    fn new(encoding: Encoding, encoded: &[u8]) -> Self {
        match encoding {
            Encoding::Gzip => Self::Inflate(Decompress::new_gzip(GZIP_WINDOW_LOG)),
            Encoding::Deflate => Self::Inflate(Decompress::new(has_zlib_header(encoded))),
            Encoding::Zstd => {
                let mut decoder = zstd::stream::raw::Decoder::new().expect("allocation does not fail");
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).expect("a valid window size");
                Self::Zstd(decoder)
            }
            // Strict: a window of at most 16 MiB. `new` would accept large windows, which are not part of `br`.
            Encoding::Brotli => {
                let alloc = StandardAlloc::default;
                Self::Brotli(Box::new(BrotliState::new_strict(alloc(), alloc(), alloc())))
            }
        }
    }

    /// Prepares the decoder for the next frame or member.
    fn restart(&mut self) {
        match self {
            // Not `reset`, which expects a zlib header.
            Self::Inflate(inflate) => *inflate = Decompress::new_gzip(GZIP_WINDOW_LOG),
            Self::Zstd(decoder) => decoder.reinit().expect("a decoder can be reset"),
            Self::Brotli(_) => unreachable!("a br body is one stream"),
        }
    }

    /// Decodes from `encoded`, which is advanced, to the spare capacity of `to`, until one of them is used up. Returns
    /// whether the end was reached.
    fn run(&mut self, encoded: &mut &[u8], to: &mut Vec<u8>) -> Result<bool, String> {
        match self {
            Self::Inflate(inflate) => {
                let before = inflate.total_in();
                let status = inflate.decompress_vec(encoded, to, FlushDecompress::None).map_err(|e| e.to_string())?;
                *encoded = &encoded[(inflate.total_in() - before) as usize..];
                Ok(status == Status::StreamEnd)
            }
            Self::Zstd(decoder) => {
                let (mut from, filled) = (InBuffer::around(encoded), to.len());
                let hint = decoder.run(&mut from, &mut OutBuffer::around_pos(to, filled)).map_err(|e| e.to_string())?;
                *encoded = &encoded[from.pos()..];
                Ok(hint == 0)
            }
            Self::Brotli(state) => {
                let filled = to.len();
                to.resize(to.capacity(), 0);
                let (mut left, mut taken, mut room, mut made) = (encoded.len(), 0, to.len() - filled, 0);
                let to_spare = &mut to[filled..];
                let result = BrotliDecompressStream(
                    &mut left, &mut taken, encoded, &mut room, &mut made, to_spare, &mut 0, state,
                );
                to.truncate(filled + made);
                *encoded = &encoded[taken..];
                match result {
                    BrotliResult::ResultSuccess => Ok(true),
                    BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => Ok(false),
                    BrotliResult::ResultFailure => Err("it is corrupt".to_owned()),
                }
            }
        }
    }
}

/// Whether the body begins with a zlib header (RFC 1950). Plain deflate could only begin like that with a stored block
/// with stray bits, which no encoder produces.
fn has_zlib_header(encoded: &[u8]) -> bool {
    match encoded {
        [method, flags, ..] => {
            method & 0x0f == 8 && method >> 4 <= 7 && u16::from_be_bytes([*method, *flags]).is_multiple_of(31)
        }
        _ => true,
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::io::Write;
    use std::net::{IpAddr, Ipv4Addr};

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use hyper::header::HeaderValue;
    use proptest::prelude::*;
    use zstd::stream::raw::CParameter;

    use super::super::inflight::Inflight;
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    const MAX_BYTES: usize = 64 * 1024;

    const ALL: [Encoding; 4] = [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd, Encoding::Brotli];

    fn encode(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
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
                let mut encoded = Vec::new();
                brotli::BrotliCompress(&mut &*bytes, &mut encoded, &params).unwrap();
                encoded
            }
        }
    }

    fn decode(encoding: Encoding, encoded: &[u8]) -> Result<Vec<u8>, ApiError> {
        let inflight = Inflight::new(MAX_BYTES, MAX_BYTES);
        let mut decoded = BodyBuffer::new(&inflight, CLIENT, MAX_BYTES);
        block_on(encoding.decode(encoded, &mut decoded))?;
        assert!(decoded.spare().capacity() <= MAX_BYTES);
        Ok(decoded.as_bytes().to_vec())
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn reason(encoding: Encoding, encoded: &[u8]) -> String {
        match decode(encoding, encoded) {
            Err(ApiError::NotDecodable { reason, encoding: name }) if name == encoding.name() => reason,
            other => panic!("{encoding:?}: {other:?}"),
        }
    }

    fn of(values: &[&'static str]) -> Result<Option<Encoding>, ApiError> {
        let headers = values.iter().map(|value| (CONTENT_ENCODING, HeaderValue::from_static(value)));
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value)| assert!(map.append(name, value) || map.len() == 1));
        Encoding::of(&map)
    }

    #[test]
    fn encodings_are_recognized_by_name() {
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
            assert!(matches!(of(values), Err(ApiError::ContentEncoding { .. })), "{values:?}");
        }
    }

    #[test]
    fn a_truncated_body_is_recognized_wherever_it_is_cut() {
        let bytes: Vec<u8> = (0..2_000_u32).flat_map(|n| (n * n).to_le_bytes()).collect();
        for encoding in ALL {
            let encoded = encode(encoding, &bytes);
            assert_eq!(decode(encoding, &encoded).unwrap(), bytes, "{encoding:?}");
            for cut in 0..encoded.len() {
                assert_eq!(reason(encoding, &encoded[..cut]), "it ends too early", "{encoding:?} {cut}");
            }
        }
    }

    #[test]
    fn bytes_after_the_end_are_an_error_unless_they_are_another_member_or_frame() {
        for encoding in ALL {
            let encoded = encode(encoding, b"{}");
            for garbage in [&b"garbage"[..], b"\0\0\0\0", b"\n"] {
                let reason = reason(encoding, &[&encoded, garbage].concat());
                let early = reason == "it ends too early" && garbage.len() == 1;
                assert!(reason == "other bytes follow the end" || early, "{encoding:?}: {reason}");
            }
            let twice = decode(encoding, &[&*encoded, &encoded].concat());
            match encoding {
                Encoding::Gzip | Encoding::Zstd => assert_eq!(twice.unwrap(), b"{}{}"),
                Encoding::Deflate | Encoding::Brotli => assert!(twice.is_err(), "{encoding:?}"),
            }
        }
    }

    #[test]
    fn the_number_of_frames_is_limited() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let empty = encode(encoding, b"");
            assert_eq!(decode(encoding, &empty.repeat(MAX_FRAMES)).unwrap(), b"", "{encoding:?}");
            for frames in [MAX_FRAMES + 1, 50_000] {
                let reason = reason(encoding, &empty.repeat(frames));
                assert_eq!(reason, "it has more than 256 frames or members", "{encoding:?}");
            }
        }
        // A skippable frame (RFC 8878, section 3.1.2) without content.
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        assert_eq!(reason(Encoding::Zstd, &skippable.repeat(50_000)), "it has more than 256 frames or members");
    }

    #[test]
    fn deflate_is_accepted_with_and_without_a_zlib_header() {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(b"{\"a\":1}").unwrap();
        assert_eq!(decode(Encoding::Deflate, &encoder.finish().unwrap()).unwrap(), b"{\"a\":1}");
        let stored = DeflateEncoder::new(Vec::new(), Compression::none());
        assert_eq!(decode(Encoding::Deflate, &stored.finish().unwrap()).unwrap(), b"");
    }

    #[test]
    fn a_body_is_decoded_up_to_the_limit() {
        for encoding in ALL {
            let full = vec![b' '; MAX_BYTES];
            assert_eq!(decode(encoding, &encode(encoding, &full)).unwrap(), full, "{encoding:?}");
            for bytes in [MAX_BYTES + 1, 100 * MAX_BYTES] {
                let bomb = encode(encoding, &vec![b' '; bytes]);
                let refused = decode(encoding, &bomb);
                assert!(
                    matches!(refused, Err(ApiError::TooLarge { max_bytes: MAX_BYTES })),
                    "{encoding:?}: {refused:?}"
                );
                // The end is not needed to see that.
                let refused = decode(encoding, &bomb[..bomb.len() / 2]);
                assert!(bytes == MAX_BYTES + 1 || matches!(refused, Err(ApiError::TooLarge { .. })), "{encoding:?}");
            }
        }
    }

    #[test]
    fn decoded_bytes_count_until_they_are_dropped() {
        let inflight = Inflight::new(MAX_BYTES - 1, MAX_BYTES);
        let encoded = encode(Encoding::Gzip, &vec![b' '; MAX_BYTES]);
        let mut decoded = BodyBuffer::new(&inflight, CLIENT, MAX_BYTES);
        let refused = block_on(Encoding::Gzip.decode(&encoded, &mut decoded));
        assert!(matches!(refused, Err(ApiError::TooManyInFlight)), "{refused:?}");
        assert_eq!(inflight.used_bytes(), decoded.spare().capacity());
        drop(decoded);
        assert_eq!(inflight.used_bytes(), 0);
    }

    #[test]
    fn a_window_larger_than_http_permits_is_refused() {
        // Of unknown length. Otherwise the encoder would reduce the window to the length.
        let with_window = |log: u32| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.set_parameter(CParameter::WindowLog(log)).unwrap();
            encoder.write_all(b"{}").unwrap();
            encoder.flush().unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(decode(Encoding::Zstd, &with_window(23)).unwrap(), b"{}");
        assert!(reason(Encoding::Zstd, &with_window(24)).contains("memory"));
        let params =
            |large_window, lgwin| brotli::enc::BrotliEncoderParams { large_window, lgwin, ..Default::default() };
        let with_window = |params| {
            let mut encoded = Vec::new();
            brotli::BrotliCompress(&mut &b"{}"[..], &mut encoded, &params).unwrap();
            encoded
        };
        assert_eq!(decode(Encoding::Brotli, &with_window(params(false, 24))).unwrap(), b"{}");
        assert_eq!(reason(Encoding::Brotli, &with_window(params(true, 28))), "it is corrupt");
    }

    proptest! {
        // Encoders are slow in debug builds.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn decoding_reverses_encoding(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b' ')], 0..4_000),
            encoding in proptest::sample::select(&ALL[..]),
        ) {
            prop_assert_eq!(decode(encoding, &encode(encoding, &bytes)).unwrap(), bytes);
        }

        #[test]
        fn damaged_bytes_are_refused_or_harmless(
            (at, mask) in (any::<proptest::sample::Index>(), 1..=u8::MAX),
            encoding in proptest::sample::select(&ALL[..]),
        ) {
            let bytes = br#"{"clientId":"a","hosts":[{"name":"b","history":[{"latency":17}]}]}"#;
            let mut encoded = encode(encoding, bytes);
            let at = at.index(encoded.len());
            encoded[at] ^= mask;
            // Only gzip always has a checksum, and a header that is not mistaken for another.
            match decode(encoding, &encoded) {
                Ok(decoded) if encoding == Encoding::Gzip => prop_assert_eq!(decoded, bytes),
                Ok(_) | Err(ApiError::NotDecodable { .. } | ApiError::TooLarge { .. }) => {}
                Err(refusal) => prop_assert!(false, "{refusal:?}"),
            }
        }
    }
}
