"""The machine with UEFI firmware and systemd-boot, as the scenarios `boot`, `cuts` and `install` drive it.

It is installed once, from a guest without firmware, on an empty disk; each scenario goes on with a copy of that disk.
"""

import re
import subprocess
import threading
import time

import direct
import disk
import image
from qemu import Disk
from report import expect

# Slow under emulation and of no use here.
MASKED = ("systemd-hwdb-update ldconfig systemd-journal-catalog-update systemd-networkd-wait-online systemd-firstboot "
          "systemd-boot-random-seed systemd-boot-update e2scrub_reap systemd-tpm2-setup systemd-tpm2-setup-early "
          "systemd-pcrmachine systemd-pcrphase systemd-pcrphase-sysinit systemd-update-utmp systemd-journal-flush "
          "systemd-random-seed systemd-user-sessions systemd-binfmt systemd-update-done dracut-shutdown kmod-static-nodes "
          "modprobe@configfs modprobe@drm modprobe@efi_pstore modprobe@fuse getty@tty1 serial-getty@ttyS0")
MASKED_UNITS = ("e2scrub_all.timer fstrim.timer systemd-tmpfiles-clean.timer dpkg-db-backup.timer dev-hugepages.mount "
                "dev-mqueue.mount run-lock.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount "
                "sys-fs-fuse-connections.mount")
AGENT_UNIT = """[Unit]
DefaultDependencies=no
After=systemd-tmpfiles-setup.service local-fs.target
Conflicts=shutdown.target
Before=shutdown.target
[Service]
ExecStart=/bin/sh /usr/lib/cfs-test/agent.sh
StandardOutput=null
StandardError=journal+console
"""
KARGS = "--karg console=ttyS0,115200 --karg panic=1 --karg loglevel=5 --karg audit=0 --karg mitigations=off --karg 8250.nr_uarts=1"
UNHEALTHY = "#!/bin/sh\necho 'this version is not well' >&2\nexit 1\n"
# Well unless the machine says otherwise; a machine that does can be told to get well.
IF_TOLD = """#!/bin/sh
! grep -qw cfs.unwell /proc/cmdline || [ -e /var/lib/cfs-test/well ] || { echo 'not well' >&2; exit 1; }
"""
SETTINGS = "[health]\nattempts = 2\npause = 1\n"
# What the installed machine follows.
FOLLOWED = "os:latest"
INSTALLED = threading.Lock()


def test_files():
    """What makes the image quick to boot and able to be driven; nothing that the program has to do with."""
    units = "usr/lib/systemd/system/"
    files = {units + "cfs-test-agent.service": AGENT_UNIT,
             units + "sysinit.target.wants/cfs-test-agent.service": ("->", "../cfs-test-agent.service"),
             "usr/lib/cfs-update/health.d/40-if-told.sh!": IF_TOLD,
             "usr/lib/cfs-update/config.toml.d/50-test.toml": SETTINGS,
             "etc/machine-id": "5d3f4a1c9b7e4f0a8c2d6e1f3a5b7c9d\n",
             "etc/removed-later.conf": "from the image\n",
             "var/lib/cfs-test/from-image": "from the first image\n"}
    files |= {f"etc/systemd/system/{unit}.service": ("->", "/dev/null") for unit in MASKED.split()}
    files |= {f"etc/systemd/system/{unit}": ("->", "/dev/null") for unit in MASKED_UNITS.split()}
    return files


class Images:
    """Versions of the machine, each the same layers and a small one of its own; `name` is the scenario's."""

    def __init__(self, work, name):
        self.machine = direct.Machine(work, name)
        self.layout = self.machine.layout
        self.layers = [*self.machine.layers, self.layout.put_layer(image.tar_layer(test_files()))]
        self.modules = "usr/lib/modules/" + next((self.machine.tree / "usr/lib/modules").iterdir()).name
        self.count = 1
        self.version("good")

    def version(self, name, files=()):
        """A new image, newer than all before."""
        self.count += 1
        content = {"usr/share/cfs-test/version": f"{name}\n", "etc/issue": f"version {name}\n", **dict(files)}
        return self.layout.tag(name, [*self.layers, image.tar_layer(content)], name, image.created(self.count))


def insecure(registry):
    """A script: this registry has no TLS."""
    host = registry.name("").split("/")[0]
    return f"""mkdir -p /etc/containers
        printf '[[registry]]\\nlocation = "{host}"\\ninsecure = true\\n' >/etc/containers/registries.conf
        """


def fill(folder):
    """A script: not a byte is left on this file system; `fill` is the file to remove."""
    return f"""dd if=/dev/zero of={folder}/fill bs=1M 2>/dev/null
        dd if=/dev/zero bs=512 >>{folder}/fill 2>/dev/null
        sync {folder}/fill"""


def installed(part, work, registry):
    """The disk of a machine that was installed and not booted yet; made by the first who asks."""
    with INSTALLED:
        path, mark = work / "installed.img", work / "installed.done"
        if mark.exists() and mark.read_text() == str(part.report.started):
            return path
        with part.step("install to-disk on an empty disk; a second one wants --wipe", vital=True) as note:
            mark.unlink(missing_ok=True)
            images, drive = Images(work, "installer"), Disk(disk.blank(path, 3000))
            registry.push(images.layout, "good", FOLLOWED)
            with images.machine.guest(work / "installer", [drive]) as guest:
                guest.start()
                note(f"{guest.wait_ready():.0f} s to the agent")
                _install(guest, registry, note)
            mark.write_text(str(part.report.started))
        return path


def copy_disk(source, to):
    """A copy, as sparse as the source."""
    to.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "--sparse=always", source, to], check=True)
    return Disk(to)


def _install(guest, registry, note):
    """A whole system on an empty disk, and what `install` refuses."""
    guest.check("modprobe -a erofs overlay vfat nls_ascii nls_cp437 || :;" + insecure(registry))
    command = f"cfs-update install to-disk /dev/vdb {registry.name(FOLLOWED)} --esp-size 300M {KARGS}"
    began = time.monotonic()
    guest.check(command, timeout=600)
    note(f"{time.monotonic() - began:.0f} s")
    status, output = guest.run(command)
    expect(status != 0 and "--wipe" in output, f"the second install ended with {status}: {output[-1000:]}")
    note(guest.check("sfdisk -l -o Device,Size,Type /dev/vdb | tail -n 2 | tr -s ' ' | tr '\\n' ','").strip(","))
    # The menu waits three seconds otherwise.
    guest.check("""mkdir -p /run/esp && mount /dev/vdb1 /run/esp
        echo timeout 0 >/run/esp/loader/loader.conf && umount /run/esp && sync""")


class Running:
    """What can be asked of a running machine; `follows`: the name in the registry that new versions get."""

    def __init__(self, part, guest, registry, images, follows=FOLLOWED):
        self.part, self.guest, self.registry, self.images, self.follows = part, guest, registry, images, follows

    def running(self):
        """After a step that went wrong the machine is where it was left; the next one wants it up."""
        if self.guest.process is None:
            self.guest.start()
            self.guest.wait_ready()

    def booted(self):
        """Id of the deployment whose image is /, and the version that is seen."""
        found = re.search(r"composefs:([0-9a-f]{64})", self.guest.check("grep ' / ' /proc/mounts"))
        expect(found, "/ is no deployment")
        return found.group(1), self.guest.check("cat /usr/share/cfs-test/version").strip()

    def settled(self, timeout=300):
        """Waits until systemd has started everything; nothing has failed."""
        status, output = self.guest.run("systemctl is-system-running --wait; systemctl --failed --no-legend --plain",
                                        timeout)
        expect(output.split()[0] == "running", f"{status} {output}")

    def entries(self):
        """File names of the boot entries."""
        return self.guest.check("cd /boot/loader/entries && ls").split()

    def fsck(self):
        """Its last line; an error where anything is wrong."""
        status, output = self.guest.run("cfs-update fsck", timeout=300)
        expect(status == 0, f"fsck: {status}\n{output[-1500:]}")
        return output.strip().splitlines()[-1]

    def push(self, tag):
        """What the machine follows is this version now."""
        self.registry.push(self.images.layout, tag, self.follows)

    def status(self):
        """`status --json`."""
        return self.guest.json("cfs-update status --json")["status"]

    def next_is(self, deployment, why):
        """What boots next is this deployment."""
        version, found = self.next()
        expect(found == deployment, f"{why}: {deployment} is not next, but {found} (version {version})")

    def next(self):
        """Version and id of what boots next."""
        status = self.status()
        entries = [status["staged"], status["booted"], status["rollback"], *status.get("otherDeployments", [])]
        found = next(entry for entry in entries if entry and entry["cfsUpdate"]["bootsNext"])
        return found["image"]["version"], found["cfsUpdate"]["deployment"]

    def reboot(self, script="systemctl reboot", timeout=500):
        """Runs what reboots; gives the seconds until the agent is there again."""
        self.guest.send(script)
        return self.guest.wait_ready(timeout)

    def refused(self, command, code, *words):
        """A command that must end with this code and say these words; gives its last line."""
        status, output = self.guest.run(command, timeout=300)
        expect(status == code and all(word in output for word in words), f"{command}: {status} {output[-1500:]}")
        return output.strip().splitlines()[-1]
