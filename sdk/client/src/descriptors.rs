//! Reading the socket while a descriptor is expected: an ordinary read would
//! throw it away.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use bytes::BytesMut;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Bytes per read: a descriptor is expected for a moment only.
const ROOM: usize = 16 * 1024;

/// A descriptor must not leak into programs that the application starts.
#[cfg(target_os = "linux")]
const FLAGS: RecvFlags = RecvFlags::CMSG_CLOEXEC;
/// Nothing sends descriptors here.
#[cfg(not(target_os = "linux"))]
const FLAGS: RecvFlags = RecvFlags::empty();

/// Reads once; descriptors are appended to `files`, of which there will be at
/// most `most`. What is beyond is closed.
pub(crate) async fn read(
    socket: &UnixStream,
    buffer: &mut BytesMut,
    files: &mut VecDeque<OwnedFd>,
    most: usize,
) -> io::Result<usize> {
    let len = buffer.len();
    loop {
        socket.readable().await?;
        buffer.resize(len + ROOM, 0);
        let got = socket.try_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut buffer[len..])];
            let got = rustix::net::recvmsg(socket, &mut slices, &mut control, FLAGS)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    files.extend(received);
                }
            }
            files.truncate(most);
            Ok(got.bytes)
        });
        buffer.truncate(len + got.as_ref().copied().unwrap_or(0));
        match got {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            got => return got,
        }
    }
}
