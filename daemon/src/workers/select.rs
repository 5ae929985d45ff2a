//! The program in the kernel that gives each datagram to the socket of its
//! worker (classic BPF, SO_ATTACH_REUSEPORT_CBPF, socket(7)). It decides as
//! [`Spread::of_datagram`] does.
#![cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "no safe crate sets this socket option")
)]

use std::io;

use socket2::Socket;

use super::spread::Spread;

/// Attaches the program to the group of sockets that `member` is in. Their
/// order in the group is the one in which they were bound.
///
/// # Errors
/// What the system says; datagrams are then spread without regard to senders.
#[cfg(target_os = "linux")]
pub(crate) fn attach(member: &Socket, spread: Spread) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let mut program = program(u32::try_from(spread.workers()).unwrap_or(u32::MAX));
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or_default(),
        filter: program.as_mut_ptr(),
    };
    let size = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or_default();
    // SAFETY: the descriptor is open as long as `member` is borrowed, and the
    // option takes a `sock_fprog` of this size whose `filter` points to `len`
    // instructions; the kernel copies all of it before the call returns.
    let result = unsafe {
        libc::setsockopt(
            member.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&program).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Only Linux has such programs.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub(crate) fn attach(_: &Socket, _: Spread) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The instructions. A load beyond the datagram's end returns 0, the first
/// worker, as the rule wants.
#[cfg(target_os = "linux")]
fn program(workers: u32) -> [libc::sock_filter; 14] {
    use libc::{
        BPF_A, BPF_ABS, BPF_ALU, BPF_B, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_MOD,
        BPF_RET, BPF_W,
    };
    use pilot_wire::beacon::{RELAY_DELIVER, TYPE_LIMIT};
    use pilot_wire::tunnel::{COMPACT, MAGIC_AUTH_KEY, MAGIC_KEY, MAGIC_SEALED};

    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let byte = |at| step(BPF_LD | BPF_B | BPF_ABS, 0, 0, at);
    let word = |at| step(BPF_LD | BPF_W | BPF_ABS, 0, 0, at);
    let is = |value, jt, jf| step(BPF_JMP | BPF_JEQ | BPF_K, jt, jf, value);
    let magic = u32::from_be_bytes;
    [
        byte(0),
        is(COMPACT.into(), 8, 0), // to the sender
        step(BPF_JMP | BPF_JGE | BPF_K, 3, 0, TYPE_LIMIT.into()), // to the tunnel's frames
        is(RELAY_DELIVER.into(), 0, 9), // else to the end
        word(1),
        step(BPF_JMP | BPF_JA, 0, 0, 5), // to the remainder
        word(0),
        is(magic(MAGIC_SEALED), 2, 0),
        is(magic(MAGIC_AUTH_KEY), 1, 0),
        is(magic(MAGIC_KEY), 0, 3), // else to the end
        word(4),
        step(BPF_ALU | BPF_MOD | BPF_K, 0, 0, workers.max(1)),
        step(BPF_RET | BPF_A, 0, 0, 0),
        step(BPF_RET | BPF_K, 0, 0, 0),
    ]
}
