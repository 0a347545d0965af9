//! Every compression, as the usual programs write it, damaged, padded and too large.

use std::io::Write;
use std::process::{Command, Stdio};

use flate2::write::GzEncoder;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn all(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decompress(bytes)
        .map_err(io::Error::other)?
        .read_to_end(&mut out)
        .map(|_| out)
}

#[test]
fn decompress_reads_gzip_members_and_plain_bytes() {
    assert_eq!(all(&gzip(b"hello")).unwrap(), b"hello");
    assert_eq!(
        all(&[gzip(b"hello "), gzip(b""), gzip(b"world")].concat()).unwrap(),
        b"hello world"
    );
    for plain in [&b""[..], b"x", b"BZh91.txt\0", b"usr/bin/\0\0\0"] {
        assert_eq!(all(plain).unwrap(), plain);
    }
}

/// Bytes as a program of the system compresses them.
fn squeezed(program: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut out = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).unwrap());
        output.read_to_end(&mut out).unwrap();
    });
    assert!(child.wait().unwrap().success());
    out
}

const PROGRAMS: [(&str, Compression); 4] = [
    ("gzip", Compression::Gzip),
    ("bzip2", Compression::Bzip2),
    ("xz", Compression::Xz),
    ("zstd", Compression::Zstd),
];

/// More than a block of any of them, and not all alike.
fn sample() -> Vec<u8> {
    (0..3_000_000_u32)
        .map(|n| n.wrapping_mul(n).to_le_bytes()[2])
        .collect()
}

/// Gives few bytes at a time, as a pipe may.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.0.len().min(out.len()).min(4093);
        out[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}

#[test]
fn decompress_reads_concatenated_streams_of_every_program() {
    let sample = sample();
    for (program, compression) in PROGRAMS {
        let whole = squeezed(program, &[], &sample);
        assert_eq!(decompress(&whole[..]).unwrap().compression(), compression);
        assert_eq!(all(&whole).unwrap(), sample, "{program}");
        let (first, second) = sample.split_at(1_234_567);
        let parts = [
            squeezed(program, &["-1"], first),
            squeezed(program, &[], b""),
            squeezed(program, &[], second),
        ]
        .concat();
        let mut out = Vec::new();
        decompress(Trickle(&parts))
            .unwrap()
            .read_to_end(&mut out)
            .unwrap();
        assert_eq!(out, sample, "{program}, three streams");
    }
}

#[test]
fn read_names_the_compression_of_damage_and_cuts() {
    let sample = sample();
    for (program, _) in PROGRAMS {
        let whole = squeezed(program, &[], &sample[..100_000]);
        for cut in [whole.len() - 1, whole.len() - 9, whole.len() / 2, 12] {
            let error = all(&whole[..cut]).unwrap_err().to_string();
            assert!(error.contains(program), "{program} cut at {cut}: {error}");
        }
        for at in [whole.len() / 3, whole.len() - 6] {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            let error = all(&flipped).unwrap_err().to_string();
            assert!(
                error.contains(program),
                "{program} flipped at {at}: {error}"
            );
        }
        let error = all(&[&whole[..], b"garbage"].concat())
            .unwrap_err()
            .to_string();
        assert!(error.contains(program), "{program}: {error}");
    }
}

#[test]
fn decompress_skips_zeros_behind_a_stream() {
    for (program, _) in PROGRAMS.iter().filter(|(program, _)| *program != "zstd") {
        let padded = [squeezed(program, &[], b"hello"), vec![0; 100_000]].concat();
        assert_eq!(all(&padded).unwrap(), b"hello", "{program}");
        let more = [&padded[..], b"more"].concat();
        assert!(all(&more).is_err(), "{program}");
    }
}

#[test]
fn decompress_refuses_large_windows() {
    // the window that `zstd --long=31` asks for; a dictionary of 1.5 GiB, as `xz
    // --lzma2=dict=1536MiB` writes
    let long = squeezed("zstd", &["--long=31", "-q"], &vec![7; 200 << 20]);
    let error = all(&long).unwrap_err().to_string();
    assert!(
        error.contains("zstd") && error.contains("memory"),
        "{error}"
    );
    let xz = squeezed("xz", &["--lzma2=preset=0,dict=192MiB"], b"hello");
    let error = all(&xz).unwrap_err().to_string();
    assert!(error.contains("xz") && error.contains("memory"), "{error}");
}

/// A disk that is gone.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is gone"))
    }
}

#[test]
fn read_passes_source_errors_through() {
    for (program, _) in PROGRAMS {
        let whole = squeezed(program, &[], &sample()[..100_000]);
        let mut stream = decompress(whole[..whole.len() / 2].chain(Broken)).unwrap();
        let error = io::copy(&mut stream, &mut io::sink()).unwrap_err();
        assert_eq!(error.to_string(), "the disk is gone", "{program}");
    }
}

#[test]
fn read_after_a_decompression_error_fails_again() {
    for (program, _) in PROGRAMS {
        let mut whole = squeezed(program, &[], &sample()[..100_000]);
        let middle = whole.len() / 2;
        whole[middle..].fill(0x55);
        let mut stream = decompress(&whole[..]).unwrap();
        assert!(io::copy(&mut stream, &mut io::sink()).is_err());
        assert!(stream.read(&mut [0; 10]).is_err(), "{program}");
    }
}

#[test]
fn decompress_refuses_lz4_by_name() {
    let message = decompress(&b"\x04\x22\x4d\x18@@"[..])
        .unwrap_err()
        .to_string();
    assert!(message.contains("lz4"), "{message}");
}

/// Windows as the zstd program chooses them; its manual names the levels'.
#[test]
fn memory_of_zstd_is_its_window() {
    let memory = |arguments: &[&str], bytes: &[u8]| {
        let squeezed = squeezed("zstd", arguments, bytes);
        decompress(squeezed.as_slice()).unwrap().memory()
    };
    // from a pipe: the size is not known, so a window is named
    assert_eq!(memory(&["-q", "-3"], &vec![7; 3 << 20]), 2 << 20);
    assert_eq!(memory(&["-q", "--long=27"], b"short"), 128 << 20);
    let sized = |length: usize| {
        let bytes = vec![7; length];
        let frame = zstd::bulk::compress(&bytes, 3).unwrap();
        decompress(frame.as_slice()).unwrap().memory()
    };
    assert_eq!(sized(200), 200, "a frame of one segment holds its content");
    assert_eq!(sized(100_000), 100_000);
    assert_eq!(decompress(&b"plain"[..]).unwrap().memory(), SMALL_DECODER);
}

/// Whatever follows a stream, however short, is no cut: nothing of the stream is missing.
#[test]
fn other_data_behind_a_stream_is_not_called_a_cut() {
    for (program, _) in PROGRAMS {
        let whole = squeezed(program, &[], b"hello");
        for junk in [&b"x"[..], b"junk\n", &[b'j'; 40]] {
            let error = all(&[&whole, junk].concat()).unwrap_err().to_string();
            assert!(error.contains("is damaged"), "{program}: {error}");
        }
    }
}
