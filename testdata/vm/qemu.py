"""One virtual machine: a QEMU process, its disks and a channel for commands.

Invariant: a `Guest` owns exactly one QEMU process and one folder; `kill` is the power cut, and after `with Guest(…)` no
process is left. The disks survive, so that the same machine can be switched on again.
"""

import base64
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import time

AGENT_PORT = "cfs.agent"
FIRMWARE = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
]
# Without cx16, since QEMU 7.2 crashes kernel 6.12 with it; without vector instructions that emulation makes slower than what
# they replace: SHA-256, and so fs-verity, is four times as fast without them.
PROCESSOR = "Nehalem,-cx16,-ssse3,-sse4.1,-sse4.2"
# Who ends us ends the machine, however that is done.
WITH_US = ["setpriv", "--pdeathsig", "KILL"]
# Of each machine. Two machines side by side with one processor each come further than one with two (docs/vm.md).
PROCESSORS = os.environ.get("CFS_VM_PROCESSORS", "1")
# What a kernel says when it, or the emulation under it, is in trouble.
TROUBLE = re.compile(r"Oops:|BUG:|double fault|general protection fault|soft lockup|rcu: INFO")
# Between two starts nothing but what clears the screen: all that a kernel or systemd writes has a "]".
HANG = re.compile(r"BdsDxe: starting [^\n]*\n[^\]\n]*BdsDxe: loading")


class GuestError(Exception):
    """The machine did not do what was asked of it."""


class Disk:
    """A disk image as the guest sees it: /dev/vda, /dev/vdb, … in the order of the list."""

    def __init__(self, path, snapshot=False, readonly=False):
        self.path, self.snapshot, self.readonly = pathlib.Path(path), snapshot, readonly

    def option(self):
        flags = [f"file={self.path}", "if=virtio", "format=raw", "cache=unsafe", "discard=unmap"]
        flags += ["snapshot=on"] if self.snapshot else []
        flags += ["readonly=on"] if self.readonly else []
        return ",".join(flags)


class Guest:
    """A machine that is switched on with `start` and off with `kill`."""

    def __init__(self, folder, disks, kernel=None, initrd=None, append="", memory=1024):
        """Its first boot has a console log and firmware variables of its own, whatever the folder held."""
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.disks, self.kernel, self.initrd, self.append = disks, kernel, initrd, append
        self.memory = memory
        self.serial = self.folder / "serial.log"
        for old in (self.serial, pathlib.Path(f"{self.serial}.now"), self.folder / "efivars.fd"):
            old.unlink(missing_ok=True)
        self.process = self.channel = self.clock = None
        self.buffer = b""
        self.agent_id = None
        self.requests = 0
        self.started = 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    # --- on and off ---------------------------------------------------------------------------------------------------
    def start(self, clock=None):
        """Switches the machine on; `clock`: what its hardware clock shows, such as 1970-01-01."""
        self.kill()
        self.clock = clock
        agent = self.folder / "agent.sock"
        agent.unlink(missing_ok=True)
        self.started = time.monotonic()
        with open(self.folder / "qemu.log", "ab") as log:
            self.process = subprocess.Popen(self._command(agent), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.channel = self._connect(agent)
        self.buffer = b""

    def kill(self):
        """Pulls the plug: nothing that the guest holds in memory is written any more."""
        if self.channel:
            self.channel.close()
            self.channel = None
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _command(self, agent):
        accel = os.environ.get("CFS_VM_ACCEL", "tcg")
        machine = ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", PROCESSOR]
        if accel != "tcg":
            machine = ["-accel", accel, "-cpu", "Nehalem"]
        command = [*WITH_US, "qemu-system-x86_64", "-machine", "q35", *machine, "-smp", PROCESSORS, "-m", str(self.memory)]
        command += ["-nodefaults", "-display", "none", "-serial", f"file:{self.serial}.now"]
        command += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]
        command += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]
        command += ["-chardev", f"socket,id=agent,path={agent},server=on,wait=off", "-device", "virtio-serial-pci"]
        command += ["-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"]
        command += ["-rtc", f"base={self.clock}"] if self.clock else []
        for disk in self.disks:
            command += ["-drive", disk.option()]
        if self.kernel:
            command += ["-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", self.append]
        else:
            command += self._firmware()
        self._keep_serial()
        return command

    def _firmware(self):
        code, variables = next(pair for pair in FIRMWARE if os.path.exists(pair[0]))
        own = self.folder / "efivars.fd"
        if not own.exists():
            shutil.copy(variables, own)
        drive = "if=pflash,format=raw,unit={},file={}{}"
        return ["-drive", drive.format(0, code, ",readonly=on"), "-drive", drive.format(1, own, "")]

    def _keep_serial(self):
        """QEMU truncates its log at each start; what was there moves to the whole log."""
        now = pathlib.Path(f"{self.serial}.now")
        if now.exists():
            with open(self.serial, "ab") as whole:
                whole.write(now.read_bytes())
            now.unlink()

    def _connect(self, path):
        for _ in range(200):
            if self.process.poll() is not None:
                raise GuestError(f"QEMU ended: {(self.folder / 'qemu.log').read_text()[-2000:]}")
            try:
                channel = socket.socket(socket.AF_UNIX)
                channel.connect(str(path))
                return channel
            except OSError:
                channel.close()
                time.sleep(0.05)
        raise GuestError("QEMU opens no channel")

    # --- talking ------------------------------------------------------------------------------------------------------
    def wait_ready(self, timeout=400):
        """Waits for the agent of the next boot; gives the seconds since the machine was switched on or rebooted."""
        deadline = time.monotonic() + timeout
        while True:
            words = self._line(deadline, "the agent does not start").split()
            if words[:1] == [str(self.requests)] and words[1] != "0":
                output = base64.b64decode("".join(words[2:])).decode(errors="replace")
                raise GuestError(f"status {words[1]} of what was to reboot: {output[-2000:]}")
            if len(words) == 2 and words[0] == "ready":
                if words[1] != self.agent_id:
                    self.agent_id = words[1]
                    took, self.started = time.monotonic() - self.started, time.monotonic()
                    return took

    def run(self, script, timeout=120):
        """Runs a shell script in the guest; gives its status and what it printed."""
        self.requests += 1
        request = f"{self.requests} {base64.b64encode(script.encode()).decode()}\n"
        self.channel.settimeout(timeout)
        self.channel.sendall(request.encode())
        deadline = time.monotonic() + timeout
        while True:
            words = self._line(deadline, f"no answer to: {script[:200]}").split()
            if words[:1] == ["ready"] and words[1:] != [self.agent_id]:
                raise GuestError(f"the guest rebooted while it ran: {script[:200]}")
            if words[:1] == [str(self.requests)]:
                output = base64.b64decode(words[2]) if len(words) > 2 else b""
                return int(words[1]), output.decode(errors="replace")

    def send(self, script):
        """Starts a shell script and does not wait: for what ends with a reboot or a power cut."""
        self.requests += 1
        request = f"{self.requests} {base64.b64encode(script.encode()).decode()}\n"
        self.channel.sendall(request.encode())
        self.started = time.monotonic()

    def check(self, script, timeout=120):
        """As `run`, for what must succeed; gives the output."""
        status, output = self.run(script, timeout)
        if status:
            raise GuestError(f"status {status} of: {script.strip()[:400]}\n{output[-4000:]}")
        return output

    def json(self, script, timeout=120):
        """What a command that must succeed printed as JSON."""
        output = self.check(script, timeout)
        try:
            return json.loads(output[output.index("{"):])
        except ValueError as error:
            raise GuestError(f"no JSON from {script!r}: {error}\n{output[-2000:]}") from error

    def _line(self, deadline, why):
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise GuestError(f"{why} (time limit); the console ends with:\n{self.console()[-3000:]}")
            self.channel.settimeout(left)
            try:
                data = self.channel.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise GuestError(f"{why}: QEMU is gone\n{self.console()[-3000:]}")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode(errors="replace")

    # --- the console --------------------------------------------------------------------------------------------------
    def console(self):
        """Everything that came over the serial console, all boots."""
        parts = [self.serial, pathlib.Path(f"{self.serial}.now")]
        return "".join(part.read_text(errors="replace") for part in parts if part.exists())

    def hangs(self, mark):
        """How often, since the console had `mark` characters, the firmware started a boot of which no kernel said a word. UEFI's
        watchdog resets the machine after five minutes."""
        return len(HANG.findall(self.console()[mark:]))

    def trouble(self):
        """Lines of the console that speak of a broken kernel or emulation rather than of a broken program."""
        return [line for line in self.console().splitlines() if TROUBLE.search(line)]
