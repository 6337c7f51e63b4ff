//! `man [DIR]`.

use std::path::PathBuf;

use anyhow::Result;
use cfs_core::Error;
use cfs_core::sys::fs::{self, RealFs};
use clap::CommandFactory;

use crate::args::Args;
use crate::output;

/// Write the manual pages
///
/// Without DIR, the page of cfs-update itself is printed; with it, a page for each command is written there.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// Folder for the pages; made where missing
    dir: Option<PathBuf>,
}

impl Man {
    pub fn run(self) -> Result<()> {
        let pages = pages()?;
        let Some(dir) = self.dir else {
            return Ok(output::write(&pages[0].1)?);
        };
        fs::create_dir_all(&RealFs, &dir, 0o755)?;
        for (name, page) in pages {
            fs::replace(&RealFs, &dir.join(name), 0o644, &page)?;
        }
        Ok(())
    }
}

/// File name and content of each page, the program's own first.
fn pages() -> Result<Vec<(String, Vec<u8>)>> {
    let mut command = Args::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add(&command, &mut pages)?;
    Ok(pages)
}

fn add(command: &clap::Command, pages: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let man = clap_mangen::Man::new(command.clone());
    let name = man.get_filename();
    let mut page = Vec::new();
    man.render(&mut page)
        .map_err(|e| Error::io("render the page", &name, e))?;
    pages.push((name, page));
    for sub in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        add(sub, pages)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_of_its_own_name() {
        let pages = pages().unwrap();
        assert_eq!(pages[0].0, "cfs-update.1");
        let page = pages
            .iter()
            .find(|(name, _)| name == "cfs-update-completions.1")
            .unwrap();
        assert!(String::from_utf8_lossy(&page.1).contains("cfs\\-update"));
    }
}
