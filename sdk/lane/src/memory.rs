//! The mapping. All `unsafe` of the lane is in this file.
#![expect(unsafe_code, reason = "maps shared memory and copies to and from it")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use pilot_wire::ipc::lane::{HEADER_LEN, file_len};

/// A lane's file, mapped. The other side may change its contents at any time.
pub struct Memory {
    /// Page-aligned; [`file_len`] bytes are mapped from here until drop.
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to no thread. It is reached only through atomics
// and through copies by raw pointers that make no reference to its bytes.
unsafe impl Send for Memory {}
// SAFETY: as above. Two threads of this process never copy the same bytes at
// once, because a ring has one producer and one consumer (`ring.rs`); what the
// other process does to them can change the bytes copied, but nothing else.
unsafe impl Sync for Memory {}

impl Memory {
    /// A new lane, empty, and the descriptor to give to the other side. All its
    /// memory is there from the beginning.
    ///
    /// # Errors
    /// What the system says, also when it has no such files.
    #[cfg(target_os = "linux")]
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("pilot-lane", flags)?;
        rustix::fs::ftruncate(&file, file_len() as u64)?;
        // So that a lack of memory shows here and not as a fault later.
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, file_len() as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Self::map(&file)?, file))
    }

    /// The lane behind a descriptor that came from the other side.
    ///
    /// # Errors
    /// When its size is not a lane's or could still be changed, and what the
    /// system says.
    #[cfg(target_os = "linux")]
    pub fn open(file: &OwnedFd) -> io::Result<Self> {
        use rustix::fs::SealFlags;
        // Only what can be sealed has seals to tell.
        let seals = rustix::fs::fcntl_get_seals(file).unwrap_or(SealFlags::empty());
        if !seals.contains(SealFlags::SHRINK) {
            let text = "lane: the file's size is not sealed";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let len = rustix::fs::fstat(file)?.st_size;
        if usize::try_from(len) != Ok(file_len()) {
            let text = format!("lane: the file has {len} bytes instead of {}", file_len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Self::map(file)
    }

    /// Lanes need files that can be sealed.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Lanes need files that can be sealed.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn open(_file: &OwnedFd) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux has lanes"))]
    fn map(file: impl AsFd) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the system chooses the address, so no existing mapping is
        // touched. The file has `file_len` bytes and is sealed against shrinking
        // (set by `create`, checked by `open`), so that every page stays there.
        let base = unsafe {
            mmap(std::ptr::null_mut(), file_len(), protection, MapFlags::SHARED, file, 0)?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base })
    }

    /// One of the indices, by its offset in the first page.
    pub(crate) fn index(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= HEADER_LEN, "an index lies in the page");
        // SAFETY: inside the mapping and aligned, by the line above and because
        // the mapping begins at a page. This process reaches the place in no
        // other way, and the other one's writes are what atomics are for.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Copies bytes in.
    pub(crate) fn copy_in(&self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        // SAFETY: inside the mapping, by `check`; a slice of this process cannot
        // overlap with the mapping, to which no references are made. If the
        // other process breaks the rules and writes here as well, only the bytes
        // are undetermined, and nobody of this process reads them.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(at), bytes.len());
        }
    }

    /// Copies bytes out.
    pub(crate) fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        self.check(at, bytes.len());
        // SAFETY: as in `copy_in`. If the other process writes meanwhile, the
        // copy holds bytes of before or after, and any bytes will do.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(at),
                bytes.as_mut_ptr(),
                bytes.len(),
            );
        }
    }

    /// Appends `len` bytes to `bytes`.
    pub(crate) fn append_out(&self, at: usize, len: usize, bytes: &mut Vec<u8>) {
        self.check(at, len);
        bytes.reserve(len);
        // SAFETY: the source as in `copy_out`; there is room for `len` more
        // bytes, and after the copy they have values.
        unsafe {
            let end = bytes.as_mut_ptr().add(bytes.len());
            std::ptr::copy_nonoverlapping(self.base.as_ptr().add(at), end, len);
            bytes.set_len(bytes.len() + len);
        }
    }

    fn check(&self, at: usize, len: usize) {
        let inside = at >= HEADER_LEN && at.checked_add(len).is_some_and(|end| end <= file_len());
        assert!(inside, "bytes lie in the rings");
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; nothing borrowed from it
        // outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), file_len()) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
    }
}
