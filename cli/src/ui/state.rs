//! What the events add up to; no terminal, no clock.

use cfs_core::ids::DiffId;
use cfs_core::monitor::{Event, Stage};

/// Totals so far.
#[derive(Debug, Default)]
pub struct State {
    /// The stage that runs.
    pub stage: Option<Stage>,
    /// Layers of the image.
    pub layers: usize,
    /// Of those, layers that were here before.
    pub cached: usize,
    /// Compressed bytes to fetch; 0 = not known yet.
    pub bytes_total: u64,
    /// Compressed bytes fetched.
    pub bytes: u64,
    /// Layers that were begun, in that order.
    pub running: Vec<Layer>,
    /// Layers done in this run.
    pub done: usize,
    /// Files whose object was written.
    pub stored: u64,
    /// Files whose object was here.
    pub shared: u64,
}

/// One layer that is being imported, or was in this run.
#[derive(Debug)]
pub struct Layer {
    pub diff_id: DiffId,
    /// Compressed bytes.
    pub size: u64,
    /// Compressed bytes fetched.
    pub bytes: u64,
    pub done: bool,
}

impl State {
    /// Takes one event in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Stage(stage) => self.stage = Some(*stage),
            Event::Plan { layers, cached, bytes } => {
                (self.layers, self.cached, self.bytes_total) = (*layers, *cached, *bytes);
            }
            Event::LayerStarted { diff_id, size } => self.start(*diff_id, *size),
            Event::LayerBytes { diff_id, bytes } => {
                self.bytes += bytes;
                if let Some(layer) = self.layer(diff_id) {
                    layer.bytes += bytes;
                }
            }
            Event::Objects { stored, shared } => {
                self.stored += stored;
                self.shared += shared;
            }
            Event::LayerDone { diff_id } => {
                self.done += 1;
                if let Some(layer) = self.layer(diff_id) {
                    layer.done = true;
                }
            }
            _ => {}
        }
    }

    /// Files seen so far.
    pub fn files(&self) -> u64 {
        self.stored + self.shared
    }

    /// Layers that are here, from before or from this run.
    pub fn layers_here(&self) -> usize {
        self.cached + self.done
    }

    /// A layer that is begun a second time (after a retry) starts over.
    fn start(&mut self, diff_id: DiffId, size: u64) {
        let layer = Layer {
            diff_id,
            size,
            bytes: 0,
            done: false,
        };
        match self.running.iter().position(|l| l.diff_id == diff_id) {
            Some(at) => {
                self.bytes = self.bytes.saturating_sub(self.running[at].bytes);
                self.running[at] = layer;
            }
            None => self.running.push(layer),
        }
    }

    fn layer(&mut self, diff_id: &DiffId) -> Option<&mut Layer> {
        self.running.iter_mut().find(|l| l.diff_id == *diff_id)
    }
}

/// What a stage does, for people.
pub fn stage_text(stage: Stage) -> &'static str {
    match stage {
        Stage::Resolve => "asking for the image",
        Stage::Export => "copying layers",
        Stage::Import => "importing layers",
        Stage::Sync => "writing the store to disk",
        Stage::Image => "generating and signing the image",
        Stage::Deploy => "preparing /etc, /var and the record",
        Stage::Boot => "writing kernel and boot entry",
        Stage::Clean => "removing what is no longer needed",
    }
}

/// The beginning of a layer's digest: enough to tell layers apart.
pub fn short(diff_id: &DiffId) -> String {
    diff_id.to_hex()[..12].to_owned()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn layer(n: u8) -> DiffId {
        DiffId::from_hash([n; 32])
    }

    pub fn run(events: &[Event]) -> State {
        let mut state = State::default();
        events.iter().for_each(|e| state.apply(e));
        state
    }

    #[test]
    fn increments_add_up_and_a_restarted_layer_counts_once() {
        let state = run(&[
            Event::Plan {
                layers: 3,
                cached: 1,
                bytes: 300,
            },
            Event::LayerStarted {
                diff_id: layer(1),
                size: 100,
            },
            Event::LayerBytes {
                diff_id: layer(1),
                bytes: 60,
            },
            Event::LayerStarted {
                diff_id: layer(1),
                size: 100,
            },
            Event::LayerBytes {
                diff_id: layer(1),
                bytes: 100,
            },
            Event::Objects { stored: 2, shared: 5 },
            Event::LayerDone { diff_id: layer(1) },
        ]);
        assert_eq!((state.bytes, state.bytes_total), (100, 300));
        assert_eq!((state.layers_here(), state.layers), (2, 3));
        assert_eq!((state.files(), state.stored), (7, 2));
    }
}
