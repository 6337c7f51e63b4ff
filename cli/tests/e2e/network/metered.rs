//! Connections whose bytes cost money, as NetworkManager tells it on the bus.

use super::*;

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path=PATH</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>
"#;

/// Says what is in a file.
const NETWORK_MANAGER: &str = r#"
import sys, dbus, dbus.bus, dbus.service, dbus.mainloop.glib
from gi.repository import GLib
dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.bus.BusConnection(sys.argv[1])
name = dbus.service.BusName("org.freedesktop.NetworkManager", bus)
class Manager(dbus.service.Object):
    @dbus.service.method("org.freedesktop.DBus.Properties", in_signature="ss", out_signature="v")
    def Get(self, interface, name):
        assert (interface, name) == ("org.freedesktop.NetworkManager", "Metered")
        return dbus.UInt32(int(open(sys.argv[2]).read()))
manager = Manager(bus, "/org/freedesktop/NetworkManager")
print("ready", flush=True)
GLib.MainLoop().run()
"#;

/// A message bus of our own with a NetworkManager on it.
struct Bus {
    /// The daemon, and the manager once it runs.
    processes: Vec<Child>,
    address: String,
    metered: PathBuf,
}

impl Bus {
    fn start(dir: &Path) -> Self {
        let (socket, config, metered) = (dir.join("bus"), dir.join("bus.conf"), dir.join("metered"));
        fs::write(&config, BUS.replace("PATH", socket.to_str().unwrap())).unwrap();
        fs::write(&metered, "0").unwrap();
        let missing = "'make install-deps' installs what the tests need";
        let address = format!("unix:path={}", socket.display());
        let mut bus = Self {
            processes: Vec::new(),
            address,
            metered,
        };
        let daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .arg("--nofork")
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("dbus-daemon: {e}; {missing}"));
        bus.processes.push(daemon);
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < Duration::from_secs(20), "no bus");
            thread::sleep(Duration::from_millis(10));
        }
        let mut manager = Command::new("/usr/bin/python3")
            .args(["-c", NETWORK_MANAGER, &bus.address])
            .arg(&bus.metered)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("python3: {e}; {missing}"));
        let mut line = String::new();
        let mut said = BufReader::new(manager.stdout.take().unwrap());
        bus.processes.push(manager);
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "python3-dbus and python3-gi; {missing}");
        bus
    }

    /// Ends the one that was started last.
    fn end(&mut self) {
        if let Some(mut child) = self.processes.pop() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn set(&self, value: u32) {
        fs::write(&self.metered, value.to_string()).unwrap();
    }

    /// Runs the program with this as the system's bus.
    fn run(&self, cfs: &Cfs, args: &[&str]) -> Ran {
        let mut command = cfs.command(args);
        Ran::from(command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.address).output().unwrap())
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        while !self.processes.is_empty() {
            self.end();
        }
    }
}

#[test]
fn automatic_updates_wait_on_a_metered_connection_and_nobody_else_does() {
    let registry = Registry::start();
    let reference = image(1, 20_000).0.push(&registry, "os", "stable");
    let dir = scratch();
    let (cfs, bus) = (Cfs::new(dir.path()), Bus::start(dir.path()));
    bus.set(3);
    let ran = bus.run(&cfs, &["switch", &reference]).expect(0);
    assert!(
        ran.stderr
            .contains("the connection is metered; it is used all the same"),
        "{}",
        ran.stderr
    );
    let nothing = bus.run(&cfs, &["auto", "run"]).expect(77);
    assert!(
        !nothing.stderr.contains("metered"),
        "there is nothing that could wait: {}",
        nothing.stderr
    );

    image(2, 20_000).0.push(&registry, "os", "stable");
    for metered in [1, 3] {
        bus.set(metered);
        let before = registry.requests().len();
        let ran = bus.run(&cfs, &["auto", "run"]).expect(77);
        assert!(
            ran.stderr.contains("metered") && ran.stderr.contains("os:stable"),
            "{}",
            ran.stderr
        );
        assert!(!ran.stderr.contains("error"), "{}", ran.stderr);
        assert_eq!(registry.requests().len(), before + 1, "one request tells");
        assert_eq!(cfs.deployments().len(), 1);
        let status = bus.run(&cfs, &["auto", "status", "--json"]).expect(0).json();
        assert_eq!(
            status,
            serde_json::json!({"enabled": true, "apply": false, "downloadOnly": false, "metered": "wait", "connection": "metered",
                "waits": true})
        );
        let told = bus.run(&cfs, &["auto", "status"]).expect(0).stdout;
        assert!(told.contains("The connection is metered"), "{told}");
    }
    assert!(
        bus.run(&cfs, &["upgrade", "--check"])
            .expect(0)
            .stdout
            .contains("available")
    );

    // Where the administrator says so, and where it is not metered.
    let config = dir.path().join("config");
    fs::create_dir_all(config.join("etc/cfs-update")).unwrap();
    let file = config.join("etc/cfs-update/config.toml");
    fs::write(&file, "[auto]\nmetered = \"allow\"\n").unwrap();
    let with = ["--config-root", config.to_str().unwrap()];
    let status = bus.run(&cfs, &[&with[..], &["auto", "status", "--json"]].concat());
    assert_eq!(status.expect(0).json()["waits"], false);
    bus.run(&cfs, &[&with[..], &["auto", "run"]].concat()).expect(0);
    assert_eq!(cfs.deployments().len(), 2);
    for (version, metered) in [(3, 0), (4, 2), (5, 4)] {
        image(version, 20_000).0.push(&registry, "os", "stable");
        bus.set(metered);
        let ran = bus.run(&cfs, &["auto", "run"]).expect(0);
        assert!(!ran.stderr.contains("metered"), "{}", ran.stderr);
    }
}

#[test]
fn automatic_updates_ask_whether_the_connection_is_metered_before_they_have_the_lock() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    cfs.run(["switch", &image(1, 3000).0.layout(&dir.path().join("oci"), "os")])
        .expect(0);
    let (lock, said) = (cfs.sysroot().join("state/cfs-update/lock"), dir.path().join("said"));
    let (script, bin) = (dir.path().join("script"), dir.path().join("bin"));
    let (lock, log) = (lock.display(), said.display());
    let look = format!("flock --nonblock {lock} echo free >> {log} || echo held >> {log}");
    fs::write(&script, format!("#!/bin/sh\n{look}\necho v u 4\n")).unwrap();
    // Not by ourselves: a child that another test starts meanwhile would hold it open for writing.
    tool(
        "install",
        [
            "-D",
            "-m",
            "755",
            script.to_str().unwrap(),
            bin.join("busctl").to_str().unwrap(),
        ],
    );
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let ran = Ran::from(cfs.command(["auto", "run"]).env("PATH", path).output().unwrap());
    ran.expect(77);
    assert_eq!(fs::read_to_string(&said).unwrap(), "free\n");
}

#[test]
fn without_networkmanager_or_without_a_bus_nothing_is_metered() {
    let registry = Registry::start();
    let reference = image(1, 20_000).0.push(&registry, "os", "stable");
    let dir = scratch();
    let (cfs, mut bus) = (Cfs::new(dir.path()), Bus::start(dir.path()));
    cfs.run(["switch", &reference]).expect(0);
    bus.set(1);
    bus.end();
    let unknown = |ran: Ran| assert_eq!(ran.expect(0).json()["connection"], "unknown");
    unknown(bus.run(&cfs, &["auto", "status", "--json"]));
    image(2, 20_000).0.push(&registry, "os", "stable");
    bus.run(&cfs, &["auto", "run"]).expect(0);
    bus.end();
    unknown(bus.run(&cfs, &["auto", "status", "--json"]));
    let mut command = cfs.command(["auto", "status", "--json"]);
    unknown(Ran::from(command.env("PATH", dir.path()).output().unwrap()));
}
