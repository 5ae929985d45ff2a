//! The generated file and its hash.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

const CHUNK: usize = 1 << 20;

/// Writes `len` bytes that do not compress and do not repeat, and returns
/// their SHA-256.
pub(crate) fn generate(path: &Path, len: u64) -> io::Result<String> {
    let mut file = BufWriter::with_capacity(CHUNK, File::create(path)?);
    let mut hash = Sha256::new();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut chunk = vec![0; CHUNK];
    let mut left = len;
    while left > 0 {
        for word in chunk.chunks_exact_mut(8) {
            // SplitMix64: one multiplication chain per eight bytes.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
        }
        let part = &chunk[..usize::try_from(left).map_or(CHUNK, |l| l.min(CHUNK))];
        hash.update(part);
        file.write_all(part)?;
        left -= part.len() as u64;
    }
    file.flush()?;
    Ok(hex(&hash.finalize()))
}

/// SHA-256 of a file.
pub(crate) fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&chunk[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
