"""A real Slurm of several nodes on one machine: munged, slurmctld, and a slurmd per node in namespaces of its own.

A node is a network namespace (own address, own 127.0.0.1), a host name and a mount namespace (own /dev/shm, own
`scratch/local`), so that what only works on one machine fails here as it would on a cluster.  Needs root and Debian's
slurm-wlm, slurm-client, munge, iproute2; for ssh between nodes openssh-server.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "ip", "nsenter", "unshare", "setpriv")
BRIDGE, NETWORK, CONTROLLER = "mtbr0", "10.78.0", "mtctl"

_CONF = """\
ClusterName=memtrain
SlurmctldHost={controller}({network}.1)
SlurmctldPort=16917
SlurmdPort=16918
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=8
MinJobAge=3600
KillWait=30
CompleteWait=0
TCPTimeout=5
MessageTimeout=10
BatchStartTimeout=20
JobRequeue=1
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=n[1-{count}] NodeAddr={network}.[11-{last}] Port=16918 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=08:00:00 DefaultTime=00:30:00 PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=08:00:00 DefaultTime=00:30:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=08:00:00 DefaultTime=00:30:00 PriorityTier=100 PreemptMode=OFF
"""

_SSHD = """\
ListenAddress 0.0.0.0
HostKey {root}/ssh/host
AuthorizedKeysFile {root}/ssh/user.pub
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
LogLevel ERROR
"""

_SSH = """\
Host *
  IdentityFile {root}/ssh/user
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def why_not() -> str:
    """What is missing for a sandbox here, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"{', '.join(missing)} not installed (Debian: tests/slurm/install.sh)"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], check=True, capture_output=True)
        return ""
    return "this machine lets nobody make namespaces"


def until(condition: Callable[[], object], seconds: float, what: str, pause: float = 0.1) -> None:
    """Ask until `condition` holds; `what` is named after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(pause)


@dataclass
class Sandbox:
    """`start` brings it up within seconds, `stop` leaves nothing."""

    root: Path
    count: int = 2
    cpus: int = 4
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        return [f"n{i}" for i in range(1, self.count + 1)]

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.root / "slurm.conf")}

    def start(self) -> None:
        self._lock = Path("/run/lock/memtrain-slurm").open("w")  # noqa: SIM115 - held as long as this process lives
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError("another Slurm of these tests runs on this machine; wait for its end") from None
        for name in ("log", "state", "spool", "munge", "scratch/local", "ssh"):
            (self.root / name).mkdir(parents=True)
        self.root.chmod(0o755)
        self._remove_network()
        self._make_network()
        settings = {"controller": CONTROLLER, "network": NETWORK, "root": self.root, "count": self.count}
        conf = _CONF.format(**settings, last=10 + self.count, cpus=self.cpus)
        (self.root / "slurm.conf").write_text(conf)
        self._start_munge()
        controller = f"hostname {CONTROLLER} && exec slurmctld -D -f {self.root}/slurm.conf"
        self._daemon("slurmctld", ["unshare", "--uts", "sh", "-c", controller])
        until(lambda: "UP" in self.ask("scontrol", "ping"), 20, "slurmctld answers")
        for node in self.nodes:
            self.start_node(node)
        self.until_idle()

    def start_node(self, node: str) -> None:
        """slurmd in the node's namespaces; again after `kill_node`."""
        (self.root / "spool" / node).mkdir(exist_ok=True)
        script = f"""
            hostname {node}
            mount --bind {self.root}/hosts /etc/hosts
            mount --bind {self.root}/nsswitch.conf /etc/nsswitch.conf
            mount -t tmpfs -o size=64m tmpfs {self.root}/scratch/local
            mount -t tmpfs -o mode=1777 tmpfs /dev/shm
            exec slurmd -D -N {node} -f {self.root}/slurm.conf"""
        inside = ["nsenter", f"--net=/run/netns/mt-{node}", "unshare", "--uts", "--mount", "sh", "-ec", script]
        self._daemon(node, inside)

    def start_sshd(self) -> None:
        """An sshd on every node, and `ssh` in `root/bin` that may log in there."""
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.root / "ssh" / name)], check=True
            )
        hosts = "".join(f"Host {n}\n  HostName {self.address(n)}\n" for n in self.nodes)
        (self.root / "ssh" / "config").write_text(hosts + _SSH.format(root=self.root))
        (self.root / "ssh" / "sshd_config").write_text(_SSHD.format(root=self.root))
        (self.root / "bin").mkdir()
        wrapper = self.root / "bin" / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.root}/ssh/config "$@"\n')
        wrapper.chmod(0o755)
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's empty folder; Debian's service makes it
        for node in self.nodes:
            sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", f"{self.root}/ssh/sshd_config"]
            self._daemon(f"sshd-{node}", self.inside(node, *sshd))
            until(partial(self._ssh_answers, node), 10, f"sshd on {node}")

    def _ssh_answers(self, node: str) -> bool:
        return subprocess.run([self.root / "bin" / "ssh", node, "true"], capture_output=True).returncode == 0

    def inside(self, node: str, *command: str) -> list[str]:
        """The command line that runs `command` on the node, beside its slurmd."""
        return ["nsenter", "--target", str(self._daemons[node].pid), "--net", "--uts", "--mount", *command]

    def address(self, node: str) -> str:
        return f"{NETWORK}.{10 + int(node[1:])}"

    def kill_node(self, node: str) -> None:
        """As when the power goes: everything on it is gone at once."""
        listed = subprocess.run(["ip", "netns", "pids", f"mt-{node}"], capture_output=True, text=True).stdout
        for pid in listed.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self._daemons.pop(node).wait()

    def ask(self, *command: str) -> str:
        """What a Slurm command prints; empty where it fails."""
        env = os.environ | self.environment
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30).stdout

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        text = self.ask("scontrol", "-o", "show", "job", job_id)
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def node_state(self, node: str) -> str:
        return self.ask("sinfo", "-h", "-n", node, "-p", "main", "-o", "%t").strip()

    def until_idle(self) -> None:
        """All nodes are free and well."""
        until(lambda: all(self.node_state(node) == "idle" for node in self.nodes), 120, "idle nodes")

    def cancel_all(self) -> None:
        """No job is left, not even a completing one."""
        for job in self.ask("squeue", "-h", "-o", "%A").split():
            self.ask("scancel", job)
        until(lambda: not self.ask("squeue", "-h"), 30, "an empty queue")

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self.cancel_all()
        for node in self.nodes:
            if node in self._daemons:
                self.kill_node(node)
        for process in self._daemons.values():
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
        self._remove_network()

    def _daemon(self, name: str, command: list[str]) -> None:
        env = os.environ | self.environment
        bound = ["setpriv", "--pdeathsig", "KILL", *command]  # no daemon outlives the tests, however they end
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                bound, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _start_munge(self) -> None:
        key = self.root / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        folder = self.root / "munge"
        options = ["--foreground", "--force", f"--socket={folder}/socket", f"--key-file={key}"]
        options += [f"--pid-file={folder}/pid", f"--log-file={folder}/log", f"--seed-file={folder}/seed"]
        self._daemon("munged", ["munged", *options])
        ready = ["munge", "-S", str(folder / "socket"), "-n"]
        until(lambda: subprocess.run(ready, capture_output=True).returncode == 0, 10, "munged answers")

    def _make_network(self) -> None:
        hosts = [f"127.0.0.1 localhost\n{NETWORK}.1 {CONTROLLER}"] + [f"{self.address(n)} {n}" for n in self.nodes]
        (self.root / "hosts").write_text("\n".join(hosts) + "\n")
        names = "passwd: files\ngroup: files\nshadow: files\nhosts: files\n"  # no node asks a name server
        (self.root / "nsswitch.conf").write_text(names)
        _ip(f"link add {BRIDGE} type bridge")
        _ip(f"addr add {NETWORK}.1/24 dev {BRIDGE}")
        _ip(f"link set {BRIDGE} up")
        for node in self.nodes:
            _ip(f"netns add mt-{node}")
            _ip(f"link add mt{node} type veth peer name eth0 netns mt-{node}")
            _ip(f"link set mt{node} master {BRIDGE} up")
            _ip(f"-n mt-{node} addr add {self.address(node)}/24 dev eth0")
            _ip(f"-n mt-{node} link set eth0 up")
            _ip(f"-n mt-{node} link set lo up")

    def _remove_network(self) -> None:
        """Also what a killed test left: processes in our namespaces, the namespaces, the bridge."""
        listed = subprocess.run(["ip", "-json", "netns", "list"], capture_output=True, text=True).stdout
        for name in (entry["name"] for entry in json.loads(listed or "[]")):
            if not name.startswith("mt-n"):
                continue
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
            for pid in pids.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip(f"netns del {name}")
        if Path(f"/sys/class/net/{BRIDGE}").exists():
            _ip(f"link del {BRIDGE}")


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)
