//! JSON lines, in the shape of bootc's `--progress-fd`, version 0 (its `docs/src/progress-v0.schema.json`).
//!
//! Tasks are `pulling` (bytes and layers), `importing` (writing the store to disk) and `staging` (image, deployment,
//! boot entry, cleaning). One type is ours: `Message`, for warnings and notes.

use std::io::Write;
use std::time::{Duration, Instant};

use cfs_core::monitor::{Event, Stage};
use serde::Serialize;

use super::Renderer;
use super::state::{State, short, stage_text};

const VERSION: &str = "0.1.0";
const EVERY: Duration = Duration::from_millis(200);
const STAGING: [(Stage, &str); 4] = [
    (Stage::Image, "merging"),
    (Stage::Deploy, "deploying"),
    (Stage::Boot, "boot_entry"),
    (Stage::Clean, "cleanup"),
];

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
enum Line {
    Start { version: &'static str },
    ProgressBytes(Bytes),
    ProgressSteps(Steps),
    Message { level: &'static str, text: String },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Bytes {
    task: &'static str,
    description: &'static str,
    id: &'static str,
    bytes_cached: u64,
    bytes: u64,
    bytes_total: u64,
    steps_cached: u64,
    steps: u64,
    steps_total: u64,
    subtasks: Vec<SubtaskBytes>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SubtaskBytes {
    subtask: &'static str,
    description: String,
    id: String,
    bytes_cached: u64,
    bytes: u64,
    bytes_total: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Steps {
    task: &'static str,
    description: &'static str,
    id: &'static str,
    steps_cached: u64,
    steps: u64,
    steps_total: u64,
    subtasks: Vec<SubtaskStep>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SubtaskStep {
    subtask: &'static str,
    description: &'static str,
    id: &'static str,
    completed: bool,
}

/// Writes one line for an event, byte counts at most five times a second.
pub struct Json {
    out: Box<dyn Write + Send>,
    started: bool,
    last: Option<Instant>,
    staging: bool,
}

impl Json {
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self {
            out,
            started: false,
            last: None,
            staging: false,
        }
    }

    fn send(&mut self, line: &Line) {
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        // A reader that has gone must not stop the update.
        let _ = self.out.write_all(&text).and_then(|()| self.out.flush());
    }

    fn due(&mut self) -> bool {
        let due = self.last.is_none_or(|t| t.elapsed() >= EVERY);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }

    fn message(&mut self, level: &'static str, text: String) {
        self.send(&Line::Message { level, text });
    }
}

impl Renderer for Json {
    fn event(&mut self, state: &State, event: &Event) {
        if !self.started {
            self.started = true;
            self.send(&Line::Start { version: VERSION });
        }
        match event {
            Event::Plan { .. } | Event::LayerStarted { .. } | Event::LayerDone { .. } => self.send(&pulling(state)),
            Event::LayerBytes { .. } if self.due() => self.send(&pulling(state)),
            Event::Stage(Stage::Sync) => self.send(&importing(false)),
            Event::Stage(stage) if *stage > Stage::Sync => {
                if !std::mem::replace(&mut self.staging, true) {
                    self.send(&importing(true));
                }
                self.send(&staging(*stage, false));
            }
            Event::Retry { url, why } => self.message("retry", format!("{url}: {why}")),
            Event::Warning(text) => self.message("warning", text.clone()),
            Event::Note(text) => self.message("note", text.clone()),
            _ => {}
        }
    }

    fn line(&mut self, text: &str) {
        self.message("log", text.to_owned());
    }

    fn finish(&mut self, done: bool) {
        if done && std::mem::take(&mut self.staging) {
            self.send(&staging(Stage::Clean, true));
        }
    }
}

fn pulling(state: &State) -> Line {
    let subtasks = state.running.iter().map(|layer| SubtaskBytes {
        subtask: "composefs_layer",
        description: format!("Layer {}", short(&layer.diff_id)),
        id: layer.diff_id.to_string(),
        bytes_cached: 0,
        bytes: if layer.done {
            layer.size
        } else {
            layer.bytes.min(layer.size)
        },
        bytes_total: layer.size,
    });
    Line::ProgressBytes(Bytes {
        task: "pulling",
        description: stage_text(Stage::Import),
        id: "pulling",
        bytes_cached: 0,
        bytes: state.bytes,
        bytes_total: state.bytes_total,
        steps_cached: count(state.cached),
        steps: count(state.done),
        steps_total: count(state.layers.saturating_sub(state.cached)),
        subtasks: subtasks.collect(),
    })
}

fn importing(completed: bool) -> Line {
    let description = stage_text(Stage::Sync);
    Line::ProgressSteps(Steps {
        task: "importing",
        description,
        id: "importing",
        steps_cached: 0,
        steps: u64::from(completed),
        steps_total: 1,
        subtasks: vec![SubtaskStep {
            subtask: "importing",
            description,
            id: "importing",
            completed,
        }],
    })
}

/// The steps up to `stage`, which itself is `completed` or running.
fn staging(stage: Stage, completed: bool) -> Line {
    let begun = STAGING.iter().filter(|(s, _)| *s <= stage);
    let subtasks: Vec<_> = begun
        .map(|&(s, id)| SubtaskStep {
            subtask: id,
            description: stage_text(s),
            id,
            completed: s < stage || completed,
        })
        .collect();
    Line::ProgressSteps(Steps {
        task: "staging",
        description: "staging the deployment",
        id: "staging",
        steps_cached: 0,
        steps: count(subtasks.iter().filter(|s| s.completed).count()),
        steps_total: count(STAGING.len()),
        subtasks,
    })
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::state::tests::layer;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines(events: &[Event]) -> Vec<serde_json::Value> {
        let sink = Sink::default();
        let mut json = Json::new(Box::new(sink.clone()));
        let mut state = State::default();
        for event in events {
            state.apply(event);
            json.event(&state, event);
        }
        json.finish(true);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn an_update_is_told_as_bootc_tells_it() {
        let lines = lines(&[
            Event::Stage(Stage::Resolve),
            Event::Stage(Stage::Import),
            Event::Plan {
                layers: 3,
                cached: 1,
                bytes: 150,
            },
            Event::LayerStarted {
                diff_id: layer(1),
                size: 100,
            },
            Event::LayerBytes {
                diff_id: layer(1),
                bytes: 100,
            },
            Event::LayerDone { diff_id: layer(1) },
            Event::Stage(Stage::Sync),
            Event::Stage(Stage::Image),
            Event::Stage(Stage::Boot),
        ]);
        assert_eq!(lines[0], serde_json::json!({"type": "Start", "version": "0.1.0"}));
        let pulled = lines.iter().rfind(|l| l["task"] == "pulling").unwrap();
        assert_eq!(pulled["type"], "ProgressBytes");
        assert_eq!((&pulled["bytes"], &pulled["bytesTotal"]), (&100.into(), &150.into()));
        assert_eq!(
            (&pulled["steps"], &pulled["stepsCached"], &pulled["stepsTotal"]),
            (&1.into(), &1.into(), &2.into())
        );
        assert_eq!(pulled["subtasks"][0]["bytesTotal"], 100);
        let imported: Vec<_> = lines
            .iter()
            .filter(|l| l["task"] == "importing")
            .map(|l| &l["steps"])
            .collect();
        assert_eq!(imported, [&serde_json::json!(0), &serde_json::json!(1)]);
        let last = lines.last().unwrap();
        assert_eq!((&last["task"], &last["steps"]), (&"staging".into(), &4.into()));
    }

    #[test]
    fn byte_counts_are_throttled_and_warnings_are_not() {
        let mut events = vec![Event::LayerStarted {
            diff_id: layer(1),
            size: 1000,
        }];
        events.extend((0..1000).map(|_| Event::LayerBytes {
            diff_id: layer(1),
            bytes: 1,
        }));
        events.push(Event::Warning("w".into()));
        let lines = lines(&events);
        assert!(lines.len() < 10, "{}", lines.len());
        assert_eq!(lines.last().unwrap()["type"], "Message");
    }
}
