//! Lines of text, for logs and pipes: what happened, and how far it is every few seconds.

use std::time::{Duration, Instant};

use cfs_core::monitor::Event;
use indicatif::{HumanBytes, HumanCount, HumanDuration};

use super::Renderer;
use super::state::{State, short, stage_text};

const EVERY: Duration = Duration::from_secs(5);

/// One line for each thing worth one.
#[derive(Debug, Default)]
pub struct Plain {
    fetching_since: Option<Instant>,
    last: Option<Instant>,
}

impl Renderer for Plain {
    fn event(&mut self, state: &State, event: &Event) {
        if let Some(text) = line(state, event) {
            self.line(&text);
        }
        if let Event::LayerBytes { .. } = event {
            let now = Instant::now();
            let since = *self.fetching_since.get_or_insert(now);
            if now.duration_since(*self.last.get_or_insert(now)) >= EVERY {
                self.last = Some(now);
                self.line(&so_far(state, now.duration_since(since)));
            }
        }
    }
}

fn line(state: &State, event: &Event) -> Option<String> {
    Some(match event {
        Event::Stage(stage) => stage_text(*stage).to_owned(),
        Event::Plan { layers, cached, bytes } => {
            format!(
                "{layers} layers, {cached} of them here already; {} to fetch",
                HumanBytes(*bytes)
            )
        }
        Event::LayerDone { diff_id } => {
            format!(
                "layer {} done ({} of {})",
                short(diff_id),
                state.layers_here(),
                state.layers
            )
        }
        Event::Retry { url, why } => format!("trying again: {url}: {why}"),
        Event::Warning(text) => format!("warning: {text}"),
        Event::Note(text) => format!("note: {text}"),
        _ => return None,
    })
}

fn so_far(state: &State, elapsed: Duration) -> String {
    let State {
        bytes,
        bytes_total,
        layers,
        ..
    } = *state;
    let rate = u64::try_from(u128::from(bytes) * 1000 / elapsed.as_millis().max(1)).unwrap_or(u64::MAX);
    let left = bytes_total.saturating_sub(bytes);
    let time = match left.checked_div(rate) {
        Some(seconds) if bytes_total > 0 => format!(", about {} left", HumanDuration(Duration::from_secs(seconds))),
        _ => String::new(),
    };
    format!(
        "{} of {} at {}/s{time}; {} files ({} new), layers {} of {layers}",
        HumanBytes(bytes),
        HumanBytes(bytes_total),
        HumanBytes(rate),
        HumanCount(state.files()),
        HumanCount(state.stored),
        state.layers_here(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::state::tests::{layer, run};

    #[test]
    fn a_line_says_bytes_rate_time_left_files_and_layers() {
        let state = run(&[
            Event::Plan {
                layers: 8,
                cached: 3,
                bytes: 100 << 20,
            },
            Event::LayerStarted {
                diff_id: layer(1),
                size: 50 << 20,
            },
            Event::LayerBytes {
                diff_id: layer(1),
                bytes: 20 << 20,
            },
            Event::Objects {
                stored: 800,
                shared: 11_545,
            },
        ]);
        assert_eq!(
            so_far(&state, Duration::from_secs(10)),
            "20.00 MiB of 100.00 MiB at 2.00 MiB/s, about 40 seconds left; 12,345 files (800 new), layers 3 of 8"
        );
    }

    #[test]
    fn warnings_are_marked() {
        let event = Event::Warning("no fs-verity here".into());
        assert_eq!(line(&State::default(), &event).unwrap(), "warning: no fs-verity here");
    }
}
