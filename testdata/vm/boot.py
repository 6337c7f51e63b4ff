"""Scenario "boot": a machine with UEFI firmware and systemd-boot, from an empty disk through its life.

One disk, /dev/vda of the machine (an EFI system partition and an ext4 with fs-verity). It is installed from a guest without
firmware; from then on everything happens in the machine itself, over power cuts, too.
"""

import random
import subprocess
import time

import direct
import disk
import image
from qemu import Disk, Guest
from registry import Registry
from report import expect

# Slow under emulation and of no use here.
MASKED = ("systemd-hwdb-update ldconfig systemd-journal-catalog-update systemd-networkd-wait-online systemd-firstboot "
          "systemd-boot-random-seed e2scrub_reap systemd-tpm2-setup systemd-tpm2-setup-early systemd-pcrmachine "
          "systemd-pcrphase systemd-pcrphase-sysinit systemd-update-utmp systemd-journal-flush "
          "systemd-random-seed getty@tty1 serial-getty@ttyS0")
MASKED_TIMERS = "e2scrub_all fstrim systemd-tmpfiles-clean cfs-update-auto"
AGENT_UNIT = """[Unit]
DefaultDependencies=no
After=systemd-tmpfiles-setup.service local-fs.target
[Service]
ExecStart=/bin/sh /usr/lib/cfs-test/agent.sh
StandardOutput=null
StandardError=journal+console
"""
KARGS = "--karg console=ttyS0,115200 --karg panic=1 --karg loglevel=5 --karg audit=0 --karg mitigations=off"
UNHEALTHY = "#!/bin/sh\necho 'this version is not well' >&2\nexit 1\n"
CUTS = 10


def run(report, work):
    """The whole scenario; `report` gets the rows."""
    with report.step("images: good, better, one that its health check fails, one that panics", vital=True) as note:
        images = Images(work)
        note(f"{len(images.machine.layers)} layers, one more for each version")
    with report.step("image lint finds nothing to say about the example, and names what a broken one lacks"):
        lint(images.layout)
    with Registry(work / "registry") as registry:
        registry.push(images.layout, "good", "os:latest")
        drive = Disk(disk.blank(work / "machine.img", 3000))
        with report.step("install to-disk on an empty disk; a second one wants --wipe", vital=True) as note:
            with images.machine.guest(work / "installer", [drive]) as guest:
                guest.start()
                note(f"{guest.wait_ready():.0f} s to the agent")
                install(guest, registry, note)
        with Guest(work / "machine", [drive], memory=1024) as guest:
            (work / "machine" / "efivars.fd").unlink(missing_ok=True)
            Life(report, guest, registry, images).run()
            with report.step("no trouble of kernel or emulation on the console"):
                expect(not guest.trouble(), "\n".join(guest.trouble()[:5]))


class Images:
    """The versions, each the same layers and a small one of its own."""

    def __init__(self, work):
        self.machine = direct.Machine(work)
        self.layout = self.machine.layout
        self.layers = [*self.machine.layers, self.layout.put_layer(image.tar_layer(test_files()))]
        self.count = 1
        self.version("good")
        self.version("better")
        self.version("unhealthy", {"usr/lib/cfs-update/health.d/99-test.sh!": UNHEALTHY})
        modules = next((self.machine.tree / "usr/lib/modules").iterdir()).name
        self.version("panics", {f"usr/lib/modules/{modules}/initramfs.img": "no initramfs\n" * 1000})

    def version(self, name, files=()):
        """A new image, newer than all before."""
        self.count += 1
        content = {"usr/share/cfs-test/version": f"{name}\n", "etc/issue": f"version {name}\n", **dict(files)}
        return self.layout.tag(name, [*self.layers, image.tar_layer(content)], name, image.created(self.count))


def test_files():
    """What makes the image quick to boot and able to be driven; nothing that the program has to do with."""
    units = "usr/lib/systemd/system/"
    files = {units + "cfs-test-agent.service": AGENT_UNIT,
             units + "sysinit.target.wants/cfs-test-agent.service": ("->", "../cfs-test-agent.service"),
             "etc/machine-id": "5d3f4a1c9b7e4f0a8c2d6e1f3a5b7c9d\n",
             "etc/removed-later.conf": "from the image\n",
             "var/lib/cfs-test/from-image": "from the first image\n"}
    files |= {f"etc/systemd/system/{unit}.service": ("->", "/dev/null") for unit in MASKED.split()}
    files |= {f"etc/systemd/system/{unit}.timer": ("->", "/dev/null") for unit in MASKED_TIMERS.split()}
    return files


def lint(layout):
    """`image lint` on the host."""
    layout.tag("lacking", layout.layers("1")[:1], "1", image.created(1))
    for tag, good in (("1", True), ("lacking", False)):
        command = [image.program(), "image", "lint", f"oci:{layout.path}:{tag}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        expect((done.returncode == 0) == good, f"{tag}: exit {done.returncode}\n{done.stdout[-2000:]}")
        expect(good or "kernel" in done.stdout, f"a missing kernel is not named:\n{done.stdout[-2000:]}")


def insecure(registry):
    """A script: this registry has no TLS."""
    host = registry.name("").split("/")[0]
    return f"""mkdir -p /etc/containers
        printf '[[registry]]\\nlocation = "{host}"\\ninsecure = true\\n' >/etc/containers/registries.conf
        """


def install(guest, registry, note):
    """A whole system on an empty disk, and what `install` refuses."""
    guest.check("modprobe -a erofs overlay vfat nls_ascii nls_cp437 || :;" + insecure(registry))
    command = f"cfs-update install to-disk /dev/vdb {registry.name('os:latest')} --esp-size 300M {KARGS}"
    guest.check(command, timeout=400)
    status, output = guest.run(command)
    expect(status != 0 and "--wipe" in output, f"the second install ended with {status}: {output[-1000:]}")
    note(guest.check("sfdisk -l -o Device,Size,Type /dev/vdb | tail -n 2 | tr -s ' ' | tr '\\n' ','").strip(","))
    guest.check("sync")


class Life:
    """The life of the machine, one method for each step, in this order."""

    def __init__(self, report, guest, registry, images):
        self.report, self.guest, self.registry, self.images = report, guest, registry, images
        self.good = self.better = None

    def run(self):
        """All of it."""
        report = self.report
        with report.step("first boot: firmware, systemd-boot, the composefs root", vital=True) as note:
            self.guest.start()
            self._first_boot(note)
        for title, step in [
            ("an edit in /etc, a file in /var, upgrade --apply: the new version runs with both", self._upgrade),
            ("rollback --apply: the version before runs, and is left alone by automatic updates", self._rollback),
            ("a flipped byte on the disk is EIO in the running system", self._flip),
            ("the staged image is replaced: refused in the initramfs, the old one boots", self._replaced),
            ("an image that its health check fails: back on the good one by itself, remembered", self._unhealthy),
            ("an image whose kernel panics: back on the good one by itself", self._panics),
        ]:
            with report.step(title) as note:
                self._running()
                step(note)
        self._power_cuts()

    # --- what runs ----------------------------------------------------------------------------------------------------
    def _running(self):
        """After a step that went wrong the machine is where it was left; the next one wants it up."""
        if self.guest.process is None:
            self.guest.start()
            self.guest.wait_ready()

    def _booted(self):
        """Id of the deployment that the kernel was told, and the version that is seen."""
        line = self.guest.check("cat /proc/cmdline")
        digest = next(word for word in line.split() if word.startswith("composefs.digest=")).split(":")[1]
        return digest, self.guest.check("cat /usr/share/cfs-test/version").strip()

    def _settled(self, timeout=300):
        """Waits until systemd has started everything; nothing has failed."""
        status, output = self.guest.run("systemctl is-system-running --wait; systemctl --failed --no-legend --plain",
                                        timeout)
        expect(output.split()[0] == "running", f"{status} {output}")

    def _entries(self):
        return self.guest.check("cd /boot/loader/entries && ls").split()

    def _fsck(self):
        status, output = self.guest.run("cfs-update fsck", timeout=300)
        expect(status == 0, f"fsck: {status}\n{output[-1500:]}")
        return output.strip().splitlines()[-1]

    def _push(self, tag):
        self.registry.push(self.images.layout, tag, "os:latest")

    def _reboot(self, script="systemctl reboot", timeout=500):
        """Runs what reboots; gives the seconds until the agent is there again."""
        self.guest.send(script)
        return self.guest.wait_ready(timeout)

    # --- steps --------------------------------------------------------------------------------------------------------
    def _first_boot(self, note):
        note(f"{self.guest.wait_ready():.0f} s to the agent")
        self.good, version = self._booted()
        expect(version == "good", f"version {version} runs")
        root = self.guest.check("findmnt -no FSTYPE,OPTIONS /")
        expect(root.startswith("overlay") and "verity=require" in root, root)
        self.guest.check("""set -e
            findmnt /sysroot && findmnt /etc && findmnt /var && findmnt /boot
            ! touch /usr/new 2>/dev/null && touch /etc/new /var/new && rm /etc/new /var/new
            cat /var/lib/cfs-test/from-image""")
        self._settled()
        note(f"{time.monotonic() - self.guest.started:.0f} s more until all is started")
        booted = self.guest.json("cfs-update status --json")["status"]["booted"]
        expect(self.good in str(booted), f"status says that {str(booted)[:500]} is booted")
        entries = self._entries()
        expect(len(entries) == 1 and "+" not in entries[0], f"the boot was good, but the entries are {entries}")
        self._fsck()

    def _upgrade(self, note):
        self.guest.check(insecure(self.registry) + """echo edited >/etc/issue && rm /etc/removed-later.conf &&
            echo kept >/etc/added.conf && echo mine >/var/lib/cfs-test/mine""")
        self._push("better")
        took = self._reboot("cfs-update upgrade --apply")
        self.better, version = self._booted()
        expect(version == "better" and self.better != self.good, f"version {version} runs")
        seen = self.guest.check("""cat /etc/issue /etc/added.conf /var/lib/cfs-test/mine /var/lib/cfs-test/from-image
            ls /etc/removed-later.conf 2>&1 || :""")
        expect(seen.startswith("edited\nkept\nmine\nfrom the first image\n") and "No such file" in seen, seen)
        self._settled()
        expect(all("+" not in entry for entry in self._entries()), f"entries {self._entries()}")
        line = self.guest.check("cat /proc/cmdline")
        expect("mitigations=off" in line and " rw " in line, f"the host's kernel arguments are gone: {line}")
        note(f"{took:.0f} s from upgrade to the agent of the new version; {self._fsck()}")

    def _rollback(self, note):
        took = self._reboot("cfs-update rollback --apply")
        digest, version = self._booted()
        expect(digest == self.good, f"version {version} runs")
        seen = self.guest.check("cat /etc/added.conf /var/lib/cfs-test/mine 2>&1 || :")
        self._settled()
        code, output = self.guest.run("cfs-update auto run")
        expect(code == 77, f"auto run ended with {code}: {output}")
        note(f"{took:.0f} s; /etc and /var: {' '.join(seen.split())[:60]}; {self._fsck()}")

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

    def _replaced(self, note):
        self.images.version("replaced")
        self._push("replaced")
        self.guest.check("cfs-update upgrade", timeout=300)
        staged = self.guest.check("ls -t /sysroot/state/deploy").split()[0]
        expect(staged not in (self.good, self.better), "nothing was staged")
        path = f"/sysroot/composefs/objects/{staged[:2]}/{staged[2:]}"
        self.guest.check(f"cp {path} /run/image && rm {path} && cp /run/image {path} && sync")
        mark = len(self.guest.console())
        took = self._reboot()
        digest, version = self._booted()
        expect(digest == self.good, f"version {version} runs")
        console = self.guest.console()[mark:]
        expect("fs-verity" in console and staged[:12] in console, f"no refusal on the console:\n{console[-2000:]}")
        note(f"{took:.0f} s, {console.count('Linux version') or console.count('EFI stub')} kernels; "
             + next(line.strip() for line in console.splitlines() if "fs-verity" in line)[-110:])
        self.guest.check(f"cfs-update delete {staged} && cfs-update gc && cfs-update fsck", timeout=300)

    def _unhealthy(self, note):
        self._push("unhealthy")
        self.guest.send("cfs-update upgrade --apply")
        bad = self.guest.wait_ready(500)
        _, version = self._booted()
        expect(version == "unhealthy", f"version {version} runs")
        self.guest.send("true")
        back = self.guest.wait_ready(500)
        note(f"{bad:.0f} s to the bad one, {back:.0f} s back")
        self._is_remembered(note)

    def _is_remembered(self, note):
        """The version before runs, and what failed is known and left alone."""
        digest, version = self._booted()
        expect(digest == self.good, f"version {version} runs")
        self._settled()
        status = self.guest.check("cfs-update status")
        reason = [line.strip() for line in status.splitlines() if "ailed" in line]
        expect(reason, f"status does not say that anything failed:\n{status}")
        note(reason[-1])
        code, output = self.guest.run("cfs-update auto run")
        expect(code == 77, f"auto run ended with {code}: {output}")
        code, output = self.guest.run("cfs-update upgrade")
        expect(code == 1 and "--retry" in output, f"upgrade ended with {code}: {output}")
        self._fsck()

    def _panics(self, note):
        self._push("panics")
        mark = len(self.guest.console())
        took = self._reboot("cfs-update upgrade --apply")
        digest, version = self._booted()
        panics = self.guest.console()[mark:].count("Kernel panic")
        expect(digest == self.good, f"version {version} runs")
        expect(panics == 3, f"{panics} panics instead of 3")
        note(f"{took:.0f} s, {panics} panics")
        self._is_remembered(note)

    def _power_cuts(self):
        """The machine loses its power at random moments of an upgrade."""
        seed = int(time.time())
        chance, span = random.Random(seed), None
        for number in range(CUTS):
            with self.report.step(f"power cut {number + 1} of {CUTS} during an upgrade: old or new boots") as note:
                self._running()
                old, _ = self._booted()
                name = f"cut-{number}"
                self.images.version(name)
                self._push(name)
                if span is None:
                    began = time.monotonic()
                    self.guest.check("cfs-update upgrade", timeout=300)
                    span = time.monotonic() - began
                    new, moment = self.guest.check("ls -t /sysroot/state/deploy").split()[0], span
                else:
                    moment = chance.uniform(0, 1.1 * span)
                    self.guest.send("cfs-update upgrade")
                    time.sleep(moment)
                self.guest.kill()
                self.guest.start()
                took = self.guest.wait_ready()
                digest, version = self._booted()
                expect(digest == old or version == name, f"neither old nor new: {version}")
                note(f"after {moment:.1f} of {span:.1f} s: {'old' if digest == old else 'new'} in {took:.0f} s; "
                     f"{self._fsck()}; seed {seed}")
