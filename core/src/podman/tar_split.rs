//! A layer's tar, put together again from what tar-split noted and the layer's files.
//!
//! JSON lines, compressed with gzip: of type 2 with bytes of the tar as they were (`payload`, base64), of type 1 with
//! the name and size of a file whose content comes there. Names may be anything: `folders.rs` finds the files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::folders::{Content, Folders, Place};
use crate::error::{Error, Result};
use crate::sys::fs;

/// A line holds a name, or the headers of one entry, which may be long.
const LINE_LIMIT: u64 = 64 << 20;

/// A part of a tar.
#[derive(Debug)]
pub enum Part {
    /// These bytes.
    Raw(Vec<u8>),
    /// All of this file.
    File {
        /// What it has in it; of this size when it was opened.
        content: Content,
        /// Its size in bytes.
        size: u64,
        /// For messages.
        name: String,
    },
}

/// Gives a tar's parts one by one.
pub struct Parts {
    lines: io::Take<BufReader<flate2::read::MultiGzDecoder<BufReader<File>>>>,
    folders: Folders,
    layer: String,
    line: Vec<u8>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: u8,
    name: Option<String>,
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    payload: Option<String>,
}

impl Parts {
    pub(super) fn open(path: &Path, places: Vec<Place>, layer: String) -> Result<Self> {
        let decoder = flate2::read::MultiGzDecoder::new(BufReader::new(fs::open_file(path)?));
        Ok(Self {
            lines: BufReader::with_capacity(64 << 10, decoder).take(LINE_LIMIT),
            folders: Folders::new(places),
            layer,
            line: Vec::new(),
        })
    }

    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Layer`] for a damaged list, or a file that is missing or of another size.
    pub fn part(&mut self) -> Result<Option<Part>> {
        while let Some(line) = self.line()? {
            match line.kind {
                2 => {
                    let bytes = STANDARD.decode(line.payload.unwrap_or_default());
                    let bytes = bytes.map_err(|e| self.damaged(e))?;
                    return Ok(Some(Part::Raw(bytes)));
                }
                1 if line.size > 0 => return self.file(&line).map(Some),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Goes on to the next file of a size that is `wanted`: its name and size; `None` at the end. No file is opened.
    ///
    /// # Errors
    /// [`Error::Layer`] for a damaged list.
    pub fn next_file(&mut self, wanted: &dyn Fn(u64) -> bool) -> Result<Option<(Vec<u8>, u64)>> {
        while let Some(line) = self.line()? {
            if line.kind == 1 && wanted(line.size) {
                return self.name(&line).map(|name| Some((name, line.size)));
            }
        }
        Ok(None)
    }

    fn line(&mut self) -> Result<Option<Line>> {
        self.line.clear();
        self.lines.set_limit(LINE_LIMIT);
        let read = self.lines.read_until(b'\n', &mut self.line);
        if read.map_err(|e| self.damaged(e))? == 0 {
            return Ok(None);
        }
        let line: Line = serde_json::from_slice(&self.line).map_err(|e| self.damaged(e))?;
        match line.kind {
            1 | 2 => Ok(Some(line)),
            other => Err(self.fault("its tar-split data", format!("has a line of type {other}"))),
        }
    }

    fn name(&self, line: &Line) -> Result<Vec<u8>> {
        match &line.name_raw {
            Some(raw) => STANDARD.decode(raw).map_err(|e| self.damaged(e)),
            None => Ok(line.name.clone().unwrap_or_default().into_bytes()),
        }
    }

    fn file(&mut self, line: &Line) -> Result<Part> {
        let name = self.name(line)?;
        let shown = String::from_utf8_lossy(&name).into_owned();
        let opened = self.folders.open(&name, line.size);
        let content = opened.map_err(|why| self.fault(&shown, why))?;
        Ok(Part::File {
            content,
            size: line.size,
            name: shown,
        })
    }

    fn damaged(&self, error: impl std::fmt::Display) -> Error {
        self.fault("its tar-split data", format!("damaged: {error}"))
    }

    fn fault(&self, entry: &str, why: String) -> Error {
        Error::Layer {
            layer: self.layer.clone(),
            entry: entry.into(),
            why,
        }
    }
}

/// The tar as a reader. Errors carry the library's own.
pub struct Tar {
    parts: Parts,
    raw: VecDeque<u8>,
    file: Option<(Content, u64, String)>,
    /// Bytes to pass over first.
    skip: u64,
}

impl Tar {
    /// From byte `from` on.
    pub fn new(parts: Parts, from: u64) -> Self {
        Self {
            parts,
            raw: VecDeque::new(),
            file: None,
            skip: from,
        }
    }

    fn some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.raw.is_empty() {
                return self.raw.read(buffer);
            }
            if let Some((file, left, name)) = &mut self.file {
                let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                if most > 0 {
                    let read = file.read(&mut buffer[..most])?;
                    if read == 0 {
                        let (entry, why) = (name.clone(), "became shorter while it was read".into());
                        return Err(io::Error::other(self.parts.fault(&entry, why)));
                    }
                    *left -= read as u64;
                    return Ok(read);
                }
            }
            self.file = None;
            match self.parts.part().map_err(io::Error::other)? {
                Some(Part::Raw(bytes)) => self.raw = bytes.into(),
                Some(Part::File { content, size, name }) => self.file = Some((content, size, name)),
                None => return Ok(0),
            }
        }
    }
}

impl Read for Tar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.skip > 0 {
            let mut passed = [0; 4096];
            let most = usize::try_from(self.skip).unwrap_or(usize::MAX).min(passed.len());
            match self.some(&mut passed[..most])? {
                0 => return Ok(0),
                read => self.skip -= read as u64,
            }
        }
        self.some(buffer)
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}
