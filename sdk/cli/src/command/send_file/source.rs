//! The file that is sent: read and hashed on threads of their own.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;

use pilot_wire::service::data_exchange::{CHUNK_LEN, HASH_LEN, HEADER_LEN};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// A regular file, its name and its size when the command began.
#[derive(Clone, Debug)]
pub(super) struct Source {
    path: PathBuf,
    pub(super) name: String,
    pub(super) size: u64,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let failed = |e: std::io::Error| match e.kind() {
            ErrorKind::NotFound => Failure::not_found(format!("file not found: {shown}")),
            _ => Failure::internal(format!("cannot read {shown}")).reason(e),
        };
        // Asked before it is opened: opening a pipe waits for its writer.
        let meta = std::fs::metadata(path).map_err(failed)?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        match name {
            Some(name) if meta.is_file() => {
                // Refused now rather than after the peer was asked.
                File::open(path).map_err(failed)?;
                Ok(Self { path: path.to_owned(), name, size: meta.len() })
            }
            _ => Err(Failure::invalid(format!("not a file: {shown}"))
                .hint("pack a folder first, for example with tar")),
        }
    }

    /// The hash of the first `len` bytes, ready to take what follows. `seen`
    /// is told of every piece.
    pub(super) async fn hash(
        &self,
        len: u64,
        seen: impl Fn(u64) + Send + 'static,
    ) -> Result<Sha256, Failure> {
        let source = self.clone();
        let hashing = tokio::task::spawn_blocking(move || source.hash_blocking(len, seen));
        hashing.await.map_err(|e| Failure::internal("reading the file failed").reason(e))?
    }

    fn hash_blocking(&self, len: u64, seen: impl Fn(u64)) -> Result<Sha256, Failure> {
        let mut file = self.reopen(0)?;
        let mut hasher = Sha256::new();
        let mut piece = vec![0; CHUNK_LEN];
        let mut left = len;
        while left > 0 {
            let n = piece_len(left);
            file.read_exact(&mut piece[..n]).map_err(|e| self.unreadable(e))?;
            hasher.update(&piece[..n]);
            left -= n as u64;
            seen(n as u64);
        }
        Ok(hasher)
    }

    /// Hands out what follows the first `from` bytes in pieces with room for a
    /// frame header before each, and gives the hash of all; `hasher` has taken
    /// the first bytes. Blocks.
    pub(super) fn read(
        &self,
        from: u64,
        mut hasher: Sha256,
        pieces: &mpsc::Sender<Vec<u8>>,
        used: &std_mpsc::Receiver<Vec<u8>>,
    ) -> Result<[u8; HASH_LEN], Failure> {
        let mut file = self.reopen(from)?;
        let mut left = self.size.saturating_sub(from);
        while left > 0 {
            let len = piece_len(left);
            let mut piece = used.try_recv().unwrap_or_default();
            piece.resize(HEADER_LEN + len, 0);
            file.read_exact(&mut piece[HEADER_LEN..]).map_err(|e| self.unreadable(e))?;
            hasher.update(&piece[HEADER_LEN..]);
            left -= len as u64;
            if pieces.blocking_send(piece).is_err() {
                // Sending has failed, and says why.
                return Ok([0; HASH_LEN]);
            }
        }
        if file.read(&mut [0]).is_ok_and(|n| n > 0) {
            return Err(self.changed("became longer"));
        }
        Ok(hasher.finalize().into())
    }

    /// It is not what it was when the command began.
    pub(super) fn changed(&self, what: &str) -> Failure {
        Failure::internal(format!("{} {what} while it was sent", self.path.display()))
            .hint("send it again")
    }

    fn reopen(&self, at: u64) -> Result<File, Failure> {
        let mut file = File::open(&self.path).map_err(|e| self.unreadable(e))?;
        file.seek(SeekFrom::Start(at)).map_err(|e| self.unreadable(e))?;
        Ok(file)
    }

    fn unreadable(&self, e: std::io::Error) -> Failure {
        match e.kind() {
            ErrorKind::UnexpectedEof => self.changed("became shorter"),
            _ => Failure::internal(format!("cannot read {}", self.path.display())).reason(e),
        }
    }
}

fn piece_len(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_LEN)
}
