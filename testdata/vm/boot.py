"""Scenario "boot": a machine with UEFI firmware and systemd-boot, from an empty disk through its life.

One disk, /dev/vda of the machine (an EFI system partition and an ext4 with fs-verity). It is installed from a guest without
firmware; from then on everything happens in the machine itself. Each step leaves it running a good version.
"""

import io
import pathlib
import subprocess
import time

import cuts
import image
import machine
from machine import Images, Running
from qemu import Guest
from report import expect

# One try, so that what is refused is refused once; the images that panic have the usual three.
ONE_TRY = "/etc/cfs-update/config.toml.d/60-one-try.toml"
CONFIG = "usr/lib/composefs/setup-root-conf.toml"


def run(part, work, registry, cuts_part, numbers):
    """The whole scenario; `part` gets the rows."""
    with part.step("images: good, better, one that panics, …", vital=True) as note:
        images = Images(work, "boot")
        make_versions(images)
        note(f"{len(images.machine.layers)} layers, one more for each version")
    with part.step("image lint finds nothing to say about the example, and names what a broken one lacks"):
        lint(images.layout)
    disk = machine.copy_disk(machine.installed(part, work, registry), work / "boot" / "disk.img")
    with Guest(work / "boot" / "machine", [disk]) as guest:
        Life(part, guest, registry, images).run()
        if cuts_part:
            cuts.after(cuts_part, guest, registry, images, numbers)
        with part.step("no trouble of kernel or emulation on the console"):
            expect(not guest.trouble(), "\n".join(guest.trouble()[:5]))


def make_versions(images):
    """What the steps need and is known before the machine runs."""
    kargs = "usr/lib/bootc/kargs.d/50-test.toml"
    images.version("better")
    images.version("soft")
    images.version("other-kargs", {kargs: 'kargs = ["cfs.other=1"]\n'})
    images.version("auto")
    images.version("replaced")
    images.version("no-erofs", {kargs: 'kargs = ["module_blacklist=erofs"]\n'})
    add_panicking(images)


def add_panicking(images):
    """The version whose kernel finds no initramfs; the newest from now on."""
    images.version("panics", {f"{images.modules}/initramfs.img": "no initramfs\n" * 1000})


def lint(layout):
    """`image lint` on the host."""
    layout.tag("lacking", layout.layers("1")[:1], "1", image.created(1))
    for tag, good in (("1", True), ("lacking", False)):
        command = [image.program(), "image", "lint", f"oci:{layout.path}:{tag}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        expect((done.returncode == 0) == good, f"{tag}: exit {done.returncode}\n{done.stdout[-2000:]}")
        expect(good or "kernel" in done.stdout, f"a missing kernel is not named:\n{done.stdout[-2000:]}")


def cpio(files):
    """An archive that the kernel unpacks over what the initramfs before it holds: {path: bytes}."""
    out = io.BytesIO()
    folders = {str(folder) for path in files for folder in pathlib.PurePath(path).parents if str(folder) != "."}
    entries = [(path, 0o040755, b"") for path in sorted(folders)]
    entries += [(path, 0o100644, data) for path, data in files.items()] + [("TRAILER!!!", 0, b"")]
    for number, (path, mode, data) in enumerate(entries, 1):
        name = path.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0]
        out.write(b"070701" + b"".join(b"%08x" % field for field in fields) + name)
        out.write(b"\0" * (-out.tell() % 4) + data)
        out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()


class Life(Running):
    """The life of the machine, one method for each step, in this order."""

    def run(self):
        """All of it."""
        with self.part.step("first boot: firmware, systemd-boot, composefs root, units enabled", vital=True) as note:
            self.guest.start()
            self._first_boot(note)
        for title, step in [
            ("ESP missing, read-only or full: the upgrade is refused, nothing changes", self._esp),
            ("a flipped byte on the disk is EIO in the running system", self._flip),
            ("foreign, CRLF, malformed and used-up entries on the ESP stay, and are told of", self._foreign),
            ("upgrade; rollback, twice; an edit in /etc; an ordinary reboot: the new version runs with it", self._upgrade),
            ("upgrade --download-only, --dry-run, --from-downloaded --apply=soft: as was said, the same kernel; refused with other "
             "arguments", self._soft),
            ("cfs-update-auto.service updates and reboots by itself, in its sandbox", self._auto),
            ("rollback --apply: the version before runs; automatic updates leave it alone", self._rollback),
            ("the staged image is replaced: refused in the initramfs, the old one boots", self._replaced),
            ("a kernel without EROFS: it says so on the console, the old one boots", self._no_erofs),
            ("require-signature in the initramfs: what this machine signed boots", self._signed),
            ("require-signature: a tampered signature is refused, the old one boots", self._forged),
            ("an image that its health check fails: back by itself, remembered; rollback works after it", self._unhealthy),
            ("an image that ends in emergency mode: back by itself, remembered", self._emergency),
            ("an image whose kernel panics, three times: back on the good one by itself", self._panics),
        ]:
            with self.part.step(title) as note:
                self.running()
                step(note)

    # --- steps --------------------------------------------------------------------------------------------------------
    def _first_boot(self, note):
        note(f"{self.guest.wait_ready():.0f} s to the agent")
        good, version = self.booted()
        expect(version == "good" and good in self.guest.check("cat /proc/cmdline"), f"version {version} runs")
        root = self.guest.check("findmnt -no FSTYPE,OPTIONS /")
        expect(root.startswith("overlay") and "verity=require" in root, root)
        self.guest.check("""set -e
            findmnt /sysroot && findmnt /etc && findmnt /var && findmnt /boot
            ! touch /usr/new 2>/dev/null && touch /etc/new /var/new && rm /etc/new /var/new
            cat /var/lib/cfs-test/from-image""")
        self.settled()
        note(f"{time.monotonic() - self.guest.started:.0f} s more until all is started")
        note(self.guest.check("systemd-analyze time | head -n 1").strip().removeprefix("Startup finished in "))
        expect(good in str(self.status()["booted"]), f"status says that {str(self.status())[:500]} is booted")
        entries = self.entries()
        expect(len(entries) == 1 and "+" not in entries[0], f"the boot was good, but the entries are {entries}")
        units = "cfs-update-auto.timer cfs-update-health.service cfs-update-finalize.service"
        self.guest.check(f"systemctl is-enabled {units} && systemctl is-active {units}")
        timers = self.guest.check("systemctl list-timers --no-legend cfs-update-auto.timer")
        expect("cfs-update-auto.service" in timers, f"list-timers: {timers}")
        note(" ".join(timers.split()[:4]))
        # Eight hours are over some time, and this test may be running then.
        self.guest.check("systemctl mask --now cfs-update-auto.timer; mkdir -p /etc/cfs-update/config.toml.d")
        self.guest.check(machine.insecure(self.registry))
        self.fsck()

    def _esp(self, note):
        """The version that panics: it has a kernel folder of its own, so it has to be written to the ESP."""
        look = "cd / && find /boot /sysroot/state/deploy -maxdepth 4 -printf '%p %s %T@\\n' | grep -v '^/boot ' | sort"
        self.push("panics")
        device = self.guest.check("ls /boot >/dev/null; findmnt -no SOURCE -t vfat /boot").strip()
        before = self.guest.check(look)
        self.guest.check("mount -o remount,ro /boot")
        note(self.refused("cfs-update upgrade", 1, "read-only", "/boot"))
        self.guest.check("mount -o remount,rw /boot")
        expect(self.guest.check(look) == before, "the read-only ESP: something changed")
        self.guest.check(machine.fill("/boot"))
        full = self.guest.check(look)
        note(self.refused("cfs-update upgrade", 4, "/boot"))
        expect(self.guest.check(look) == full, "the full ESP: something changed")
        self.guest.check("""rm /boot/fill; systemctl stop boot.automount boot.mount 2>/dev/null
            ! mountpoint -q /boot || umount /boot""")
        note(self.refused("cfs-update upgrade", 1, "/boot", "mount"))
        self.guest.check(f"systemctl start boot.automount || mount {device} /boot; ls /boot/loader")
        expect(self.guest.check(look) == before, "the missing ESP: something changed")
        self.fsck()

    def _flip(self, note):
        name = "/usr/bin/find"
        device = self.guest.check("findmnt -no SOURCE /sysroot").split("[")[0].strip()
        digest = self.guest.check(f"fsverity digest {name}").split()[0].removeprefix("sha256:")
        path = f"/sysroot/composefs/objects/{digest[:2]}/{digest[2:]}"
        lines = self.guest.check(f"filefrag -v {path}").splitlines()
        block = int(next(line for line in lines if line.strip().startswith("0:")).split(":")[2].split("..")[0])
        flip = f"""set -e; sync
            at=$(({block} * 4096 + 6000))
            old=$(dd if={device} bs=1 skip=$at count=1 2>/dev/null | od -An -tu1)
            printf "\\\\$(printf %03o $((old ^ 255)))" | dd of={device} bs=1 seek=$at conv=notrunc,fsync 2>/dev/null
            blockdev --flushbufs {device}; echo 3 >/proc/sys/vm/drop_caches"""
        before = self.guest.check(f"sha256sum {name}")
        self.guest.check(flip)
        status, output = self.guest.run(f"cat {name} >/dev/null")
        expect(status != 0 and "Input/output error" in output, f"it could be read: {status} {output}")
        note(output.strip())
        self.guest.check(flip)
        expect(self.guest.check(f"sha256sum {name}") == before, "not the same after the byte came back")

    FOREIGN = "cd /boot/loader/entries && sha256sum foreign.conf crlf.conf broken.conf used-up+0-3.conf"

    def _foreign(self, note):
        """They are there for the next step, too, whose reboot shows that systemd-boot and we get past them."""
        self.guest.check(f"""set -e; cd /boot/loader/entries
            echo nothing >/boot/foreign-kernel
            printf 'title Foreign\\nlinux /foreign-kernel\\nsort-key zzz\\n' >foreign.conf
            printf 'title Foreign, with CRLF\\r\\nlinux /foreign-kernel\\r\\nsort-key zzz\\r\\n' >crlf.conf
            head -c 3000 /dev/urandom >broken.conf
            cp "$(ls cfs-*.conf | head -n 1)" used-up+0-3.conf""")
        self.foreign = self.guest.check(self.FOREIGN)
        status = self.status()
        expect(status["booted"] and not status["staged"], str(status)[:1000])
        code, output = self.guest.run("cfs-update fsck", timeout=300)
        told = [line.strip() for line in output.splitlines() if "broken.conf" in line]
        expect(code in (0, 1) and told, f"fsck: {code} {output}")
        note(told[0][:150])

    def _upgrade(self, note):
        good, _ = self.booted()
        self.guest.check("echo edited >/etc/issue && rm /etc/removed-later.conf && echo mine >/var/lib/cfs-test/mine")
        self.push("better")
        staged = self.guest.json("cfs-update upgrade --json", timeout=300)["deployment"]
        self.next_is(staged, "after the upgrade")
        for expected, why in ((good, "rollback with an update there"), (staged, "rollback twice"),
                              (good, "rollback, three times"), (staged, "rollback, four times")):
            self.guest.check("cfs-update rollback")
            self.next_is(expected, why)
        told = self.guest.check("""journalctl --sync
                journalctl -b -o cat MESSAGE_ID=26f3b1eb24464d12aa5e7b544a6b5468""").splitlines()
        expect(len(told) == 4 and staged in told[-1] and good in told[-2], f"the journal has of the rollbacks: {told}")
        changed = self.guest.json("cfs-update kargs --append cfs.kept=1 --json")
        expect(changed["deployment"] == staged and changed["change"]["added"] == ["cfs.kept=1"], changed)
        self.next_is(staged, "after kargs")
        self.guest.check("echo kept >/etc/added-after-staging.conf && echo late >>/etc/issue")
        took = self.reboot()
        better, version = self.booted()
        expect(version == "better" and better == staged, f"version {version} runs")
        seen = self.guest.check("""cat /etc/issue /etc/added-after-staging.conf /var/lib/cfs-test/mine \\
                /var/lib/cfs-test/from-image; ls /etc/removed-later.conf 2>&1 || :""")
        expect(seen.startswith("edited\nlate\nkept\nmine\nfrom the first image\n") and "No such file" in seen, seen)
        self.settled()
        if self.foreign:
            expect(self.guest.check(self.FOREIGN) == self.foreign, "entries of others were changed")
            self.guest.check("""cd /boot/loader/entries
                rm foreign.conf crlf.conf broken.conf used-up+0-3.conf ../../foreign-kernel""")
        expect(all("+" not in entry for entry in self.entries()), f"entries {self.entries()}")
        line = self.guest.check("cat /proc/cmdline")
        expect("mitigations=off" in line and " rw " in line and "cfs.kept=1" in line, f"the host's kernel arguments are gone: {line}")
        note(f"{took:.0f} s to the agent of the new version; {self.fsck()}")

    def _soft(self, note):
        kernel = self.guest.check("cat /proc/sys/kernel/random/boot_id")
        self.push("soft")
        self.guest.check("echo soft >/etc/added-before-soft.conf")
        self.guest.check("cfs-update upgrade --download-only", timeout=300)
        expect(not self.status()["staged"], "what was downloaded is not staged")
        told = self.guest.json("cfs-update upgrade --dry-run --json", timeout=300)
        expect(told["bytes"] == 0 and told["changes"]["softReboot"]["possible"], told)
        took = self.reboot("cfs-update upgrade --from-downloaded --apply=soft")
        soft, version = self.booted()
        expect(soft == told["changes"]["deployment"], f"{soft} runs, {told} was said")
        expect(version == "soft", f"version {version} runs")
        expect(self.guest.check("cat /proc/sys/kernel/random/boot_id") == kernel, "that was no soft reboot")
        self.guest.check("""set -e; grep soft /etc/added-before-soft.conf; grep mine /var/lib/cfs-test/mine
            findmnt -no OPTIONS / | grep verity=require; ls /boot/loader/entries >/dev/null""")
        self.settled()
        expect(soft in str(self.status()["booted"]), str(self.status())[:1000])
        expect(all("+" not in entry for entry in self.entries()), f"entries {self.entries()}")
        note(f"{took:.0f} s to the agent; {self.fsck()}")
        self.push("other-kargs")
        note(self.refused("cfs-update upgrade --apply=soft", 2, "kernel arguments differ", "--apply"))
        expect(self.booted()[0] == soft and self.status()["staged"], "what was refused is not staged")

    def _auto(self, note):
        self.push("auto")
        self.guest.check("printf '[auto]\\napply = true\\n' >/etc/cfs-update/config.toml.d/70-auto.toml")
        exposed = self.guest.check("systemctl show -P ProtectKernelModules -P MemoryDenyWriteExecute "
                                   "cfs-update-auto.service")
        expect(exposed.split() == ["yes", "yes"], f"the sandbox is {exposed}")
        took = self.reboot("systemctl start --no-block cfs-update-auto.service")
        _, version = self.booted()
        expect(version == "auto", f"version {version} runs")
        line = self.guest.check("cat /proc/cmdline")
        expect("cfs.kept=1" in line, f"kernel arguments of the machine: {line}")
        self.settled()
        self.guest.check("rm /etc/cfs-update/config.toml.d/70-auto.toml")
        # Nothing refers to the unit while its timer is masked, so systemd forgets its exit code as soon as it ends.
        said = self.guest.check("""systemctl start cfs-update-auto.service && sync
            journalctl --sync; journalctl -b -u cfs-update-auto.service -o cat""")
        expect("Nothing new" in said and "Finished" in said, f"with nothing new: {said}")
        self.refused("cfs-update auto run", 77, "Nothing new")
        note(f"{took:.0f} s to the agent of the new version; {self.fsck()}")

    def _rollback(self, note):
        took = self.reboot("cfs-update rollback --apply")
        _, version = self.booted()
        expect(version == "soft", f"version {version} runs")
        seen = self.guest.check("cat /etc/added-before-soft.conf /var/lib/cfs-test/mine 2>&1 || :")
        self.settled()
        self.refused("cfs-update auto run", 77)
        note(f"{took:.0f} s; /etc and /var: {' '.join(seen.split())[:60]}; {self.fsck()}")

    # --- what the initramfs refuses -----------------------------------------------------------------------------------
    def _try_once(self, version, note, change=lambda staged: None):
        """Stages a version with one try, changes it, and reboots. Gives what was staged, the seconds and the console.
        A firmware that hangs takes the one try with it, so then it is staged once more."""
        for retry in ("", " --retry"):
            self.push(version)
            self.guest.check(f"printf '[boot]\\ntries = 1\\n' >{ONE_TRY}")
            staged = self.guest.json(f"cfs-update upgrade --json{retry}", timeout=300)["deployment"]
            self.guest.check(f"rm {ONE_TRY}")
            change(staged)
            mark = len(self.guest.console())
            took = self.reboot()
            if not self.guest.hangs(mark):
                break
            note("the emulated firmware hung, and its watchdog ended that: once more")
            self.settled()
        return staged, took, self.guest.console()[mark:]

    def _is_refused(self, version, words, note, change=lambda staged: None):
        """A version is staged and changed; it is refused with these words on the console, and what runs now runs again.
        Gives what was staged, which is gone again, and the lines."""
        old = self.booted()
        staged, took, console = self._try_once(version, note, change)
        expect(self.booted() == old, f"{self.booted()} runs")
        lines = [line.strip() for line in console.splitlines() if "cfs-update-root" in line]
        expect(all(any(word in line for line in lines) for word in words), f"on the console:\n{console[-3000:]}")
        note(f"{took:.0f} s; " + next(line for line in lines if words[-1] in line)[-130:])
        self.settled()
        self.guest.check(f"cfs-update delete {staged} && cfs-update gc && cfs-update fsck", timeout=300)
        return staged, lines

    def _replaced(self, note):
        def replace(staged):
            path = f"/sysroot/composefs/objects/{staged[:2]}/{staged[2:]}"
            self.guest.check(f"cp {path} /run/image && rm {path} && cp /run/image {path} && sync")

        staged, lines = self._is_refused("replaced", ["fs-verity"], note, replace)
        expect(any(staged[:12] in line for line in lines), f"{staged} is not named: {lines}")

    def _no_erofs(self, note):
        self._is_refused("no-erofs", ["EROFS"], note)

    def _signed(self, note):
        """The machine's own public key and the demand get into the initramfs: appended, as any further archive may be."""
        key = self.guest.check("cat /sysroot/state/cfs-update/keys/host.pub").encode()
        more = {CONFIG: b"[root]\nrequire-signature = true\n", "usr/lib/cfs-update/keys/trusted.d/host.pub": key}
        initrd = self.images.machine.initrd.read_bytes()
        initrd += b"\0" * (-len(initrd) % 4) + cpio(more)
        for version in ("signed", "forged"):
            self.images.version(version, {f"{self.images.modules}/initramfs.img": initrd})
        self.push("signed")
        mark = len(self.guest.console())
        took = self.reboot("cfs-update upgrade --apply")
        _, version = self.booted()
        expect(version == "signed", f"version {version} runs")
        told = self.guest.check("journalctl -b -o cat -u cfs-update-root.service | grep 'signed by'; :")
        expect("signed by" in told + self.guest.console()[mark:], f"the initramfs asked for no signature: {told}")
        self.settled()
        # A boot says nothing of an entry that is made during it; the one that booted well is there until then.
        for change, more in (("--append", 1), ("--delete", 0)):
            before = len(self.entries())
            self.guest.check(f"cfs-update kargs {change} cfs.untried=1 && cfs-update health check")
            untried = [entry for entry in self.entries() if "+03-00" in entry]
            expect(len(untried) == more, f"after kargs {change}: {self.entries()}")
            expect(len(self.entries()) == before + (1 if more else -1), f"after kargs {change}: {self.entries()}")
        note(f"{took:.0f} s; {told.strip()[-100:]}")

    def _forged(self, note):
        expect(self.booted()[1] == "signed", f"{self.booted()} runs")

        def forge(staged):
            seal = f"/sysroot/state/deploy/{staged}/seal.json"
            dry = f"""cp {seal} /run/seal && rm {seal} && mkdir -p /run/keys/trusted.d
                echo composefs.digest=v1-sha256-12:{staged} >/run/line
                cp /sysroot/state/cfs-update/keys/host.pub /run/keys/trusted.d
                printf '[root]\\nrequire-signature = true\\n' >/run/conf
                cd /usr/lib/cfs-update && ./cfs-update-root --dry-run --cmdline /run/line --config /run/conf --keys /run/keys"""
            note(self.refused(dry, 3, "no such file"))
            # One letter of the signature.
            change = """-e 's/"sig":"\\(..\\)A/"sig":"\\1B/;t' -e 's/"sig":"\\(..\\)./"sig":"\\1A/'"""
            self.guest.check(f"sed {change} /run/seal >{seal} && ! cmp -s /run/seal {seal} && sync")

        self._is_refused("forged", ["require-signature", "signature"], note, forge)

    # --- bad versions -------------------------------------------------------------------------------------------------
    def _unhealthy(self, note):
        old = self.booted()
        self.images.version("unhealthy", {"usr/lib/cfs-update/health.d/99-test.sh!": machine.UNHEALTHY})
        self.push("unhealthy")
        self.guest.send("cfs-update upgrade --apply")
        bad = self.guest.wait_ready(500)
        _, version = self.booted()
        expect(version == "unhealthy", f"version {version} runs")
        self.guest.send("true")
        back = self.guest.wait_ready(500)
        note(f"{bad:.0f} s to the bad one, {back:.0f} s back")
        self._is_remembered(old, note)
        self.guest.check("cfs-update rollback")
        older, _ = self.next()
        expect(older not in ("unhealthy", old[1]), f"rollback after a failed update goes to {older}")
        note(f"rollback goes to {older}")
        self.guest.check("cfs-update rollback")
        self.next_is(old[0], "rollback twice after a failed update")

    def _is_remembered(self, old, note):
        """The version before runs, and what failed is known and left alone."""
        expect(self.booted() == old, f"{self.booted()} runs")
        self.settled()
        status = self.guest.check("cfs-update status")
        reason = [line.strip() for line in status.splitlines() if "ailed" in line]
        expect(reason, f"status does not say that anything failed:\n{status}")
        note(reason[-1])
        self.refused("cfs-update auto run", 77)
        self.refused("cfs-update upgrade", 1, "--retry")
        self.fsck()

    def _emergency(self, note):
        old, mark = self.booted(), len(self.guest.console())
        fstab = "/dev/disk/by-label/not-there /data ext4 defaults,x-systemd.device-timeout=5s 0 2\n"
        self.images.version("emergency", {"etc/fstab": fstab})
        self._try_once("emergency", note)
        expect(self.booted()[1] == "emergency", f"{self.booted()} runs")
        self.guest.send("true")
        back = self.guest.wait_ready(500)
        said = [line for line in self.guest.console()[mark:].splitlines() if "this boot has failed" in line]
        expect(said, "the console does not say that the boot failed")
        note(f"{back:.0f} s back; {said[0].strip()[-100:]}")
        self._is_remembered(old, note)

    def _panics(self, note):
        old = self.booted()
        add_panicking(self.images)
        self.push("panics")
        mark = len(self.guest.console())
        took = self.reboot("cfs-update upgrade --apply")
        panics, hangs = self.guest.console()[mark:].count("Kernel panic"), self.guest.hangs(mark)
        expect(self.booted() == old, f"{self.booted()} runs")
        expect(panics + hangs == 3 and panics > 1, f"{panics} panics instead of 3; the firmware hung {hangs} times")
        note(f"{took:.0f} s, {panics} panics")
        self._is_remembered(old, note)
