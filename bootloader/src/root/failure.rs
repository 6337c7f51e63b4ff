//! After a refusal, or any other boot that failed: whether a reboot lets another entry boot.
//!
//! The boot loader takes one try off an entry before it boots it and says so in the EFI variable `LoaderBootCountPath`
//! (systemd-boot). Where it does, a reboot is the way on: the next try, or the next entry once all are used up. Where
//! it does not, or where this entry is booted though its tries were used up before, nothing else can boot, and a
//! reboot would only hide from the console what is wrong; so a machine with one deployment does not loop. How many
//! tries there were at first is not known here: above the usual three, that another deployment is there says that a
//! reboot may lead to it.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use cfs_bootloader::counter::CountedName;
use cfs_bootloader::variables;
use cfs_core::boot::Tries;
use cfs_core::deployment::Layout;
use cfs_core::ids::DeploymentId;
use cfs_core::sys::fs::{Fs, RealFs};
use cfs_core::sys::{fs, power, process};

use crate::args::Options;
use crate::console::Console;

/// The entry that was started, as long as it is counted.
const VARIABLE: &str = "LoaderBootCountPath";
/// So that a person can read what is wrong.
const PAUSE: Duration = Duration::from_secs(10);
/// What `cfs-update` gives a new entry, unless it is set otherwise.
const USUAL_TRIES: u32 = 3;
/// What it can be set to at most.
const MOST_TRIES: u32 = 99;

/// What the boot loader's counting allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Another try, or another entry.
    Reboot,
    /// Stay, with the reason on the console.
    Stay(&'static str),
}

/// How to reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reboot {
    /// Nothing runs that has to be stopped.
    AtOnce,
    /// Through the service manager, where it does as it is told.
    Orderly,
}

/// How long a kernel that panicked shows why.
const AFTER_PANIC: u32 = 10;
/// systemd reads it when it starts in the new root. Later versions than 255 call it `CrashAction=reboot`, and know
/// this, too.
const MANAGER: &str = "[Manager]\nCrashReboot=yes\n";

/// Where the tries of this boot are counted, a kernel that panics and a systemd that crashes later on are to restart
/// the machine: by themselves they stand still for ever, and the tries never run out. What the kernel command line
/// says of panics stays. What cannot be done here is no reason not to boot.
pub fn prepare(options: &Options, console: &Console) {
    if counted_path(&options.efivars).is_none_or(|path| way(Some(&path), true) != Way::Reboot) {
        return;
    }
    let folder = options.run.join("systemd/system.conf.d");
    let manager = fs::create_dir_all(&RealFs, &folder, 0o755)
        .and_then(|()| RealFs.create(&folder.join("50-cfs-update.conf"), 0o644, &mut MANAGER.as_bytes()));
    let kernel = power::restart_after_panic(&options.sysctl, AFTER_PANIC);
    for problem in manager.err().into_iter().chain(kernel.err()) {
        console.note(&problem.to_string());
    }
}

/// The path of this boot's entry, where the boot loader counts its tries.
fn counted_path(efivars: &Path) -> Option<String> {
    variables::read(efivars, VARIABLE)
}

/// Reboots, or returns at once.
pub fn act(efivars: &Path, sysroot: &Path, reboot: Reboot, console: &Console) {
    match way(counted_path(efivars).as_deref(), has_others(sysroot)) {
        Way::Stay(why) => console.problem(&format!("no reboot: {why}")),
        Way::Reboot => {
            console.problem(
                "rebooting in 10 seconds: the boot loader goes on to another entry when the tries are used up",
            );
            std::thread::sleep(PAUSE);
            if reboot == Reboot::Orderly && orderly() {
                return;
            }
            if let Err(e) = power::reboot() {
                console.problem(&e.to_string());
            }
        }
    }
}

/// Whether the service manager has taken the order.
fn orderly() -> bool {
    let order = ["--no-block".into(), "reboot".into()];
    process::run(OsStr::new("systemctl"), &order, b"").is_ok_and(|output| output.success())
}

/// Whether there is more than one deployment; `false` where it cannot be seen.
fn has_others(sysroot: &Path) -> bool {
    let names = fs::names(&Layout::new(sysroot).deployments()).unwrap_or_default();
    let deployments = names
        .iter()
        .filter(|name| name.to_str().is_some_and(|name| name.parse::<DeploymentId>().is_ok()));
    deployments.count() > 1
}

/// By the path of the entry as it was renamed for this boot, and whether there are other deployments.
pub fn way(path: Option<&str>, others: bool) -> Way {
    let Some(path) = path else {
        return Way::Stay("the boot loader does not count the tries of this entry");
    };
    let name = path.rsplit(['\\', '/']).next().unwrap_or(path);
    match CountedName::parse(name).tries() {
        Tries::Left { .. } => Way::Reboot,
        Tries::Bad { done } if done <= USUAL_TRIES || others && done <= MOST_TRIES => Way::Reboot,
        Tries::Bad { .. } => {
            Way::Stay("the tries of this entry were used up before, and there was no other one to boot")
        }
        Tries::Good => Way::Stay("the boot loader does not count the tries of this entry"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_entry_reboots_until_its_tries_were_used_up_before() {
        let of = |counter: &str, others| {
            let entry = format!("\\loader\\entries\\cfs-000007-0123456789ab{counter}.conf");
            way(Some(&entry), others)
        };
        let way = |counter: &str| of(counter, false);
        assert_eq!(way("+02-01"), Way::Reboot);
        assert_eq!(way("+01-02"), Way::Reboot);
        // The last try: the boot loader now prefers every other entry.
        assert_eq!(way("+00-03"), Way::Reboot);
        // It had none left and was taken all the same.
        assert!(matches!(way("+00-04"), Way::Stay(_)));
        assert!(matches!(way("+0-4"), Way::Stay(_)));
        assert!(matches!(way(""), Way::Stay(_)));
        // The last of six tries, which only another deployment tells from one too many.
        assert_eq!(of("+00-06", true), Way::Reboot);
        assert!(matches!(of("+00-06", false), Way::Stay(_)));
        assert!(matches!(of("", true), Way::Stay(_)));
    }

    #[test]
    fn without_a_counting_boot_loader_the_message_stays_on_the_console() {
        assert!(matches!(way(None, true), Way::Stay(_)));
    }
}
