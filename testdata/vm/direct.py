"""A guest without firmware: QEMU itself starts the image's kernel and initramfs, and the agent is the first process.

It is what the scenario `store` works in and what installs the machines of the others: the same image as everywhere, in a
plain ext4 that is never changed.
"""

import pathlib
import subprocess
import threading

import disk
import image
from qemu import Disk, Guest

APPEND = ("root=/dev/vda rw console=ttyS0,115200 panic=1 quiet loglevel=5 audit=0 mitigations=off "
          "init=/usr/lib/cfs-test/agent.sh -- init")
# Scenarios side by side share the base image and the guests' root, which the first one makes.
SHARED = threading.Lock()


class Machine:
    """The image (tag `1` of `layout`, with its `layers`), its files in `tree`, and guests that run it.

    `name`: the scenario, whose folder below `work` gets a layout of its own.
    """

    def __init__(self, work, name):
        with SHARED:
            base = image.base(work)
            self.layout = image.Layout.new(work / name / "oci")
            self.layers = base.layers("13")
            self.layout.take(base, self.layers)
            self.layers.append(self.layout.put_layer(image.tar_layer(agent_files())))
            digest = self.layout.tag("1", self.layers, "1", image.created(1))
            self.tree, self.root, mark = work / "tree", work / "root.img", work / "root.key"
            if not mark.exists() or mark.read_text() != digest:
                mark.unlink(missing_ok=True)
                subprocess.run(["rm", "-rf", self.tree], check=True)
                self.layout.unpack("1", self.tree)
                disk.ext4(self.root, 500, self.tree)
                mark.write_text(digest)
        modules = next((self.tree / "usr/lib/modules").iterdir())
        self.kernel, self.initrd = modules / "vmlinuz", modules / "initramfs.img"

    def guest(self, folder, disks):
        """A machine whose /dev/vda is the image's root, forgotten at its end; `disks` are /dev/vdb and so on."""
        return Guest(folder, [Disk(self.root, snapshot=True), *disks], self.kernel, self.initrd, APPEND)


def agent_files():
    """The layer that makes an image testable: the agent, and two files that a second version changes."""
    agent = (pathlib.Path(__file__).parent / "agent.sh").read_text()
    return {"usr/lib/cfs-test": None, "usr/lib/cfs-test/agent.sh!": agent, "usr/share/cfs-test": None,
            "usr/share/cfs-test/old": "old\n" * 1000, "etc/issue": "version 1\n"}
