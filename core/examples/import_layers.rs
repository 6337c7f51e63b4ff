//! Imports layers from files into a repository, for measuring: `import_layers REPOSITORY sha256:DIFF_ID=FILE…`
//!
//! `strace -fc`, `perf stat` and `/usr/bin/time -v` around it see the import alone, without a registry.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cfs_core::ids::{Algorithm, DiffId};
use cfs_core::monitor::Quiet;
use cfs_core::store::Store;
use cfs_core::store::import::{self, Compression, LayerSource};
use cfs_core::{Error, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let repository = arguments.next().ok_or_else(|| Error::Usage("no repository".into()))?;
    let sources: Vec<_> = arguments.map(|argument| source(&argument)).collect::<Result<_>>()?;
    let store = Store::open_or_create(Path::new(&repository), Algorithm::Sha256)?;
    let start = Instant::now();
    import::layers(&store, sources, 0, &Quiet)?;
    let imported = start.elapsed();
    store.publish()?;
    println!("imported in {imported:.2?}, durable after {:.2?}", start.elapsed());
    Ok(())
}

fn source(argument: &str) -> Result<LayerSource<'static>> {
    let (diff_id, path) = argument.split_once('=').ok_or_else(|| Error::Usage(argument.into()))?;
    let (diff_id, path): (DiffId, PathBuf) = (diff_id.parse()?, path.into());
    let size = std::fs::metadata(&path)
        .map_err(|e| Error::io("look at", &path, e))?
        .len();
    let compression = match path.extension().and_then(|e| e.to_str()) {
        Some("gz") => Compression::Gzip,
        Some("zst") => Compression::Zstd,
        _ => Compression::None,
    };
    let open = move || {
        let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        Ok(Box::new(std::io::BufReader::with_capacity(1 << 16, file)) as Box<_>)
    };
    Ok(LayerSource {
        partial: None,
        remote: None,
        diff_id,
        size,
        compression,
        open: Box::new(open),
    })
}
