"""Scenario "store": fs-verity, FAT and btrfs on a kernel that has them, without firmware and systemd.

The guest boots the image's own kernel and initramfs from a read-only ext4, with the agent as its first process, and works
on blank disks: /dev/vdb ext4 with fs-verity, /dev/vdc FAT, /dev/vdd btrfs.
"""

import hashlib
import os
import pathlib

import direct
import disk
import image
import machine
from qemu import Disk
from report import expect

FOLLOWED, SMALL = "store:latest", "small:latest"
EXT4 = "cfs-update --sysroot /mnt/ext4 --boot /mnt/vfat"
# Paths whose metadata a mounted image has from elsewhere by design: docs/formats.md, "From layers to a deployment's tree".
TRANSFORMED = {"", "boot", "run", "sysroot"}


def run(report, work, registry):
    """The whole scenario; `report` gets the rows."""
    with report.step("images: two versions, and a small one, in docker-registry", vital=True) as note:
        images = Images(work)
        registry.push(images.layout, "1", FOLLOWED)
        registry.push(images.layout, "small", SMALL)
        note(f"{images.files} files")
    folder = work / "store"
    disks = [Disk(disk.ext4(folder / "ext4.img", 1500)), Disk(disk.vfat(folder / "vfat.img", 300)),
             Disk(disk.btrfs(folder / "btrfs.img", 500)), Disk(images.papers, readonly=True)]
    with images.machine.guest(folder, disks) as guest:
        Store(report, guest, registry, images).run()
        with report.step("switched off; the file systems are clean"):
            guest.check("umount /mnt/ext4 /mnt/vfat /mnt/btrfs; sync")
            guest.kill()
            disk.check_ext4(disks[0].path)
            disk.check_vfat(disks[1].path)
        with report.step("no trouble of kernel or emulation on the console"):
            expect(not guest.trouble(), "\n".join(guest.trouble()[:5]))


class Images:
    """The image under test, its second version, a small one; the guest's root; what the files must be."""

    def __init__(self, work):
        self.machine = direct.Machine(work, "store")
        self.layout = self.machine.layout
        second = image.tar_layer({"etc/issue": "version 2\n", "usr/share/cfs-test/new": "new\n" * 1000,
                                  "usr/share/cfs-test/.wh.old": ""})
        self.layers = self.machine.layers
        self.layout.tag("2", self.layers + [second], "2", image.created(2))
        self.layout.tag("small", [small_layer(2500)], "1", image.created(1))
        sums, self.listing = measure(self.machine.tree)
        self.files = len(sums)
        self.papers = disk.papers(work / "store" / "papers.img", {"sums": "".join(sums)})


def small_layer(count):
    """An image that is quick to import: no kernel that runs, `count` objects of many sizes."""
    modules = "usr/lib/modules/6.12.1-small/"
    files = {"usr": None, "boot": None, "sysroot": None, "usr/lib/os-release": "ID=small\nVERSION_ID=1\n", "etc/small.conf": "small = 1\n",
             modules + "vmlinuz": "stands for a kernel\n" * 100, modules + "initramfs.img": "and for an initrd\n" * 100}
    for number in range(count):
        files[f"usr/share/small/{number % 30}/{number}"] = f"file {number} of the test\n" * (4 + number * 7 % 200)
    return image.tar_layer(files)


def measure(tree):
    """Of the tree that GNU tar extracted: lines for `sha256sum -c`, and {path: metadata}."""
    sums, listing = [], {}
    tree = os.fsencode(tree)
    for folder, folders, files in os.walk(tree):
        for name in folders + files:
            path = os.path.join(folder, name)
            short, stat = os.fsdecode(os.path.relpath(path, tree)), os.lstat(path)
            kind = {0o040000: "d", 0o100000: "f", 0o120000: "l"}.get(stat.st_mode & 0o170000, "?")
            size = stat.st_size if kind != "d" else 0
            link = os.readlink(path).decode(errors="surrogateescape") if kind == "l" else ""
            count = stat.st_nlink if kind == "f" else 1
            listing[short] = (kind, f"{stat.st_mode & 0o7777:o}", str(stat.st_uid), str(stat.st_gid), str(size),
                              str(count), str(int(stat.st_mtime)), link)
            if kind == "f":
                digest = hashlib.sha256(pathlib.Path(os.fsdecode(path)).read_bytes()).hexdigest()
                sums.append(f"{digest}  {short}\n")
    return sums, listing


LIST = r"""cd /mnt/root && find . -mindepth 1 \( -type d -printf '%P\t%y\t%m\t%U\t%G\t0\t1\t%Ts\t\n' \) -o \
    \( -type f -printf '%P\t%y\t%m\t%U\t%G\t%s\t%n\t%Ts\t\n' \) -o -printf '%P\t%y\t%m\t%U\t%G\t%s\t1\t%Ts\t%l\n'"""
# Every file below objects/ against what the kernel measures: prints how many, and each that differs.
MEASURE = """cd {0}/composefs/objects && find . -type f -printf '%P\\n' | xargs fsverity measure |
    sed -e 's/^sha[0-9]*://' | awk '{{ name = $2; sub("/", "", name); n++; if (name != $1) {{ print; bad = 1 }} }}
    END {{ print n " objects measured"; exit bad }}' && find . -type f | wc -l"""


class Store:
    """The steps, one method each; they run in this order and each leaves the disks good for the next."""

    def __init__(self, report, guest, registry, images):
        self.report, self.guest, self.registry, self.images = report, guest, registry, images
        self.first = self.object = None

    def run(self):
        """All of it."""
        report = self.report
        with report.step("the guest boots its own kernel and dracut initramfs", vital=True) as note:
            self.guest.start()
            note(f"{self.guest.wait_ready():.0f} s to the agent")
            self._prepare()
            note(self.guest.check("uname -r").strip())
        with report.step("switch to Debian 13 on ext4, boot entries on FAT", vital=True) as note:
            self._switch(note)
        for title, step in [
            ("ext4: every object has fs-verity, its digest is its name", self._objects),
            ("fsck of the whole store", lambda note: note(self._fsck())),
            ("mount --verity require: every file and its metadata are the layers'", self._compare),
            ("a flipped byte on the disk is EIO, not garbage; fsck names it and mends it", self._flip),
            ("an object without fs-verity in an object's place is EIO", self._replace),
            ("--verity off shows it, --verity try does not", self._off_and_try),
            ("a wrong --digest, or a file without fs-verity, is refused before mounting", self._digest),
            ("--verity require is refused where there is no fs-verity", self._no_verity),
            ("FAT: names, one kernel for two versions; upgrade, status, rollback, gc, fsck", self._boot_entries),
            ("FAT: the same after a remount, clean in between", self._remount),
            ("FAT: the power is cut as soon as a rollback has returned: its entry is whole", self._cut),
            ("FAT full or read-only: refused, nothing changes", self._no_room),
            ("a clock at 1970: upgrade, rollback, gc and fsck work", self._old_clock),
            ("a repository with SHA-512 digests", self._sha512),
            ("btrfs: objects with fs-verity, mounted with verity", self._btrfs),
            ("system calls for each object, fs-verity included", self._calls),
        ]:
            with report.step(title) as note:
                step(note)

    # --- preparation --------------------------------------------------------------------------------------------------
    def _prepare(self):
        host = self.registry.name("").split("/")[0]
        self.guest.check(f"""set -e
            modprobe -a erofs overlay vfat btrfs nls_ascii nls_cp437 || :
            mkdir -p /mnt && mount -t tmpfs tmpfs /mnt && mkdir /mnt/ext4 /mnt/vfat /mnt/btrfs /mnt/root /mnt/papers
            mount /dev/vdb /mnt/ext4 && mount /dev/vdc /mnt/vfat && mount /dev/vdd /mnt/btrfs
            tar -C /mnt/papers -xf /dev/vde
            mkdir -p /etc/containers
            printf '[[registry]]\\nlocation = "{host}"\\ninsecure = true\\n' >/etc/containers/registries.conf""")

    def _switch(self, note):
        output = self.guest.check(f"{EXT4} switch {self.registry.name(FOLLOWED)}", timeout=600)
        note(output.strip().splitlines()[-1])
        self.first = self._deployments()[0]

    def _deployments(self, command=EXT4):
        """Ids of the deployments, newest first."""
        return self.guest.check(f"cd {command.split()[2]}/state/deploy && ls -t").split()

    # --- fs-verity ----------------------------------------------------------------------------------------------------
    def _objects(self, note, sysroot="/mnt/ext4"):
        lines = self.guest.check(MEASURE.format(sysroot), timeout=300).strip().splitlines()
        expect(len(lines) == 2 and lines[0].split()[0] == lines[1], "\n".join(lines[:5]))
        expect(int(lines[1]) > 100, f"only {lines[1]} objects")
        note(lines[0])

    def _fsck(self, command=EXT4, status=0):
        got, output = self.guest.run(f"{command} fsck", timeout=300)
        expect(got == status, f"fsck ended with {got} instead of {status}:\n{output[-1500:]}")
        return output.strip().splitlines()[-1]

    def _mount(self, options="--verity require", command=EXT4, what=None):
        self.guest.check("! mountpoint -q /mnt/root || umount /mnt/root")
        self.guest.check(f"{command} image mount {options} {what or self.first} /mnt/root")

    def _unmount(self):
        self.guest.check("umount /mnt/root")

    def _compare(self, note):
        self._mount()
        self.guest.check("grep ' /mnt/root ' /proc/mounts | grep 'verity=require'")
        output = self.guest.check("cd /mnt/root && sha256sum --quiet -c /mnt/papers/sums && echo same", timeout=300)
        expect(output == "same\n", output[:1000])
        found = {}
        for line in self.guest.check(LIST).splitlines():
            path, *meta = line.split("\t")
            found[path] = tuple(meta)
        for path in TRANSFORMED:
            found.pop(path, None)
        wanted = {path: meta for path, meta in self.images.listing.items() if path not in TRANSFORMED}
        wrong = [(path, wanted.get(path), found.get(path))
                 for path in sorted(wanted.keys() | found.keys()) if wanted.get(path) != found.get(path)]
        expect(not wrong, f"{len(wrong)} entries differ: {wrong[:3]}")
        self._unmount()
        note(f"{len(found)} entries, {self.images.files} files")

    def _victim(self):
        """A file that is an object of some blocks, with the object's path."""
        script = f"""cd /mnt/root && file=usr/bin/find && echo $file && fsverity digest $file | sed 's/sha256://;s/ .*//'"""
        if self.object is None:
            self._mount()
            name, digest = self.guest.check(script).split()
            self._unmount()
            self.object = name, f"/mnt/ext4/composefs/objects/{digest[:2]}/{digest[2:]}"
        return self.object

    def _flip(self, note):
        name, path = self._victim()
        lines = self.guest.check(f"filefrag -v {path}").splitlines()
        block = int(next(line for line in lines if line.strip().startswith("0:")).split(":")[2].split("..")[0])
        # One byte in the middle of the second block, on the raw disk, behind the file system's back.
        flip = f"""set -e; sync
            at=$(({block} * 4096 + 6000))
            old=$(dd if=/dev/vdb bs=1 skip=$at count=1 2>/dev/null | od -An -tu1)
            printf "\\\\$(printf %03o $((old ^ 255)))" | dd of=/dev/vdb bs=1 seek=$at conv=notrunc,fsync 2>/dev/null
            blockdev --flushbufs /dev/vdb; echo 3 >/proc/sys/vm/drop_caches"""
        self._mount()
        before = self.guest.check(f"sha256sum /mnt/root/{name}")
        self.guest.check(flip)
        status, output = self.guest.run(f"cat /mnt/root/{name} | sha256sum; cat /mnt/root/{name} >/dev/null")
        expect(status != 0 and "Input/output error" in output, f"it could be read: {status} {output}")
        expect(before.split()[0] != output.split()[0], "the flip did not arrive")
        self._unmount()
        mended = self.guest.check(f"{EXT4} fsck --repair", timeout=600)
        digest = path.split("objects/")[1].replace("/", "")
        broken = next(line.strip() for line in mended.splitlines() if digest in line.replace("/", ""))[-100:]
        expect(f"Removed object {digest}" in mended and "Mended" in mended, mended[-1500:])
        self._mount()
        after = self.guest.check(f"sha256sum /mnt/root/{name}")
        expect(before == after, "not the same after the repair")
        self._unmount()
        self._objects(note)
        note(f"Input/output error; {broken}; mended")

    def _fsck_finds(self, path):
        got, output = self.guest.run(f"{EXT4} fsck", timeout=300)
        digest = path.split("objects/")[1].replace("/", "")
        expect(got == 1 and digest in output.replace("/", ""), f"fsck: {got}\n{output[-1000:]}")
        return next(line.strip() for line in output.splitlines() if digest in line.replace("/", ""))[-100:]

    def _replace(self, note):
        name, path = self._victim()
        self.guest.check(f"cp {path} /tmp/object && mv {path} {path}.kept && cp /tmp/object {path} && sync")
        self._mount()
        status, output = self.guest.run(f"cat /mnt/root/{name} >/dev/null")
        expect(status != 0 and "Input/output error" in output, f"it could be read: {status} {output}")
        self._unmount()
        note(self._fsck_finds(path))

    def _off_and_try(self, note):
        name, _ = self._victim()
        self._mount("--verity off")
        self.guest.check(f"cat /mnt/root/{name} >/dev/null")
        self._unmount()
        self._mount("--verity try")
        status, _ = self.guest.run(f"cat /mnt/root/{name} >/dev/null")
        self._unmount()
        expect(status != 0, "--verity try read an object without fs-verity though image and file system have it")
        path = self.object[1]
        sealed = self.guest.check(f"rm {path}.kept && {EXT4} fsck --repair", timeout=300)
        expect(f"Sealed object {path.split('objects/')[1].replace('/', '')}" in sealed, sealed[-1500:])
        self._objects(note)
        note(sealed.strip().splitlines()[-1])

    def _digest(self, note):
        self.guest.check("! mountpoint -q /mnt/root || umount /mnt/root")
        wrong = "0" * 63 + "1"
        status, output = self.guest.run(f"{EXT4} image mount --digest {wrong} {self.first} /mnt/root")
        expect(status == 3 and self.first in output, f"{status} {output}")
        note(output.strip()[-90:])
        copy = f"cp /mnt/ext4/composefs/objects/{self.first[:2]}/{self.first[2:]} /tmp/image && "
        store = "--digest-store /mnt/ext4/composefs/objects"
        status, output = self.guest.run(
            copy + f"cfs-update image mount --digest {self.first} {store} /tmp/image /mnt/root")
        expect(status == 3 and "fs-verity" in output, f"{status} {output}")
        status, _ = self.guest.run("mountpoint -q /mnt/root")
        expect(status != 0, "something is mounted")
        self._mount(f"--digest {self.first}")
        self._unmount()
        # An image with fs-verity, but another one than its name says.
        path = f"/mnt/ext4/composefs/objects/{self.first[:2]}/{self.first[2:]}"
        status, output = self.guest.run(f"""mv {path} {path}.kept && cp {path}.kept {path} && echo >>{path} &&
            fsverity enable {path} && {EXT4} image mount --verity require {self.first} /mnt/root""")
        self.guest.check(f"mv {path}.kept {path}")
        expect(status == 3 and "fs-verity digest is" in output, f"{status} {output}")

    def _no_verity(self, note):
        script = f"""set -e; mkdir -p /tmp/plain && cd /tmp/plain
            cfs-update --sysroot /tmp/plain image pull {self.registry.name(SMALL)} >/dev/null"""
        self.guest.check(script, timeout=300)
        command = "cfs-update --sysroot /tmp/plain"
        name = self.registry.name(SMALL)
        status, output = self.guest.run(f"{command} image mount --verity require {name} /mnt/root")
        mounted, _ = self.guest.run("mountpoint -q /mnt/root && umount /mnt/root")
        expect(status == 3 and mounted != 0, f"it was mounted: {status} {output}")
        note(output.strip()[-100:])
        self._mount("--verity try", command, name)
        self.guest.check("cat /mnt/root/usr/share/small/7/7 >/dev/null")
        self._unmount()
        self.guest.check("rm -rf /tmp/plain")

    # --- boot entries on FAT ------------------------------------------------------------------------------------------
    def _boot_entries(self, note):
        self.registry.push(self.images.layout, "2", FOLLOWED)
        self.guest.check(f"{EXT4} upgrade", timeout=300)
        status, _ = self.guest.run(f"{EXT4} upgrade")
        expect(status == 77, f"an upgrade with nothing new ended with {status}")
        names = self.guest.check("cd /mnt/vfat && find . -type f | sort").split()
        entries = [name for name in names if name.startswith("./loader/entries/")]
        kernels = [name for name in names if name.startswith("./cfs-update/")]
        expect(len(entries) == 2 and all("+03-00.conf" in name and "/cfs-" in name for name in entries), f"{entries}")
        expect(len(kernels) == 2 and {name.split("/")[-1] for name in kernels} == {"linux", "initrd"}, f"{kernels}")
        text = self.guest.check(f"cat /mnt/vfat/{sorted(entries)[-1]}")
        second = next(one for one in self._deployments() if one != self.first)
        expect(f"composefs.digest=v1-sha256-12:{second}" in text, text)
        self._next_is(second)
        self.guest.check(f"{EXT4} rollback")
        self._next_is(self.first)
        self.guest.check(f"{EXT4} rollback")
        self._next_is(second)
        self.guest.check(f"{EXT4} gc")
        note(f"{len(names)} files; {self._fsck()}")

    def _next_is(self, deployment):
        status = self.guest.json(f"{EXT4} status --json")["status"]
        found = [status.get(place) for place in ("staged", "booted", "rollback")]
        first = next(entry for entry in found if entry)
        expect(deployment in str(first), f"{deployment} is not next: {str(first)[:600]}")

    def _remount(self, note):
        script = "cd /mnt/vfat && find . -type f -exec sha256sum {} + | sort"
        before = self.guest.check(script)
        self.guest.check("umount /mnt/vfat")
        status, output = self.guest.run("fsck.vfat -n /dev/vdc")
        expect(status == 0, output)
        self.guest.check("mount /dev/vdc /mnt/vfat")
        expect(self.guest.check(script) == before, "other files or names than before")
        self._fsck()
        note(output.strip().splitlines()[-1])

    def _cut(self, note):
        """FAT keeps a file's size in the folder; a rename that is not followed by a sync of the file leaves it empty."""
        self.guest.check(f"{EXT4} rollback")
        self.guest.kill()
        self.guest.start()
        self.guest.wait_ready()
        # As systemd does before it mounts: takes away the mark that it was not unmounted (1: something was corrected).
        status, output = self.guest.run("fsck.vfat -a /dev/vdc")
        expect(status in (0, 1), output)
        self._prepare()
        sizes = self.guest.check("cd /mnt/vfat && find loader/entries cfs-update -type f -printf '%s %f\\n'").splitlines()
        expect(sizes and not any(line.startswith("0 ") for line in sizes), f"empty files: {sizes}")
        note(f"{len(sizes)} files; {self._fsck()}")

    def _no_room(self, note):
        """With an image whose kernel is not on $BOOT yet."""
        look = "find /mnt/vfat /mnt/ext4/state/deploy -maxdepth 4 -printf '%p %s %T@\\n' | sort"
        switch = f"{EXT4} switch {self.registry.name(SMALL)}"
        for prepare, code, words in [
            (machine.fill("/mnt/vfat"), 4, "bytes"),
            ("rm /mnt/vfat/fill; mount -o remount,ro /mnt/vfat", 1, "read-only"),
        ]:
            self.guest.run(prepare)
            before = self.guest.check(look)
            status, output = self.guest.run(switch, timeout=300)
            expect(status == code and words in output, f"after {prepare}: {status} {output}")
            expect(self.guest.check(look) == before, f"after {prepare}: something changed")
            note(output.strip().splitlines()[-1][-120:])
        self.guest.check("mount -o remount,rw /mnt/vfat")
        self._fsck()

    def _old_clock(self, note):
        """There is no systemd here that would set it right."""
        # The kernel lets no clock begin before itself.
        now = self.guest.check("date +%s; date -s @$(( $(cut -d. -f1 /proc/uptime) + 60 )) >/dev/null").strip()
        try:
            third = image.tar_layer({"etc/issue": "version 3\n"})
            self.images.layout.tag("3", [*self.images.layers, third], "3", image.created(3))
            self.registry.push(self.images.layout, "3", FOLLOWED)
            staged = self.guest.json(f"{EXT4} upgrade --json", timeout=300)["deployment"]
            self._next_is(staged)
            self.guest.check(f"{EXT4} rollback")
            self.guest.check(f"{EXT4} rollback")
            self._next_is(staged)
            self.guest.check(f"{EXT4} gc")
            note(f"{self.guest.check('date -u +%F').strip()}; {self._fsck()}")
        finally:
            self.guest.check(f"date -s @{now} >/dev/null")

    # --- other stores -------------------------------------------------------------------------------------------------
    def _sha512(self, note):
        self._other("/mnt/ext4/sha512", "--algorithm fsverity-sha512-12", 128, note)

    def _btrfs(self, note):
        self._other("/mnt/btrfs", "", 64, note)

    def _other(self, sysroot, options, digits, note):
        command = f"cfs-update --sysroot {sysroot} --boot {sysroot}/boot"
        self.guest.check(f"mkdir -p {sysroot}/boot && "
                         f"{command} switch {options} {self.registry.name(SMALL)}", timeout=300)
        deployment = self._deployments(command)[0]
        expect(len(deployment) == digits, f"{deployment} has not {digits} digits")
        self._objects(note, sysroot)
        self._mount(f"--digest {deployment}", command, deployment)
        content = self.guest.check("cat /mnt/root/usr/share/small/7/7")
        self._unmount()
        expect(content == "file 7 of the test\n" * (4 + 49), content[:100])
        note(self._fsck(command))

    def _calls(self, note):
        script = f"""cd /tmp && rm -rf /mnt/ext4/calls && mkdir /mnt/ext4/calls
            strace -f -c -o calls cfs-update --sysroot /mnt/ext4/calls image pull {self.registry.name(SMALL)} \\
                >/dev/null 2>&1 && cat calls && find /mnt/ext4/calls/composefs/objects -type f | wc -l"""
        lines = self.guest.check(script, timeout=300).splitlines()
        total = int(next(line for line in lines if line.endswith("total")).split()[3])
        # A debug build's library asks for each descriptor that it closes whether it is open.
        total -= sum(int(line.split()[3]) for line in lines if line.endswith(" fcntl"))
        objects = int(lines[-1])
        # Eight for an object (three of them for fs-verity), 512 for the folders, and what one run costs.
        expect(total < 8 * objects, f"{total} calls for {objects} objects\n" + "\n".join(lines[:25]))
        note(f"{total} calls for {objects} objects: {total / objects:.1f} each")
