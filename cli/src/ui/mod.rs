//! Progress on standard error: three renderers of the library's events, and the log.
//!
//! Invariant: what is shown is a function of the events; nothing is decided from it, and losing all of it changes
//! nothing. Standard output is never written here.

mod bars;
mod json;
mod plain;
mod state;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use cfs_core::Error;
use cfs_core::monitor::{Event, Monitor};

use crate::args::{Global, Progress};
use crate::output::printable;
use state::State;
use tracing_subscriber::EnvFilter;

/// Shows one event, after the state has taken it in.
trait Renderer: Send {
    fn event(&mut self, state: &State, event: &Event);
    /// Writes a line of text where it does not collide with what is drawn.
    fn line(&mut self, text: &str) {
        // Standard error is gone: there is nobody to tell.
        let _ = writeln!(io::stderr(), "{}", printable(text));
    }
    /// Leaves the terminal as it was found; `done` says whether the command succeeded.
    fn finish(&mut self, _done: bool) {}
}

/// What the user sees of a running command; hand it to the library as its monitor.
#[derive(Clone)]
pub struct Ui {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    state: State,
    renderer: Box<dyn Renderer>,
}

impl Ui {
    /// As the options say; `color` is whether bars may use it.
    pub fn new(global: &Global, color: bool) -> Result<Self> {
        let renderer: Box<dyn Renderer> = match (global.progress_fd, global.progress) {
            (Some(fd), _) => Box::new(json::Json::new(Box::new(descriptor(fd)?))),
            (None, Progress::Json) => Box::new(json::Json::new(Box::new(io::stderr()))),
            (None, _) if global.quiet => Box::new(Silent),
            (None, Progress::Bars) => Box::new(bars::Bars::new(color)),
            (None, Progress::Plain) => Box::new(plain::Plain::default()),
            (None, Progress::None) => Box::new(WarningsOnly),
            (None, Progress::Auto) if io::stderr().is_terminal() => Box::new(bars::Bars::new(color)),
            (None, Progress::Auto) => Box::new(plain::Plain::default()),
        };
        let state = State::default();
        Ok(Self {
            shared: Arc::new(Mutex::new(Shared { state, renderer })),
        })
    }

    /// Clears what is drawn, so that the result can be printed.
    pub fn finish(&self, done: bool) {
        self.with(|shared| shared.renderer.finish(done));
    }

    /// Shows log lines where they keep clear of the bars; `directives` as `CFS_UPDATE_LOG` has them.
    ///
    /// # Errors
    /// [`Error::Usage`] where they cannot be understood.
    pub fn start_log(&self, directives: &str) -> Result<()> {
        let filter = EnvFilter::builder()
            .parse(directives)
            .map_err(|e| Error::Usage(format!("CFS_UPDATE_LOG: {e}")))?;
        let ui = self.clone();
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .without_time();
        // A second call in one process (tests) keeps the first log.
        let _ = log
            .with_writer(move || Log {
                ui: ui.clone(),
                line: Vec::new(),
            })
            .try_init();
        Ok(())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Shared) -> T) -> T {
        act(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Monitor for Ui {
    fn event(&self, event: Event) {
        self.with(|Shared { state, renderer }| {
            state.apply(&event);
            renderer.event(state, &event);
        });
    }
}

fn descriptor(fd: u32) -> Result<File> {
    let path = format!("/proc/self/fd/{fd}");
    let file = File::options().append(true).open(&path);
    Ok(file.map_err(|e| Error::io("write progress to", path, e))?)
}

/// `--quiet`.
struct Silent;

impl Renderer for Silent {
    fn event(&mut self, _: &State, _: &Event) {}
}

/// `--progress none`.
struct WarningsOnly;

impl Renderer for WarningsOnly {
    fn event(&mut self, _: &State, event: &Event) {
        if let Event::Warning(text) = event {
            self.line(&format!("warning: {text}"));
        }
    }
}

/// Collects one log line and writes it when dropped.
pub struct Log {
    ui: Ui,
    line: Vec<u8>,
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.line);
        let text = text.trim_end();
        if !text.is_empty() {
            self.ui.with(|shared| shared.renderer.line(text));
        }
    }
}
