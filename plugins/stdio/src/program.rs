//! A program of its own for a stream.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::bridge::{Sink, Source};

/// A program that runs; it is killed when this is dropped.
pub(crate) struct Program {
    pub(crate) source: Source,
    pub(crate) sink: Sink,
    pub(crate) running: Running,
}

impl Program {
    /// Starts `command` for `peer`; blocks. Standard error is the daemon's.
    ///
    /// # Errors
    /// A text for the operator that names the program.
    pub(crate) fn start(command: &[String], peer: &str) -> Result<Self, String> {
        let (name, arguments) = command.split_first().ok_or("`command` is empty")?;
        let start = || -> io::Result<Self> {
            let mut child = Command::new(name)
                .args(arguments)
                .env("PILOT_PEER", peer)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                // So that what it starts can be ended with it.
                .process_group(0)
                .spawn()?;
            let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
            let running = Running(Some(child));
            let missing = || io::Error::other("the program has no pipes");
            let source = Source::new(stdout.ok_or_else(missing)?)?;
            let sink = Sink::new(stdin.ok_or_else(missing)?, drop::<ChildStdin>)?;
            Ok(Self { source, sink, running })
        };
        start().map_err(|e| format!("`command`: cannot run {name}: {e}"))
    }
}

/// A process and its group.
pub(crate) struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        // Not waited for yet, so the number is still its own.
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
        // A process that hangs in the kernel must not hold the plugin.
        let wait = move || drop(child.wait());
        drop(thread::Builder::new().name("stdio-wait".to_owned()).spawn(wait));
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::time::{Duration, Instant};

    use super::*;

    fn wait<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(value) => return value,
                Poll::Pending => assert!(Instant::now() < until, "nothing comes"),
            }
            thread::yield_now();
        }
    }

    fn shell(script: &str) -> Program {
        Program::start(&["sh".into(), "-c".into(), script.into()], "0:0000.0000.0007:9").unwrap()
    }

    fn output(program: &mut Program) -> String {
        let mut out = Vec::new();
        while let Some(piece) = wait(program.source.recv()).unwrap() {
            out.extend(piece);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_program_talks_to_the_stream_and_knows_the_peer() {
        let mut program = shell("read line; echo \"$PILOT_PEER said $line\"");
        wait(program.sink.send(b"hello\n".to_vec())).unwrap();
        program.sink.finish();
        assert_eq!(output(&mut program), "0:0000.0000.0007:9 said hello\n");
    }

    #[test]
    fn the_end_of_input_reaches_it() {
        let mut program = shell("cat; echo done");
        wait(program.sink.send(b"abc".to_vec())).unwrap();
        program.sink.finish();
        assert_eq!(output(&mut program), "abcdone\n");
    }

    #[test]
    fn it_ends_with_the_stream_and_what_it_started_too() {
        let mut program = shell("sleep 1000 & echo ready; wait");
        let ready = wait(program.source.recv()).unwrap().unwrap();
        assert_eq!(ready, b"ready\n");
        let Program { mut source, sink, running } = program;
        drop((sink, running));
        // The pipe ends only when the last of them is gone.
        assert_eq!(wait(source.recv()).unwrap(), None);
    }

    #[test]
    fn a_missing_program_is_named() {
        let why = Program::start(&["/nonexistent/tool".into()], "x").err().unwrap();
        assert!(why.contains("command") && why.contains("/nonexistent/tool"), "{why}");
    }
}
