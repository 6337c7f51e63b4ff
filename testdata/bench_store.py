"""What two versions of a host and a container image of the same distribution take on the disk: one store for all of them,
beside OSTree for the host and podman for the container.

The host's versions are those of bench_chunked: every twentieth file of version 2 is another one. The container's image is
made of the same packages without kernel, Go, Python and documentation, in one layer of its own, as another build makes it.
All three are layouts of uncompressed layers, so that nothing but what is kept differs.
"""

import os
import subprocess

from bench_chunked import layout, merge

APP = ("1-base", "2-lib", "5-share")


def taken(*paths):
    """Bytes on the disk."""
    out = subprocess.run(["du", "-s", "-c", "--block-size=1", *paths], stdout=subprocess.PIPE, check=True, text=True).stdout
    return int(out.splitlines()[-1].split()[0])


class Bench:
    """`tools`: what bench.py has (OUT, WORK, OURS, LAYERS, say, fresh, inside, peer, run)."""

    def __init__(self, tools):
        self.t = tools

    def measure(self):
        t = self.t
        folder = t["fresh"]("store")
        layers = {name: os.path.join(t["OUT"], "layers", name) for name in t["LAYERS"]}
        app = [path for name, path in layers.items() if name.removesuffix(".tar") in APP]
        tars = [(name, os.path.join(folder, f"{name}.tar")) for name in ("v1", "v2", "app")]
        for name, path in tars:
            merge(app if name == "app" else layers.values(), path, 0 if name == "v2" else None)
        ostree = self.ostree(folder, tars[:2])
        oci = os.path.join(folder, "oci")
        layout(oci, tars)
        ours = self.ours(oci)
        podman = self.podman(oci)
        t["say"]("\n### Store size\n\nMB on the disk.\n\n| | cfs-update | OSTree and podman | ratio |\n|---|---|---|---|")
        theirs = [ostree[0], ostree[1], ostree[1] + podman]
        for what, mine, other in zip(("host, version 1", "and version 2", "and a container's image"), ours, theirs):
            t["say"](f"| {what} | {mine / 1e6:.0f} | {other / 1e6:.0f} | {mine / other:.2f} |")

    def ours(self, oci):
        sysroot = self.t["fresh"]("ours")
        sizes = []
        for name in ("v1", "v2", "app"):
            self.t["run"]([self.t["OURS"], "--quiet", "--sysroot", sysroot, "image", "pull", f"oci:{oci}:{name}"])
            sizes.append(taken(os.path.join(sysroot, "composefs")))
        return sizes

    def ostree(self, folder, tars):
        """A repository as hosts have it: files are what deployments link to."""
        repository = os.path.join(folder, "ostree")
        command = lambda *arguments: self.t["run"](
            self.t["peer"]("ostree", f"--repo={self.t['inside'](repository)}", *arguments))
        os.mkdir(repository)
        command("init", "--mode=bare")
        sizes = []
        for name, path in tars:
            command("commit", f"--branch={name}", "--tar-autocreate-parents", f"--tree=tar={self.t['inside'](path)}")
            sizes.append(taken(repository))
        return sizes

    def podman(self, oci):
        root = os.path.join(self.t["WORK"], "podman")
        place = self.t["inside"](self.t["fresh"]("podman"))
        self.t["run"](self.t["peer"]("podman", "--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver",
                                     "overlay", "pull", "--quiet", f"oci:{self.t['inside'](oci)}:app"))
        return taken(os.path.join(root, "root"))
