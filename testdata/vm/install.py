"""Scenario "install": what `install to-disk` does to real disks and to a file, and what it refuses.

From a guest without firmware: /dev/vdb is installed to again and again with an image that is quick to import, /dev/vdc becomes
a machine with btrfs and an extended boot partition, which then boots (the scenario `boot` has the usual one), /dev/vdd
holds a file that is installed to. The machine's image is the one of the example's Containerfile; all others are mmdebstrap's.
"""

import json
import subprocess

import container
import direct
import disk
import image
import machine as uefi
import store
from qemu import Disk, Guest
from report import expect

FOLLOWED = "install:latest"
ESP, XBOOTLDR = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "BC13C2FF-59E6-4262-A352-B275FD6F7172"
ROOT = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
MARK = "#### LoaderInfo: systemd-boot"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ test@example"
# What must be gone after every run, whatever became of it.
CLEAN = "! grep -q cfs-update-install /proc/mounts && [ -z \"$(losetup -a)\" ]"
# Every object measures as its name.
MEASURE = """cd {0}/composefs/objects && find . -type f -printf '%P\\n' | xargs fsverity measure |
    sed -e 's/^sha[0-9]*://' | awk '{{ name = $2; sub("/", "", name); n++; if (name != $1) {{ print; bad = 1 }} }}
    END {{ print n; exit bad }}'"""


def run(report, work, registry):
    """The whole scenario; `report` gets the rows."""
    with report.step("images: podman builds the Containerfile; image lint has no errors for it", vital=True) as note:
        made = container.base(work)
        said = subprocess.run([image.program(), "image", "lint", f"oci:{made.path}:13"], stdout=subprocess.PIPE, text=True)
        expect(said.returncode == 0 and " 0 errors" in said.stdout, said.stdout)
        note(said.stdout.strip().splitlines()[-1])
    with report.step("images: this machine in two versions, a small one, one without boot loader, one with a big kernel",
                     vital=True):
        machine = direct.Machine(work, "install")
        make_images(machine, made)
        for tag in ("tiny", "no-loader", "big"):
            registry.push(machine.layout, tag, f"install:{tag}")
        registry.push(machine.layout, "first", FOLLOWED)
    folder = work / "install"
    btrfs = Disk(disk.blank(folder / "btrfs.img", 2500))
    drives = [Disk(disk.blank(folder / "disk.img", 1500)), btrfs, Disk(disk.ext4(folder / "files.img", 1500))]
    with machine.guest(folder / "installer", drives) as guest:
        Installing(report, guest, registry).run()
    with Guest(folder / "machine", [btrfs]) as guest:
        Installed(report, guest, registry, machine.layout).run()
        with report.step("no trouble of kernel or emulation on the console"):
            expect(not guest.trouble(), "\n".join(guest.trouble()[:5]))


def make_images(machine, made):
    """Tags `first` and `second` of a machine that can be driven; `tiny`, `no-loader` and `big`, which do not boot."""
    layout = machine.layout
    layout.take(made, made.layers("13"))
    layers = [*made.layers("13"), machine.layers[-1], layout.put_layer(image.tar_layer(uefi.test_files()))]
    for day, name in enumerate(["first", "second"], 1):
        content = {"usr/share/cfs-test/version": f"{name}\n", "root": ("->", "var/roothome"), "var/roothome": None}
        layout.tag(name, [*layers, image.tar_layer(content)], name, image.created(day))
    small = layout.put_layer(store.small_layer(300))
    loader = image.tar_layer({"usr/lib/systemd/boot/efi/systemd-bootx64.efi": f"MZ {MARK} 257 ####",
                              "etc/machine-id": "uninitialized\n", "root": ("->", "var/roothome")})
    kernel = image.tar_layer({"usr/lib/modules/6.12.1-small/vmlinuz": b"\0" * (32 << 20)})
    layout.tag("no-loader", [small], "1", image.created(1))
    layout.tag("tiny", [small, loader], "1", image.created(1))
    layout.tag("big", [small, loader, kernel], "1", image.created(1))


class Installing:
    """The steps in the guest without firmware, one method each."""

    def __init__(self, report, guest, registry):
        self.report, self.guest, self.registry = report, guest, registry

    def run(self):
        """All of it."""
        with self.report.step("a guest without firmware, with empty disks", vital=True):
            self.guest.start()
            self.guest.wait_ready()
            self.guest.check(uefi.insecure(self.registry) + f"""set -e
                modprobe -a erofs overlay loop || :
                mkdir -p /run/files && mount /dev/vdd /run/files && truncate -s 1200M /run/files/disk
                echo '{KEY}' >/run/keys""")
        for title, step in [
            ("--dry-run says what would be done, and does nothing", self._dry_run),
            ("refused: a size that does not fit, an image that is not there; nothing changed", self._refused),
            ("an image without boot loader, an ESP for one kernel: the disk boots nothing", self._failed),
            ("killed while it installs: nothing stays mounted, no entry is there", self._killed),
            ("to-disk on a device: GPT, ESP, ext4 with fs-verity, systemd-boot, first deployment", self._device),
            ("a disk with data wants --wipe; a mounted one is refused all the same", self._in_use),
            ("to-disk with btrfs and an extended boot partition", self._btrfs),
            ("to-disk on a file, through loop devices that are gone afterwards", self._file),
            ("to-disk on a device whose partitions the kernel does not show", self._no_nodes),
        ]:
            with self.report.step(title) as note:
                step(note)
                self.guest.check(CLEAN)

    def _install(self, what, status=0, tag="tiny", timeout=600):
        """Runs the program; gives its report, or what it says where it must fail."""
        place, _, options = what.partition(" ")
        command = f"cfs-update install to-disk --json {options} {place} {self.registry.name('install:' + tag)}"
        got, output = self.guest.run(command, timeout)
        expect(got == status, f"{command}: {got}\n{output[-2000:]}")
        return json.loads(output[output.index("{"):]) if status == 0 else output

    def _is_empty(self, device="/dev/vdb"):
        expect(self.guest.check(f"wipefs --no-act {device}") == "", f"{device} was written to")

    def _dry_run(self, note):
        planned = self._install("/dev/vdb --dry-run --esp-size 250M")
        expect([p["role"] for p in planned["partitions"]] == ["esp", "root"], planned)
        expect(planned["fsVerity"], planned)
        self._is_empty()
        note(planned["script"].splitlines()[-1][:100])

    def _refused(self, note):
        said = self._install("/dev/vdb --esp-size 1400M", 4)
        note(said.strip()[-160:])
        self._install("/dev/vdb", 5, "no-such-tag")
        self._install("/dev/vdb1", 1)
        said = self._install("/dev/vda", 1)
        expect("mounted at /" in said, said)
        self._is_empty()

    def _failed(self, note):
        said = self._install("/dev/vdb --esp-size 250M", 1, "no-loader")
        expect("systemd-boot" in said and "--wipe" in said, said)
        said = self._install("/dev/vdb --wipe --esp-size 60M", 4, "big")
        expect("bytes needed" in said and "--esp-size" in said, said)
        note(said.strip().splitlines()[-1][-200:])
        self.guest.check("udevadm settle; mount /dev/vdb1 /mnt && [ -z \"$(ls /mnt)\" ]; r=$?; umount /mnt; exit $r")

    def _killed(self, note):
        command = f"cfs-update install to-disk --wipe --esp-size 250M /dev/vdb {self.registry.name('install:tiny')}"
        for seconds in (1, 2, 3, 4):
            self.guest.run(f"timeout -s KILL {seconds} {command}", timeout=300)
            # The kernel takes mounts and loop devices away when the last process is gone.
            self.guest.check(f"sleep 1; {CLEAN}")
            status, said = self.guest.run("cfs-update install to-disk --wipe --dry-run --esp-size 250M /dev/vdb oci:/x")
            expect(status == 0, f"after {seconds} s: {said}")
        note("after 1, 2, 3 and 4 seconds; nothing uses the disk afterwards")

    def _table(self, device):
        table = json.loads(self.guest.check(f"sfdisk --json {device}"))["partitiontable"]
        expect(table["label"] == "gpt", table)
        return [(part["type"], part["name"]) for part in table["partitions"]]

    def _device(self, note):
        done = self._install("/dev/vdb --wipe --esp-size 250M --karg cfs.test=1 --root-ssh-authorized-keys /run/keys")
        expect(self._table("/dev/vdb") == [(ESP, "EFI-SYSTEM"), (ROOT, "root")], self._table("/dev/vdb"))
        expect(done["fsVerity"] and done["kernelArguments"] == ["cfs.test=1"], done)
        expect(done["version"] == "1" and done["bootLoader"].endswith("systemd-bootx64.efi"), done)
        uuid = done["partitions"][1]["uuid"]
        expect(done["rootArgument"] == f"UUID={uuid}", done)
        found = self.guest.check("blkid -o value -s UUID /dev/vdb1 /dev/vdb2").split()
        expect(found == [part["uuid"] for part in done["partitions"]], f"{found} {done['partitions']}")
        self._look(["/dev/vdb2", "/dev/vdb1"], "1", note)

    def _look(self, devices, version, note):
        """What is on the partitions of a machine that was installed: root, $BOOT and, if it is another, the ESP."""
        places = dict(zip(["/mnt", "/mnt/boot", "/mnt/efi"], devices))
        self.guest.check("mkdir -p /mnt; " + " && ".join(f"mount {node} {place}" for place, node in places.items()))
        esp = list(places)[-1]
        self.guest.check(f"""set -e
            cmp {esp}/EFI/systemd/systemd-bootx64.efi {esp}/EFI/BOOT/BOOTX64.EFI
            grep -q '{MARK}' {esp}/EFI/BOOT/BOOTX64.EFI
            [ "$(stat -c %s {esp}/loader/random-seed)" = 32 ]
            ! grep '^default' {esp}/loader/loader.conf
            [ "$(ls /mnt/boot/loader/entries/*.conf | wc -l)" = 1 ]
            [ -s /mnt/state/deploy/*/etc/machine-id ]""")
        objects = self.guest.check(MEASURE.format("/mnt"), timeout=300).strip()
        status = self.guest.json("cfs-update --sysroot /mnt status --json")
        expect(status["status"]["staged"]["image"]["version"] == version, str(status)[:1000])
        got, said = self.guest.run("cfs-update --sysroot /mnt fsck", timeout=300)
        self.guest.check("umount -R /mnt")
        expect(got == 0, said[-1500:])
        note(f"{objects} objects with fs-verity; {said.strip().splitlines()[-1]}")

    def _in_use(self, note):
        said = self._install("/dev/vdb", 1)
        expect("there is data on it" in said and "--wipe" in said, said)
        self.guest.check("mount /dev/vdb2 /mnt")
        said = self._install("/dev/vdb --wipe", 1)
        self.guest.check("umount /mnt")
        expect("mounted at /mnt" in said, said)
        note(said.strip()[-120:])

    def _btrfs(self, note):
        options = f"--filesystem btrfs --xbootldr 300M --esp-size 60M --karg cfs.test=1 --karg cfs.unwell {uefi.KARGS}"
        done = self._install(f"/dev/vdc {options} --root-ssh-authorized-keys /run/keys", tag="latest")
        expect([kind for kind, _ in self._table("/dev/vdc")] == [ESP, XBOOTLDR, ROOT], done)
        self._look(["/dev/vdc3", "/dev/vdc2", "/dev/vdc1"], "first", note)

    def _file(self, note):
        done = self._install("/run/files/disk --esp-size 250M")
        self.guest.check(CLEAN)
        expect(self._table("/run/files/disk") == [(ESP, "EFI-SYSTEM"), (ROOT, "root")], done)
        offsets = [part["start"] for part in done["partitions"]]
        sizes = [part["size"] for part in done["partitions"]]
        self.guest.check(f"""set -e
            ln -sf $(losetup -f --show -o {offsets[0]} --sizelimit {sizes[0]} /run/files/disk) /run/file-esp
            ln -sf $(losetup -f --show -o {offsets[1]} --sizelimit {sizes[1]} /run/files/disk) /run/file-root""")
        self._look(["/run/file-root", "/run/file-esp"], "1", note)
        self.guest.check("losetup -D")

    def _no_nodes(self, note):
        device = self.guest.check("losetup -f --show /run/files/disk").strip()
        done = self._install(f"{device} --wipe --esp-size 250M")
        nodes = self.guest.check(f"ls {device}*; losetup -D").split()
        expect(nodes == [device], nodes)
        expect(self._table("/run/files/disk") == [(ESP, "EFI-SYSTEM"), (ROOT, "root")], done)
        self.guest.check("umount /run/files; sync")
        note(done["bootEntry"])


class Installed:
    """The machine on btrfs, with firmware and systemd-boot."""

    def __init__(self, report, guest, registry, layout):
        self.report, self.guest, self.registry, self.layout = report, guest, registry, layout

    def run(self):
        """All of it."""
        with self.report.step("btrfs and XBOOTLDR boot: firmware, systemd-boot, the composefs root", vital=True) as note:
            self.guest.start()
            note(f"{self.guest.wait_ready():.0f} s to the agent")
            line = self.guest.check("cat /proc/cmdline")
            expect("cfs.test=1" in line.split(), line)
            self.guest.check("""set -e
                findmnt /etc && findmnt /var && [ "$(findmnt -no FSTYPE /sysroot)" = btrfs ]
                findmnt -no OPTIONS / | grep verity=require""")
        with self.report.step("/boot is the extended boot partition, /efi the ESP") as note:
            note(self.guest.check("""set -e
                ls /boot/loader/entries/*.conf /efi/EFI/BOOT/BOOTX64.EFI >/dev/null
                [ ! -e /boot/EFI ]
                grep -o '^[^ ]* /boot vfat' /proc/mounts
                grep -o '^[^ ]* /efi vfat' /proc/mounts""").strip().replace("\n", ", "))
        with self.report.step("its only deployment fails its health check: it stays, also with no tries left") as note:
            self._alone(note)
        with self.report.step("root's authorized keys are there") as note:
            self.guest.check(f"systemctl is-system-running --wait || :; grep '{KEY}' /root/.ssh/authorized_keys", 300)
            note(self.guest.check("stat -c '%a %U %n' /root/.ssh /root/.ssh/authorized_keys").strip().replace("\n", ", "))
        with self.report.step("an upgrade keeps the kernel arguments of the installation") as note:
            self.registry.push(self.layout, "second", FOLLOWED)
            self.guest.check(uefi.insecure(self.registry) + "cfs-update upgrade", timeout=400)
            count = int(self.guest.check("grep -l cfs.test=1 /boot/loader/entries/*.conf | wc -l"))
            expect(count == 2, f"{count} entries have it")
            status, said = self.guest.run("cfs-update fsck", timeout=300)
            expect(status == 0, said[-1500:])
            note(said.strip().splitlines()[-1])

    def _alone(self, note):
        """The image's check fails for as long as this machine is not told to be well."""
        entries = "ls /boot/loader/entries/*.conf"
        self._unwell()
        name = self.guest.check(entries).strip()
        expect("+" in name, f"a bad boot was marked as good: {name}")
        self.guest.check(f"mv {name} {name.split('+')[0]}+00-03.conf && sync")
        self.guest.send("systemctl reboot")
        took = self.guest.wait_ready()
        note(f"booted with no tries left in {took:.0f} s; {self._unwell()}")
        # Had it decided to reboot, it would be on its way.
        self.guest.check("sleep 10; [ \"$(systemctl list-jobs --no-legend | grep -c reboot)\" = 0 ]")
        self.guest.check("""mkdir -p /var/lib/cfs-test && touch /var/lib/cfs-test/well
            cfs-update health check; cfs-update health good""")
        name = self.guest.check(entries).strip()
        expect("+" not in name, f"health good left {name}")

    def _unwell(self):
        """Waits for the verdict; gives its words."""
        self.guest.check("systemctl is-system-running --wait || :", timeout=300)
        health = self.guest.json("cfs-update status --json")["status"]["cfsUpdate"]["health"]
        expect(health["result"] == "bad", f"health: {str(health)[:600]}")
        said = self.guest.check("journalctl -b -o cat -u cfs-update-health.service | grep 'no other deployment'")
        return said.strip().splitlines()[-1][-150:]
