//! A `$BOOT` without room.

use super::*;

/// Like the loader it holds, on a `$BOOT` without room for another kernel.
#[derive(Debug)]
pub(super) struct Tight(pub(super) Box<dyn Bootloader>);

impl Bootloader for Tight {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn caps(&self) -> Caps {
        self.0.caps()
    }
    fn boot_dir(&self) -> &Path {
        self.0.boot_dir()
    }
    fn entries(&self) -> Result<Entries> {
        self.0.entries()
    }
    fn check_writable(&self) -> Result<()> {
        self.0.check_writable()
    }
    fn room(&self, kernel: &KernelFiles) -> Result<Room> {
        let room = self.0.room(kernel)?;
        Ok(Room {
            free: if room.shared { room.free } else { 0 },
            ..room
        })
    }
    fn prepare(&self, new: &NewEntry) -> Result<PreparedEntry> {
        assert!(self.room(&new.kernel)?.free > 0, "room is asked for before");
        self.0.prepare(new)
    }
    fn publish(&self, staged: StagedEntry) -> Result<BootEntry> {
        self.0.publish(staged)
    }
    fn plan_removal(&self, ids: &[DeploymentId]) -> Result<Removal> {
        self.0.plan_removal(ids)
    }
    fn plan_cleanup(&self) -> Result<Removal> {
        self.0.plan_cleanup()
    }
    fn plan_sweep(&self, known: &[DeploymentId]) -> Result<Removal> {
        self.0.plan_sweep(known)
    }
    fn remove(&self, plan: &Removal) -> Result<()> {
        self.0.remove(plan)
    }
    fn mark(&self, entry: &BootEntry, mark: Mark) -> Result<String> {
        self.0.mark(entry, mark)
    }
    fn check(&self) -> Result<Vec<Finding>> {
        self.0.check()
    }
    fn programs(&self, architecture: &str) -> Vec<String> {
        self.0.programs(architecture)
    }
    fn install(&self, esp: &Path, architecture: &str, program: &[u8]) -> Result<Vec<String>> {
        self.0.install(esp, architecture, program)
    }
}
