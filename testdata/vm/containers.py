"""Scenario "containers": one store for the host and for containers, with Debian 13's own podman, on ext4 with fs-verity.

A guest without firmware, as in `store`. /dev/vdb is an ext4 that holds the store and podman's own storage, /dev/vdc a Debian 13
with podman: that runs in a mount namespace with /dev/vdc as its root, where the ext4 is at the same place as outside.
"""

import random
import re
import shlex
import subprocess
import time

import direct
import disk
import image
import store
from qemu import Disk
from report import expect

SYSROOT, SHELF = "/mnt/ext4", "/mnt/ext4/state/cfs-update/podman"
CONF = "/mnt/podman/etc/containers/storage.conf"
CFS = f"CONTAINERS_STORAGE_CONF={CONF} cfs-update --sysroot {SYSROOT} --boot {SYSROOT}/boot"
INSIDE = "nsenter --mount=/run/space/podman"
HOME, USERS = f"{SYSROOT}/home/app", f"{SYSROOT}/home/app/.local/share/containers/storage"
RUN = "run --rm --network=none --cgroups=disabled --pull=never"
MIB = 1 << 20
BIG, BIG_SIZE = "usr/share/cfs-test/big", 24 * MIB
# What a reader may fetch of folders and inodes of its own image.
LITTLE = MIB // 2
LATE_SIZE, RATE, CUT_AT = 14 * MIB, "1M", 9 * MIB
PREPARE = """set -e
    modprobe -a erofs overlay
    mkdir -p /mnt && mount -t tmpfs tmpfs /mnt && mkdir /mnt/ext4 /mnt/podman /mnt/host
    mount /dev/vdb /mnt/ext4 && mount /dev/vdc /mnt/podman
    mkdir -p {sysroot}/boot {home} /etc/containers && chmod 755 {home} && chown 1000:1000 {home}
    printf '[[registry]]\\nlocation = "{host}"\\ninsecure = true\\n' >/etc/containers/registries.conf
    cd /mnt/podman/etc && cp /etc/containers/registries.conf containers/
    printf '[storage]\\ndriver = "overlay"\\nrunroot = "/run/containers"\\ngraphroot = "{sysroot}/podman"\\n' >{conf}
    echo app:x:1000:1000::{home}:/bin/sh >>passwd && echo app:x:1000: >>group
    echo app:100000:65536 >subuid && cp subuid subgid
    mkdir -p /run/space && mount --bind /run/space /run/space && mount --make-private /run/space && : >/run/space/podman
    unshare --mount=/run/space/podman --propagation private sh -euc '
        cd /mnt/podman
        mkdir -p mnt/ext4 old
        mount --bind /mnt/ext4 mnt/ext4
        mount -t proc proc proc
        mount --rbind /dev dev
        mount -t sysfs sysfs sys
        mount -t cgroup2 cgroup2 sys/fs/cgroup
        mount -t tmpfs tmpfs run
        mkdir -p run/user/1000 && chown 1000:1000 run/user/1000
        pivot_root . old
        umount -l /old
        mount --make-rshared /'"""
# Where each reader stands after it has read: kilobytes from the disk, kilobytes in the page cache, pages of the files given.
FIGURES = """figures() {
        echo $(($(awk '{ print $3 }' /sys/block/vdb/stat) / 2)) $(awk '/^Cached:/ { print $2 }' /proc/meminfo) \\
        $(perl -e 'for (@ARGV) { open(F, "<", $_) or die "$_: $!"; my ($range, $out) = (pack("QQ", 0, 0), "\\0" x 40);
            syscall(451, fileno(F), $range, $out, 0) == 0 or die "cachestat: $!"; print unpack("Q", $out), "\\n" }' "$@"); }"""


def run(report, work, registry):
    """The whole scenario; `report` gets the rows."""
    with report.step("images in docker-registry; Debian 13 with podman on a disk", vital=True) as note:
        images = Images(work, registry)
        note(f"{len(images.names)} images")
    folder = work / "containers"
    disks = [Disk(disk.ext4(folder / "ext4.img", 1500)), Disk(images.podman, snapshot=True)]
    with images.machine.guest(folder, disks) as guest:
        Containers(report, guest, registry).run()
        with report.step("switched off; the file system is clean"):
            guest.check(f"{INSIDE} podman rm --all --force; umount /run/space/podman && umount /mnt/ext4 && sync")
            guest.kill()
            disk.check_ext4(disks[0].path)
        with report.step("no trouble of kernel or emulation on the console"):
            expect(not guest.trouble(), "\n".join(guest.trouble()[:5]))


class Images:
    """What is in the registry, and the disk that podman is on."""

    def __init__(self, work, registry):
        self.machine = direct.Machine(work, "containers")
        layout, noise = self.machine.layout, random.Random(0)
        folders = {"usr": None, "usr/share": None, "usr/share/cfs-test": None}
        host = [*self.machine.layers, layout.put_layer(image.tar_layer({**folders, BIG: noise.randbytes(BIG_SIZE)}))]
        script = "#!/bin/sh\n. /etc/os-release && echo a program on $ID\n"
        app = image.tar_layer({"usr": None, "usr/bin": None, "usr/bin/app!": script})
        shell = layout.put_layer(shell_layer(self.machine.tree))
        own = [layout.put_layer(many_files(number)) for number in range(4)]
        late = image.tar_layer({**folders, "usr/share/cfs-test/late": noise.randbytes(LATE_SIZE)})
        self.names = {"host": host, "app": [*host, app], "tool": [shell, host[-1]], "late": [late], "user": [shell, own[0]],
                      "own1": [shell, own[1]], "own2": [shell, own[1], own[2]], "own3": [shell, own[3]]}
        for name, layers in self.names.items():
            layout.tag(name, layers, "1", image.created(1))
            registry.push(layout, name, f"{name}:1")
        root = image.REPO / "target" / "podman-root"
        root.parent.mkdir(exist_ok=True)
        subprocess.run(["sh", image.REPO / "testdata" / "podman.sh", "make", root], check=True)
        self.podman = disk.ext4(work / "containers" / "podman.img", 700, root)


def shell_layer(tree):
    """A shell and `cat` of the image under test, with what they need."""
    lib = "usr/lib/x86_64-linux-gnu"
    files = {"usr": None, "usr/bin": None, "usr/lib": None, lib: None, "usr/lib64": None,
             "bin": ("->", "usr/bin"), "lib": ("->", "usr/lib"), "lib64": ("->", "usr/lib64"),
             "usr/bin/sh": ("->", "dash"), "usr/lib64/ld-linux-x86-64.so.2": ("->", f"../../{lib}/ld-linux-x86-64.so.2")}
    for name in ("usr/bin/dash", "usr/bin/cat", f"{lib}/libc.so.6", f"{lib}/ld-linux-x86-64.so.2"):
        files[f"{name}!"] = (tree / name).read_bytes()
    return image.tar_layer(files)


def many_files(number, count=600):
    """A layer of files that no other layer has, below /own."""
    files = {"own": None}
    for at in range(count):
        files[f"own/{number}.{at}"] = f"file {at} of layer {number}\n" * (20 + at * 7 % 400)
    return image.tar_layer(files)


class Containers:
    """The steps, one method each; they run in this order and each leaves the disk good for the next."""

    def __init__(self, report, guest, registry):
        self.report, self.guest, self.registry = report, guest, registry

    def run(self):
        """All of it."""
        report = self.report
        with report.step("the guest boots; podman has a root of its own", vital=True) as note:
            self.guest.start()
            self.guest.wait_ready()
            self._prepare()
            note(self._podman("--version").strip())
        with report.step("switch; a container's image with the host's layers fetches its own layer alone", vital=True) as note:
            self._pull(note)
        for title, step in [
            ("image expose: podman lists what the store has, and the host's system", self._expose),
            ("podman run, create, mount: programs and files, out of our objects", self._use),
            ("page cache: two containers of two images and the host share one copy of a file", self._share),
            ("rootless podman neither sees nor mounts the store; an exported image runs there", self._rootless),
            ("a layer of a user's own storage is copied, not linked", self._users),
            ("containers-storage: podman's files become objects by hard links; podman goes on with them", self._link),
            ("a pull from the registry takes the layer that podman has, and fetches none", self._known),
            ("podman rmi after, image prune during an import: it waits, and our store is whole", self._prune),
            ("every object has fs-verity, its digest is its name", self._objects),
            ("the power is cut in the middle of a slow download: it goes on where it was", self._cut),
            ("after that: podman runs from the store", lambda note: note(self._reads("own3", 3))),
        ]:
            with report.step(title) as note:
                step(note)

    # --- how ----------------------------------------------------------------------------------------------------------
    def _prepare(self):
        host = self.registry.name("").split("/")[0]
        self.guest.check(PREPARE.format(host=host, home=HOME, sysroot=SYSROOT, conf=CONF))

    def _cfs(self, arguments):
        return self.guest.check(f"{CFS} {arguments}", timeout=300)

    def _podman(self, arguments):
        return self.guest.check(f"{INSIDE} podman {arguments}", timeout=300)

    def _user(self, script):
        """Status and output of a script of an ordinary user, who has ids for a user namespace."""
        who = "setpriv --reuid=1000 --regid=1000 --clear-groups env -i PATH=/usr/bin:/usr/sbin"
        script = shlex.quote(f"cd; exec 2>&1; {script}")
        return self.guest.run(f"{INSIDE} {who} HOME={HOME} USER=app XDG_RUNTIME_DIR=/run/user/1000 sh -c {script}", timeout=300)

    def _name(self, name):
        return self.registry.name(f"{name}:1")

    def _listed(self, only=""):
        names = self._podman(f"images {only} --format '{{{{.Repository}}}} {{{{.ReadOnly}}}}'").split("\n")
        return sorted(line.split("/")[-1] for line in names if line)

    def _reads(self, name, layer):
        """Runs a container of an image of many files, which says what is in one of them."""
        line = self._podman(f"{RUN} {self._name(name)} sh -c 'read line </own/{layer}.7; echo $line'")
        expect(line == f"file 7 of layer {layer}\n", line)
        return line.strip()

    def _fsck(self):
        return self._cfs("fsck").strip().splitlines()[-1]

    def _fetched(self, begin, name):
        """Bytes of blobs that the program has fetched of an image since the registry's log was so long."""
        time.sleep(0.5)
        found = re.findall(rf'"GET /v2/{name}/blobs/\S+ HTTP/1.1" 20\d (\d+) "" "cfs-update/', self.registry.log()[begin:])
        return [int(size) for size in found]

    # --- images of the store in podman --------------------------------------------------------------------------------
    def _pull(self, note):
        self._cfs(f"switch {self._name('host')}")
        begin = len(self.registry.log())
        output = self._cfs(f"image pull {self._name('app')}")
        expect("6 layers, 5 of them here already" in output, output)
        fetched = self._fetched(begin, "app")
        expect(len(fetched) == 2 and sum(fetched) < 20000, f"{fetched}: not the config and one layer")
        self._cfs(f"image pull {self._name('tool')}")
        note(f"{sum(fetched)} bytes fetched")

    def _expose(self, note):
        output = self._cfs(f"image expose --storage-conf {CONF}")
        listed = self._listed()
        expect(listed == ["app true", "host true", "tool true"], f"{listed}\n{output}")
        size = int(self.guest.check(f"du -sk {SHELF}").split()[0])
        expect(size < 500, f"{size} kB: something was copied")
        note(f"{', '.join(listed)}; {size} kB of links and JSON")

    def _use(self, note):
        said = self._podman(f"{RUN} {self._name('app')} /usr/bin/app")
        expect(said == "a program on debian\n", said)
        script = "".join(f"podman create --name {name} {self._name(name)} sh >/dev/null; podman mount {name}; "
                         for name in ("app", "tool"))
        self.app, self.tool = self.guest.check(f"{INSIDE} sh -ec {shlex.quote(script)}", timeout=300).split()
        self.guest.check(f"{CFS} image mount --verity require $(ls {SYSROOT}/state/deploy) /mnt/host")
        for at in (self.app, self.tool):
            mount = self.guest.check(f"{INSIDE} grep ' {at} ' /proc/mounts")
            expect(f"::{SYSROOT}/composefs/objects" in mount, mount)
        sums = self.guest.check(f"""cd /mnt/host && sha256sum {BIG} usr/bin/dash;
            {INSIDE} sh -c 'for at in {self.app} {self.tool}; do cd $at && sha256sum {BIG} usr/bin/dash; done'""").split()
        expect(len(sums) == 12 and len(set(sums)) == 4, f"files differ: {sums}")
        note(said.strip())

    def _share(self, note):
        lines = self.guest.check(f"""{FIGURES}
            cd /mnt/host && digest=$(fsverity digest {BIG} | sed 's/sha256://; s/ .*//') && cd {SYSROOT}/composefs/objects
            object=$(echo $digest | cut -c 1-2)/$(echo $digest | cut -c 3-)
            sync; echo 3 >/proc/sys/vm/drop_caches
            # Programs first, then folders.
            figures $object >/dev/null; {INSIDE} cat /dev/null; cat /dev/null
            figures $object
            for at in {self.app} {self.tool}; do {INSIDE} cat $at/{BIG} >/dev/null; figures $object; done
            cat /mnt/host/{BIG} >/dev/null; figures $object /mnt/host/{BIG}""", timeout=300).strip().splitlines()
        rows = [[int(word) for word in line.split()] for line in lines]
        read = [1024 * (after[0] - before[0]) for before, after in zip(rows, rows[1:])]
        cached = [1024 * (after[1] - before[1]) for before, after in zip(rows, rows[1:])]
        told = f"read from disk {read}, page cache {cached} bytes more, {rows[-1][2]} pages of the object"
        expect(len(rows) == 4 and read[0] >= BIG_SIZE and max(read[1:]) <= LITTLE, told)
        expect(cached[0] >= BIG_SIZE and max(cached[1:]) <= LITTLE and sum(cached) < BIG_SIZE + 2 * MIB, told)
        expect(rows[0][2] < 64 and rows[-1][2] >= BIG_SIZE // 4096 and rows[-1][3] == 0, told)
        self.guest.check("umount /mnt/host")
        self._podman("rm --force app tool")
        note(told)

    # --- an ordinary user ---------------------------------------------------------------------------------------------
    def _rootless(self, note):
        tool = self._name("tool")
        expect(self._user("podman images --quiet") == (0, ""), "another user sees images of root's store")
        # podman says so to who names the store in settings of his own; if he could read it, the kernel would not mount it.
        here = f"podman --storage-opt=additionalimagestore={SHELF}"
        status, output = self._user(f"{here} images")
        expect(status == 125 and f"{SHELF}: permission denied" in output, f"{status} {output}")
        note(": ".join(output.strip().split(": ")[-2:]))
        folders = f"{SYSROOT}/state/cfs-update {SYSROOT}/composefs"
        self.guest.check(f"chmod 755 {folders}")
        listed = self._user(f"{here} images --format '{{{{.Repository}}}} {{{{.ReadOnly}}}}'")[1]
        status, output = self._user(f"{here} {RUN} {tool} sh -c 'echo it runs'")
        self.guest.check(f"chmod 700 {folders}")
        expect("/tool true" in listed, listed)
        expect(status == 126 and "erofs filesystem: operation not permitted" in output, f"{status} {output}")
        note(": ".join(output.strip().split(": ")[-2:]))
        self._cfs(f"image export {tool} oci-archive:{HOME}/tool.tar:mine")
        status, output = self._user(f"podman load --quiet --input tool.tar && podman {RUN} localhost/mine sh -c 'echo it runs'")
        expect(status == 0 and output.endswith("it runs\n"), f"{status} {output}")
        note(output.strip().splitlines()[-1])

    def _users(self, note):
        user = self._name("user")
        status, output = self._user(f"podman pull --quiet --tls-verify=false {user}")
        expect(status == 0, output)
        output = self._cfs(f"image pull 'containers-storage:[{USERS}]{user}'")
        note(self._taken(output, "0 files reflinked, 0 hard linked, 600 copied"))
        status, output = self._user(f"podman {RUN} {user} sh -c 'read line </own/0.7; echo $line'")
        expect((status, output) == (0, "file 7 of layer 0\n"), output)

    def _taken(self, output, how):
        line = next((line for line in output.splitlines() if "taken from podman" in line), output)
        expect(how in line, output)
        return line.split("taken from podman: ")[-1]

    # --- podman's storage ---------------------------------------------------------------------------------------------
    def _link(self, note):
        name = self._name("own1")
        self._podman(f"pull --quiet --tls-verify=false {name}")
        output = self._cfs(f"image pull containers-storage:{name}")
        note(self._taken(output, "0 files reflinked, 600 hard linked, 0 copied"))
        linked = self.guest.check(f"find {SYSROOT}/composefs/objects -type f -links 2 | wc -l").strip()
        expect(linked == "600", f"{linked} objects have two names")
        # One of them in podman's storage: nobody can write to it, a container gets a copy of its own.
        path = self.guest.check(f"ls {SYSROOT}/podman/overlay/*/diff/own/1.7").strip()
        status, output = self.guest.run(f"echo more >>{path}")
        expect(status != 0 and "Operation not permitted" in output, f"{status} {output}")
        self._same_twice(name)
        script = "echo more >>/own/1.7 && while read line; do last=$line; done </own/1.7; echo $last"
        said = self._podman(f"{RUN} {name} sh -c {shlex.quote(script)}")
        expect(said == "more\n", said)
        self._reads("own1", 1)

    def _same_twice(self, name):
        """podman takes the image of its own storage, not the one that we show it under the same name."""
        mounts = self.guest.check(f"""{INSIDE} sh -ec 'podman create --name twice {name} sh >/dev/null
            grep " $(podman mount twice) " /proc/mounts; podman rm --force twice >/dev/null'""", timeout=300)
        expect(f"lowerdir={SYSROOT}/podman/overlay/l/" in mounts, mounts)

    def _known(self, note):
        name = self._name("own2")
        self._podman(f"pull --quiet --tls-verify=false {name}")
        begin = len(self.registry.log())
        output = self._cfs(f"image pull {name}")
        fetched = self._fetched(begin, "own2")
        expect(len(fetched) == 1 and fetched[0] < 1000, f"{fetched}: not the config alone")
        note(self._taken(output, "600 hard linked, 0 copied"))
        note(f"{fetched[0]} bytes fetched")

    def _prune(self, note):
        name = self._name("own3")
        self._podman(f"rmi {self._name('own2')}")
        self._podman(f"pull --quiet --tls-verify=false {name}")
        output = self.guest.check(f"""set -e; locked() {{ grep -q "POSIX .*READ *$pull " /proc/locks; }}
            {CFS} image pull containers-storage:{name} >/run/pull 2>&1 & pull=$!
            until locked; do kill -0 $pull; sleep 0.02; done
            {INSIDE} podman image prune --all --force
            ! locked || echo not waited
            wait $pull; cat /run/pull""", timeout=300)
        expect("not waited" not in output, output)
        note(self._taken(output, "600 hard linked, 0 copied"))
        expect(self._listed("--filter readonly=false") == [], "not everything was pruned")
        for own, layer in [("own1", 1), ("own2", 2), ("own3", 3)]:
            self._reads(own, layer)
        note(self._fsck())

    def _objects(self, note):
        note(self.guest.check(store.MEASURE.format(SYSROOT), timeout=300).splitlines()[0])

    # --- a power cut --------------------------------------------------------------------------------------------------
    def _cut(self, note):
        pull = f"image pull --limit-rate {RATE} {self._name('late')}"
        self.guest.check(f"{CFS} {pull} >/run/late 2>&1 &")
        parts = f"cat /run/late; stat -c %s {SYSROOT}/composefs/cfs-update/parts/* 2>/dev/null || echo 0"
        for _ in range(60):
            output = self.guest.check(parts)
            if int(output.split()[-1]) >= CUT_AT:
                break
            time.sleep(0.3)
        else:
            expect(False, f"the download does not get on: {output}")
        self.guest.kill()
        self.guest.start()
        self.guest.wait_ready()
        self._prepare()
        self._cfs(f"image expose --storage-conf {CONF}")
        before = self._fsck()
        begin = len(self.registry.log())
        output = self._cfs(pull)
        fetched = sum(self._fetched(begin, "late"))
        line = next((line for line in output.splitlines() if "goes on at" in line), output)
        expect("goes on at" in line and fetched < LATE_SIZE - 2 * MIB, f"{fetched} bytes fetched: {output}")
        note(f"{fetched} of {LATE_SIZE} bytes fetched after it; {line[line.index('goes on'):]}")
        note(f"{before}; then {self._fsck()}")
