//! Running other programs.

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Error, Result};

/// What a program did.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to its output.
    pub stdout: Vec<u8>,
    /// What it wrote to its error output.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether it left with exit code 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// The last line that it wrote to its error output, or to its output where there is none: for messages.
    pub fn last_line(&self) -> String {
        let said = if self.stderr.is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        let said = String::from_utf8_lossy(said);
        let line = said.lines().rev().find(|line| !line.trim().is_empty());
        line.unwrap_or_default().trim().escape_debug().to_string()
    }
}

/// Runs `program` (found on `PATH` unless it has a `/`) with `input` as its standard input, and waits for it. Fails
/// only where it cannot be run; what it says is in the output.
pub fn run(program: &OsStr, arguments: &[OsString], input: &[u8]) -> Result<Output> {
    let fail = |e| Error::io("run", Path::new(program), e);
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        // From a thread of its own, so that a program that answers before it has read all cannot block both.
        scope.spawn(move || {
            if let Some(mut stdin) = stdin {
                // A program that does not read its input is free to do so.
                let _ = stdin.write_all(input);
            }
        });
        let output = child.wait_with_output().map_err(fail)?;
        Ok(Output {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: output.stderr,
        })
    })
}

/// How a program ended that had a time limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exited(i32),
    /// By a signal of this number.
    Signalled(i32),
    /// It took longer than it may, and was killed with everything that it had started.
    TimedOut,
}

/// What is kept of what a program says: the end of it.
const SAID: usize = 16 << 10;
/// How often a program that says nothing is looked at.
const LOOK: rustix::time::Timespec = rustix::time::Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// Runs `program` (found on `PATH` unless it has a `/`) without input, in a process group of its own, for `limit` at
/// most; returns how it ended and the end of what it said, output and error output together. Whatever it started is
/// killed with it, and one that keeps its output open is not waited for.
///
/// # Errors
/// Where it cannot be run.
pub fn run_for(program: &OsStr, arguments: &[&OsStr], limit: Duration) -> Result<(Ended, Vec<u8>)> {
    let fail = |e| Error::io("run", Path::new(program), e);
    let (mut reader, writer) = io::pipe().map_err(fail)?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(|e| fail(e.into()))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(fail)?)
        .stderr(writer)
        .process_group(0)
        .spawn()
        .map_err(fail)?;
    let deadline = Instant::now() + limit;
    let mut said = Vec::new();
    let ended = loop {
        let open = listen(&mut reader, &mut said);
        if let Some(status) = child.try_wait().map_err(fail)? {
            listen(&mut reader, &mut said);
            break status.into();
        }
        if Instant::now() >= deadline {
            break Ended::TimedOut;
        }
        if open {
            // Interrupted or not: what there is is looked at in any case.
            let _ = poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(&LOOK));
        } else {
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    end(&mut child);
    Ok((ended, said))
}

/// Takes what has been said, of one that never stops talking a part; whether more may come.
fn listen(reader: &mut PipeReader, said: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    for _ in 0..256 {
        match reader.read(&mut buffer) {
            Ok(0) => return false,
            Ok(n) => said.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
        }
        let surplus = said.len().saturating_sub(SAID);
        said.drain(..surplus);
    }
    true
}

/// Kills what is left of a program's group and takes its exit status.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // There may be none left.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, signal) => Self::Signalled(signal.unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_its_input_and_its_answer_comes_back() {
        let script = ["-c", "cat; echo oops >&2; exit 3"].map(OsString::from);
        let output = run(OsStr::new("sh"), &script, b"hello").unwrap();
        assert_eq!((output.code, output.stdout.as_slice()), (Some(3), &b"hello"[..]));
        assert_eq!(output.last_line(), "oops");
        assert!(!output.success());
    }

    #[test]
    fn much_input_to_a_program_that_does_not_read_it_blocks_nobody() {
        let script = ["-c", "exit 0"].map(OsString::from);
        assert!(run(OsStr::new("sh"), &script, &vec![0; 1 << 20]).unwrap().success());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(OsStr::new("no-such-program-here"), &[], b"").unwrap_err();
        assert!(error.to_string().contains("no-such-program-here"), "{error}");
    }

    fn script(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (folder, path)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn how_a_program_ends_and_the_end_of_what_it_said_are_known() {
        let (_keep, path) = script("echo out; echo err >&2; exit 7");
        let (ended, said) = run_for(path.as_os_str(), &[], LONG).unwrap();
        assert_eq!((ended, said.as_slice()), (Ended::Exited(7), &b"out\nerr\n"[..]));
        let (_keep, path) = script("kill -TERM $$");
        assert_eq!(run_for(path.as_os_str(), &[], LONG).unwrap().0, Ended::Signalled(15));
        let (_keep, path) = script("head -c 1000000 /dev/zero; echo end");
        let (ended, said) = run_for(path.as_os_str(), &[], LONG).unwrap();
        assert_eq!((ended, said.len()), (Ended::Exited(0), SAID));
        assert!(said.ends_with(b"\0end\n"));
    }

    #[test]
    fn a_program_that_never_stops_talking_is_killed_in_time() {
        let (_keep, path) = script("yes & yes & exec yes");
        let begun = Instant::now();
        assert_eq!(
            run_for(path.as_os_str(), &[], Duration::from_millis(300)).unwrap().0,
            Ended::TimedOut
        );
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children_in_time() {
        let (keep, path) = script("echo begun; (sleep 100; echo late > $0.late) & wait");
        let begun = Instant::now();
        let (ended, said) = run_for(path.as_os_str(), &[], Duration::from_millis(300)).unwrap();
        assert_eq!((ended, said.as_slice()), (Ended::TimedOut, &b"begun\n"[..]));
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(!keep.path().join("script.late").exists());
    }

    #[test]
    fn a_child_that_keeps_the_output_open_is_not_waited_for() {
        let (_keep, path) = script("setsid sleep 30 & exit 0");
        let begun = Instant::now();
        assert_eq!(run_for(path.as_os_str(), &[], LONG).unwrap().0, Ended::Exited(0));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}
