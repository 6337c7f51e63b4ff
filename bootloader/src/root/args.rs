//! The program's own arguments. Few and fixed, so they are read here; the initramfs carries no parser for them.

use std::ffi::OsString;
use std::path::PathBuf;

/// What `--help` prints.
pub const USAGE: &str = "\
Usage: cfs-update-root [OPTIONS]

Replaces the physical root at SYSROOT by the root of the deployment that the kernel command line names.
Runs in the initramfs, as root, once the physical root is mounted.

  --sysroot DIR      where the physical root is mounted [/sysroot]
  --target DIR       where the new root goes [in place of SYSROOT]; /run/nextroot for a soft reboot
  --cmdline FILE     the kernel command line [/proc/cmdline]
  --config FILE      [/usr/lib/composefs/setup-root-conf.toml]
  --keys DIR         folder with trusted.d and revoked.d; may repeat [/etc/cfs-update/keys, /usr/lib/cfs-update/keys]
  --run DIR          for the staging place and systemd's note about the device [/run]
  --kmsg FILE        where refusals are written beside standard error [/dev/kmsg]
  --efivars DIR      [/sys/firmware/efi/efivars]
  --sysctl DIR       [/proc/sys]
  --dev DIR          [/dev]
  --on-failure WHAT  exit, or reboot: where the boot loader counts this entry's tries and one is used up by it [exit]
  --boot-failed      mount nothing: the boot failed after this program; reboot where --on-failure reboot would
  --if-root-is-missing  only where the disk that root= names is not there
  --dry-run          check everything, mount nothing, print what would be done
  --help, --version
";

/// What to do after a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Say so and exit; whoever started us decides.
    Exit,
    /// Reboot where that lets another entry boot.
    Reboot,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub sysroot: PathBuf,
    pub target: PathBuf,
    pub cmdline: PathBuf,
    pub config: PathBuf,
    pub keys: Vec<PathBuf>,
    pub run: PathBuf,
    pub kmsg: PathBuf,
    pub efivars: PathBuf,
    pub sysctl: PathBuf,
    pub dev: PathBuf,
    pub if_root_is_missing: bool,
    pub on_failure: OnFailure,
    pub dry_run: bool,
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Run(Options),
    /// The boot failed elsewhere.
    BootFailed(Options),
    Say(String),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sysroot: "/sysroot".into(),
            target: PathBuf::new(),
            cmdline: "/proc/cmdline".into(),
            config: "/usr/lib/composefs/setup-root-conf.toml".into(),
            keys: Vec::new(),
            run: "/run".into(),
            kmsg: "/dev/kmsg".into(),
            efivars: "/sys/firmware/efi/efivars".into(),
            sysctl: "/proc/sys".into(),
            dev: "/dev".into(),
            if_root_is_missing: false,
            on_failure: OnFailure::Exit,
            dry_run: false,
        }
    }
}

impl Options {
    /// Takes an argument that has a value; `None` where there is no such one.
    fn set(&mut self, name: &str, value: OsString) -> Option<Result<(), String>> {
        match name {
            "--sysroot" => self.sysroot = value.into(),
            "--target" => self.target = value.into(),
            "--cmdline" => self.cmdline = value.into(),
            "--config" => self.config = value.into(),
            "--keys" => self.keys.push(value.into()),
            "--run" => self.run = value.into(),
            "--kmsg" => self.kmsg = value.into(),
            "--efivars" => self.efivars = value.into(),
            "--sysctl" => self.sysctl = value.into(),
            "--dev" => self.dev = value.into(),
            "--on-failure" => match value.to_str() {
                Some("exit") => self.on_failure = OnFailure::Exit,
                Some("reboot") => self.on_failure = OnFailure::Reboot,
                _ => return Some(Err("--on-failure is exit or reboot".into())),
            },
            _ => return None,
        }
        Some(Ok(()))
    }
}

/// Reads the arguments; the text of an error says which one is wrong.
pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Action, String> {
    let mut options = Options::default();
    let mut boot_failed = false;
    while let Some(argument) = arguments.next() {
        let name = argument.to_str().unwrap_or_default();
        match name {
            "--help" | "-h" => return Ok(Action::Say(USAGE.into())),
            "--version" | "-V" => {
                let version = concat!("cfs-update-root ", env!("CARGO_PKG_VERSION"), "\n");
                return Ok(Action::Say(version.into()));
            }
            "--dry-run" => options.dry_run = true,
            "--boot-failed" => boot_failed = true,
            "--if-root-is-missing" => options.if_root_is_missing = true,
            _ => {
                let value = arguments.next();
                let missing = value.is_none();
                match options.set(name, value.unwrap_or_default()) {
                    None => return Err(format!("{} is no argument of this program", argument.display())),
                    Some(_) if missing => return Err(format!("{name} wants a value")),
                    Some(taken) => taken?,
                }
            }
        }
    }
    if options.keys.is_empty() {
        options.keys = vec!["/etc/cfs-update/keys".into(), "/usr/lib/cfs-update/keys".into()];
    }
    if options.target.as_os_str().is_empty() {
        options.target.clone_from(&options.sysroot);
    }
    match boot_failed {
        true => Ok(Action::BootFailed(options)),
        false => Ok(Action::Run(options)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Action, String> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn the_initramfs_needs_no_argument() {
        let Ok(Action::Run(options)) = read(&[]) else { panic!() };
        assert_eq!(options.sysroot, PathBuf::from("/sysroot"));
        assert_eq!(options.target, options.sysroot);
        assert_eq!(options.cmdline, PathBuf::from("/proc/cmdline"));
        assert_eq!(options.keys.len(), 2);
        assert_eq!(options.on_failure, OnFailure::Exit);
    }

    #[test]
    fn the_target_is_the_sysroot_unless_it_is_given() {
        let Ok(Action::Run(options)) = read(&["--sysroot", "/s", "--keys", "/k", "--on-failure", "reboot"]) else {
            panic!()
        };
        assert_eq!((options.target, options.keys), ("/s".into(), vec!["/k".into()]));
        assert_eq!(options.on_failure, OnFailure::Reboot);
        let Ok(Action::Run(options)) = read(&["--target", "/run/nextroot"]) else {
            panic!()
        };
        assert_eq!(options.sysroot, PathBuf::from("/sysroot"));
        assert_eq!(options.target, PathBuf::from("/run/nextroot"));
    }

    #[test]
    fn a_boot_that_failed_elsewhere_is_another_task() {
        let Ok(Action::BootFailed(options)) = read(&["--boot-failed", "--efivars", "/e"]) else {
            panic!()
        };
        assert_eq!(options.efivars, PathBuf::from("/e"));
    }

    #[test]
    fn a_wrong_argument_is_named() {
        assert!(read(&["--sysrot", "/s"]).unwrap_err().contains("--sysrot"));
        assert!(read(&["--sysroot"]).unwrap_err().contains("--sysroot"));
        assert!(read(&["--on-failure", "panic"]).unwrap_err().contains("exit or reboot"));
    }
}
