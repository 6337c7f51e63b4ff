//! Bars on a terminal: one for the whole fetch, one below it for each layer that is running.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use cfs_core::ids::DiffId;
use cfs_core::monitor::{Event, Stage};
use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressStyle};

use super::Renderer;
use super::state::{State, short, stage_text};
use crate::output::printable;

const REDRAW: Duration = Duration::from_millis(100);

/// Draws on standard error through indicatif.
pub struct Bars {
    screen: MultiProgress,
    stage: Option<ProgressBar>,
    fetch: Option<ProgressBar>,
    layers: HashMap<DiffId, ProgressBar>,
    color: bool,
    counted: Option<Instant>,
}

impl Bars {
    pub fn new(color: bool) -> Self {
        Self {
            screen: MultiProgress::new(),
            stage: None,
            fetch: None,
            layers: HashMap::new(),
            color,
            counted: None,
        }
    }

    fn stage(&mut self, stage: Stage) {
        let spinner = self.stage.get_or_insert_with(|| {
            let spinner = self.screen.add(ProgressBar::new_spinner());
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        spinner.set_message(stage_text(stage));
        if stage > Stage::Import {
            self.clear_fetch();
        }
    }

    fn plan(&mut self, state: &State) {
        if state.bytes_total == 0 {
            return;
        }
        let fetch = self.screen.add(ProgressBar::new(state.bytes_total));
        let bar = if self.color { "{bar:30.cyan/blue}" } else { "{bar:30}" };
        fetch.set_style(style(&format!(
            "{bar} {{binary_bytes}}/{{binary_total_bytes}} {{binary_bytes_per_sec}} eta {{eta}}  {{msg}}"
        )));
        self.fetch = Some(fetch);
        self.counts(state, true);
    }

    fn layer(&mut self, diff_id: DiffId, size: u64) {
        self.layers.entry(diff_id).or_insert_with(|| {
            let bar = self.screen.add(ProgressBar::new(size));
            bar.set_style(style("  {prefix} {bar:24} {binary_bytes}/{binary_total_bytes}"));
            bar.set_prefix(short(&diff_id));
            bar
        });
    }

    fn counts(&mut self, state: &State, now: bool) {
        let Some(fetch) = &self.fetch else { return };
        if !now && self.counted.is_some_and(|t| t.elapsed() < REDRAW) {
            return;
        }
        self.counted = Some(Instant::now());
        fetch.set_position(state.bytes);
        let (files, new) = (HumanCount(state.files()), HumanCount(state.stored));
        fetch.set_message(format!(
            "layers {}/{}, {files} files ({new} new)",
            state.layers_here(),
            state.layers
        ));
        for layer in &state.running {
            if let Some(bar) = self.layers.get(&layer.diff_id) {
                bar.set_position(layer.bytes);
            }
        }
    }

    fn clear_fetch(&mut self) {
        for (_, bar) in self.layers.drain() {
            bar.finish_and_clear();
        }
        if let Some(bar) = self.fetch.take() {
            bar.finish_and_clear();
        }
    }
}

impl Renderer for Bars {
    fn event(&mut self, state: &State, event: &Event) {
        match event {
            Event::Stage(stage) => self.stage(*stage),
            Event::Plan { .. } => self.plan(state),
            Event::LayerStarted { diff_id, size } => self.layer(*diff_id, *size),
            Event::LayerBytes { .. } | Event::Objects { .. } => self.counts(state, false),
            Event::LayerDone { diff_id } => {
                if let Some(bar) = self.layers.remove(diff_id) {
                    bar.finish_and_clear();
                }
                self.counts(state, true);
            }
            Event::Retry { url, why } => self.line(&format!("trying again: {url}: {why}")),
            Event::Warning(text) => self.line(&format!("warning: {text}")),
            Event::Note(text) => self.line(&format!("note: {text}")),
            _ => {}
        }
    }

    fn line(&mut self, text: &str) {
        let text = printable(text);
        // Standard error is gone: there is nobody to tell.
        self.screen.suspend(|| drop(writeln!(io::stderr(), "{text}")));
    }

    fn finish(&mut self, _done: bool) {
        self.clear_fetch();
        if let Some(spinner) = self.stage.take() {
            spinner.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [
            "{bar:30.cyan/blue} {binary_bytes_per_sec} eta {eta}  {msg}",
            "  {prefix} {bar:24}",
        ] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
