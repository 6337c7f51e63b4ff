"""Disk images without loop devices: files that mkfs, tar and the file system checkers work on directly."""

import pathlib
import subprocess


def run(*command, **options):
    """A tool of the host that must succeed; gives its output."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout


def blank(path, megabytes):
    """An empty, sparse file."""
    path = pathlib.Path(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(megabytes << 20)
    return path


def ext4(path, megabytes, tree=None):
    """An ext4 with fs-verity, filled from a folder."""
    path = blank(path, megabytes)
    run("mkfs.ext4", "-q", "-F", "-O", "verity", *(["-d", tree] if tree else []), path)
    return path


def vfat(path, megabytes):
    """A FAT file system over the whole disk."""
    path = blank(path, megabytes)
    run("mkfs.vfat", "-F", "32", "-n", "BOOT", path)
    return path


def btrfs(path, megabytes):
    """A btrfs over the whole disk."""
    path = blank(path, megabytes)
    run("mkfs.btrfs", "-q", path)
    return path


def papers(path, files):
    """A disk that is one tar file: {name: text} for the guest, which reads it with `tar -xf /dev/vdX`."""
    from image import tar_layer
    data = tar_layer(files)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data + b"\0" * (-len(data) % (1 << 20)))
    return path


def check_ext4(path):
    """What e2fsck says of a file system that it must not change; an error where it is not clean."""
    return run("e2fsck", "-fn", path)


def check_vfat(path):
    """The same for FAT."""
    return run("fsck.vfat", "-n", path)
