"""What is in memory of a file that two containers and the host have: one store for all of them, beside podman's for the
containers and OSTree's for the host.

It comes after bench_store and takes what that made. Each reader is a process of its own, which says how much it had to fetch
from the disk; the pages that are in memory are those of the files on the disk that the readers led to.
"""

import json
import os
import subprocess

# In /proc/PID/io: what a process fetched from the disk.
READ = "read_bytes: "


class Bench:
    """`tools`: what bench.py has (OUT, WORK, PEERS, OURS, say, fresh, inside, peer)."""

    def __init__(self, tools):
        self.t = tools
        self.sysroot = os.path.join(tools["WORK"], "ours")

    def measure(self):
        name, size, stored = self.largest()
        self.t["say"](f"\n### Page cache\n\n{name}, {size} bytes, the largest file that the container's image and the host "
                      "both have. kB.\n\n| | cfs-update: from the disk | in memory | podman and OSTree: from the disk "
                      "| in memory |\n|---|---|---|---|---|")
        ours, theirs = self.ours(name, stored), self.theirs(name)
        for what, mine, other in zip(("a container reads it", "and a second one", "and the host"), ours, theirs, strict=True):
            self.t["say"](f"| {what} | {' | '.join(f'{bytes / 1e3:.0f}' for bytes in (*mine, *other))} |")

    def largest(self):
        """Name, size and object of the largest file that is the same in both images."""
        host, app = self.files("v1"), self.files("app")
        same = [(size, path, stored) for path, (size, stored) in app.items() if host.get(path) == (size, stored)]
        size, path, stored = max(same)
        return path, size, os.path.join(self.sysroot, "composefs/objects", stored)

    def files(self, image):
        """Size and object of each file by its path, of the composefs-dump text: path, size, mode, …, object in field 9."""
        lines = (line.split(" ") for line in self.cfs("image", "dump", self.name(image)).splitlines())
        return {words[0].lstrip("/"): (int(words[1]), words[8]) for words in lines if words[2].startswith("100") and words[8] != "-"}

    def ours(self, name, stored):
        shown = json.loads(self.cfs("--json", "image", "expose", "--no-storage-conf"))["images"]
        image = next(name for image in shown for name in image["names"] if name.endswith(":app"))
        # Its links are what they are on this machine.
        own = self.t["PEERS"] + self.t["OUT"]
        os.makedirs(own, exist_ok=True)
        subprocess.run(["mount", "--bind", self.t["OUT"], own], check=True)
        host = self.t["fresh"]("host")
        self.cfs("image", "mount", self.name("v1"), host, "--verity", "try")
        shelf = os.path.join(self.sysroot, "state/cfs-update/podman")
        place = self.t["fresh"]("beside")
        containers = self.containers(place, image, "--storage-opt", f"additionalimagestore={shelf}")
        figures = self.read([*containers, host], name, [stored])
        subprocess.run(["umount", host], check=True)
        self.unmount(place)
        return figures

    def theirs(self, name):
        host = os.path.join(self.t["WORK"], "store/checkout")
        repository = os.path.join(self.t["WORK"], "store/ostree")
        run = lambda *command: subprocess.run(self.t["peer"](*command), check=True, stdout=subprocess.PIPE, text=True).stdout
        run("ostree", f"--repo={self.t['inside'](repository)}", "checkout", "--require-hardlinks", "v1", self.t["inside"](host))
        place = os.path.join(self.t["WORK"], "podman")
        image = run(*self.podman(place), "images", "--quiet").split()[0]
        containers = self.containers(place, image)
        layers = os.path.join(place, "root/overlay")
        of_podman = [os.path.join(layers, layer, "diff", name) for layer in os.listdir(layers)]
        figures = self.read([*containers, host], name, [*filter(os.path.isfile, of_podman), os.path.join(host, name)])
        self.unmount(place)
        return figures

    def containers(self, place, image, *options):
        """Where two containers of an image are mounted."""
        command = self.podman(place, *options)
        for container in ("one", "two"):
            made = self.t["peer"](*command, "create", "--network", "none", "--name", container, image, "sh")
            subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        run = lambda container: subprocess.run(self.t["peer"](*command, "mount", container), check=True,
                                               stdout=subprocess.PIPE, text=True).stdout.strip()
        return [self.t["PEERS"] + run(container) for container in ("one", "two")]

    def unmount(self, place):
        """What podman mounted, which is there under its own root's name alone."""
        subprocess.run(["umount", "-R", f"{self.t['PEERS']}{self.t['inside'](place)}/root/overlay"], check=True)

    def podman(self, place, *options):
        place = self.t["inside"](place)
        return ["podman", "--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "overlay", *options]

    def read(self, folders, name, stored):
        """Bytes that each reader fetched from the disk, and bytes that are in memory after it."""
        os.sync()
        for path in stored:
            subprocess.run(["dd", f"if={path}", "iflag=nocache", "count=0", "status=none"], check=True)
        figures = []
        for folder in folders:
            said = subprocess.run(["cat", os.path.join(folder, name), "/proc/self/io"], check=True, stdout=subprocess.PIPE).stdout
            # What cat says of itself stands behind the file.
            fetched = int(said[-1000:].decode(errors="replace").rsplit(READ, 1)[1].split()[0])
            figures.append((fetched, sum(map(resident, stored))))
        return figures

    def name(self, image):
        return f"oci:{os.path.join(self.t['WORK'], 'store/oci')}:{image}"

    def cfs(self, *arguments):
        command = [self.t["OURS"], "--quiet", "--sysroot", self.sysroot, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def resident(path):
    """Bytes of a file that are in memory."""
    out = subprocess.run(["fincore", "--bytes", "--noheadings", "--output", "RES", path], check=True, stdout=subprocess.PIPE, text=True)
    return int(out.stdout)
