//! What can be said about a library before it is mapped. The system's loader
//! maps a file that was cut off and dies of SIGBUS when it touches what is
//! missing, so the parts that it will map must be there.

use object::Endianness;
use object::elf::{EM_AARCH64, EM_RISCV, EM_X86_64, ET_DYN, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

/// Bytes of a file in which its program headers lie; linkers put them first.
pub(super) const HEAD: u64 = 64 << 10;

/// Checks that a file of `len` bytes that begins with `file` is a whole shared
/// library for this machine.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(file: &[u8], len: u64) -> Result<(), String> {
    let header = FileHeader64::<Endianness>::parse(file)
        .map_err(|_| "it is not a shared library (ELF, 64 bits)".to_owned())?;
    let endian = header.endian().map_err(|e| e.to_string())?;
    if header.e_type(endian) != ET_DYN {
        return Err("it is an ELF file, but not a shared library".to_owned());
    }
    let machine = header.e_machine(endian);
    if let Some(ours) = machine_here().filter(|ours| *ours != machine) {
        return Err(format!(
            "it was built for another kind of machine (ELF machine {machine}, this is {ours})"
        ));
    }
    let segments = header
        .program_headers(endian, file)
        .map_err(|_| "it is cut off: its program headers are missing".to_owned())?;
    for segment in segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD) {
        let end = segment.p_offset(endian).checked_add(segment.p_filesz(endian));
        if end.is_none_or(|end| end > len) {
            return Err(format!("it is cut off: it has {len} bytes, a part of it ends behind"));
        }
    }
    Ok(())
}

fn machine_here() -> Option<u16> {
    Some(match std::env::consts::ARCH {
        "x86_64" => EM_X86_64,
        "aarch64" => EM_AARCH64,
        "riscv64" => EM_RISCV,
        _ => return None,
    })
}
