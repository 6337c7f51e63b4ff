//! Running other programs.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

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
}
