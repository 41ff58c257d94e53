"""Runs in a new process and becomes a container: standard library only, single-threaded, before anything of
Modal is imported.

`python launcher.py SPEC` reads a JSON file:

    mode            "isolated" or "shared"
    parent_pid      the server or its zygote; when it dies, so does the container
    cgroups         files into which a process writes "0" to join the container's control groups
    cwd             where user code starts
    hostname        in isolated mode
    fresh_monotonic in isolated mode: CLOCK_MONOTONIC and CLOCK_BOOTTIME begin near zero
    scratch         an empty directory of this container, the mount point of its new root
    binds           [{"target", "source", "read_only"}]: what the container sees at these absolute paths
    overlays        [{"target", "lower", "upper", "work", "options"}]: mounted at these directories of the
                    host before anything is bound, for this container only; a bind's source may be one
    foreign_path    entries of the interpreter's path that an image wouldn't have
    new_interpreter for a zygote: run the module in an interpreter of its own
    module          what runs, as `python -m` would
    argv            its arguments

Isolated mode makes three processes: this one waits in the host's pid namespace, pid 1 of the container reaps
orphans, and pid 2, the same number in every container, runs the module. The file tree is a new root in
memory with what an image has: the host's system directories, read-only, a /dev of the harmless devices, empty
directories where others are expected, and `binds`, on whose paths the directories are the container's own.
Nothing else of the host is there, and nothing is created on it. Shared mode has no namespaces: the module
runs as a child of this process, which as a sub-reaper finds and ends whatever user code leaves behind.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWTIME = 0x10000000, 0x20000000, 0x80
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    0x1, 0x2, 0x4, 0x8, 0x20, 0x1000, 0x4000, 0x40000,
)  # fmt: skip
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 0x1
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 24, 36
SYS_MOUNT_SETATTR = 442
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITIES_OF_ROOT = frozenset(
    {
        *(0, 1, 3, 4),  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID
        *(5, 6, 7, 8),  # KILL, SETGID, SETUID, SETPCAP
        *(10, 13, 18),  # NET_BIND_SERVICE, NET_RAW, SYS_CHROOT
        *(29, 31),  # AUDIT_WRITE, SETFCAP
    }
)
"""What root may do in a container: what container engines grant, without making device files. Nothing of it
mounts, loads modules, sets the clock or looks into others' processes. What Modal grants isn't documented.
"""
CAPABILITIES = 64
"""More than any kernel knows."""
KERNEL_SETTINGS = ("bus", "fs", "irq", "sys", "sysrq-trigger")
"""In /proc, and the machine's, whatever the namespace."""
EXIT_SETUP_FAILED = 125
SYSTEM_DIRECTORIES = frozenset(
    ("bin", "etc", "gnu", "lib", "lib32", "lib64", "libx32", "nix", "opt", "sbin", "sys", "usr")
)
"""What of the host's root a container sees."""
EMPTY_DIRECTORIES = ("boot", "home", "media", "mnt", "run", "srv")
DEVICES = ("full", "null", "random", "tty", "urandom", "zero")

Spec = dict[str, Any]
"""The contents of the JSON file."""
Run = Callable[[Spec], NoReturn]

_libc = ctypes.CDLL(None, use_errno=True)


def main(spec_path: str) -> NoReturn:
    """Become the container that the file describes; never returns."""
    with open(spec_path) as file:
        spec = json.load(file)
    become(spec, run_module)


def become(spec: Spec, run: Run) -> NoReturn:
    """Become the container that `spec` describes; `run` is what its own process does."""
    die_with_parent(signal.SIGKILL if spec["mode"] == "isolated" else signal.SIGTERM, spec["parent_pid"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for procs in spec["cgroups"]:
        _write(procs, "0")
    if spec["mode"] == "isolated":
        supervise_isolated(spec, run)
    supervise_shared(spec, run)


# -- shared mode


def supervise_shared(spec: Spec, run: Run) -> NoReturn:
    """Run the module as a child; end all that it leaves when it ends, or when the server does."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")

    def server_died(signum: int, frame: object) -> None:
        kill_descendants()
        os._exit(128 + signum)

    signal.signal(signal.SIGTERM, server_died)
    me = os.getpid()
    entry = os.fork()
    if entry == 0:
        die_with_parent(signal.SIGKILL, me)
        run(spec)
    code = reap_until(entry)
    kill_descendants()
    os._exit(code)


def kill_descendants() -> None:
    """SIGKILL every descendant of this process until there are none; orphans have become its children."""
    while children := _children(os.getpid()):
        pending = children
        while pending:
            pid = pending.pop()
            pending.extend(_children(pid))
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself meanwhile
        try:
            while os.waitpid(-1, 0)[0]:
                pass
        except ChildProcessError:
            pass  # all reaped; look again for what was forked in between


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


# -- isolated mode


def supervise_isolated(spec: Spec, run: Run) -> NoReturn:
    """Make the namespaces, start pid 1, wait for it."""
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
    if spec["fresh_monotonic"]:
        flags |= CLONE_NEWTIME
    uid, gid = os.getuid(), os.getgid()
    if uid != 0:
        flags |= CLONE_NEWUSER
    _check(_libc.unshare(flags), "unshare")
    if uid != 0:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    if spec["fresh_monotonic"]:
        # In force for children.
        offsets = [
            f"{name} -{int(time.clock_gettime(clock))} 0"
            for name, clock in (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME))
        ]
        _write("/proc/self/timens_offsets", "\n".join(offsets))
    init = os.fork()
    if init == 0:
        die_with_parent(signal.SIGKILL, 0)
        try:
            become_init(spec, run)
        except OSError as error:
            print(f"The container could not be set up: {error}", file=sys.stderr, flush=True)
            os._exit(EXIT_SETUP_FAILED)
    os._exit(reap_until(init))


def become_init(spec: Spec, run: Run) -> NoReturn:
    """Pid 1: host name, file tree, then the entry process; when that ends, the kernel ends all the others."""
    name = spec["hostname"].encode()
    _check(_libc.sethostname(name, len(name)), "sethostname")
    enter_root(spec["scratch"], spec["binds"], spec.get("overlays", ()))
    drop_capabilities(CAPABILITIES_OF_ROOT if os.getuid() == 0 else frozenset())
    entry = os.fork()
    if entry == 0:
        die_with_parent(signal.SIGKILL, 1)
        run(spec)
    os._exit(reap_until(entry))


def enter_root(scratch: str, binds: list[dict[str, Any]], overlays: Iterable[dict[str, str]] = ()) -> None:
    """Build the container's file tree and make it the root of this mount namespace."""
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    for overlay in overlays:
        layers = f"lowerdir={overlay['lower']},upperdir={overlay['upper']},workdir={overlay['work']}"
        _mount("overlay", overlay["target"], "overlay", 0, f"{layers},{overlay['options']}")
    _mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    tree: dict[str, Any] = {}
    for bind in binds:
        node = tree
        for part in bind["target"].strip("/").split("/"):
            node = node.setdefault("children", {}).setdefault(part, {})
        node["source"], node["read_only"] = bind["source"], bind.get("read_only", False)
    _make_devices(f"{scratch}/dev")
    _populate("/", scratch, tree)
    for name in EMPTY_DIRECTORIES:
        os.makedirs(f"{scratch}/{name}", exist_ok=True)
    os.mkdir(f"{scratch}/proc")
    _mount("proc", f"{scratch}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in KERNEL_SETTINGS:
        if os.path.exists(f"{scratch}/proc/{name}"):
            _bind_host(f"{scratch}/proc/{name}", f"{scratch}/proc/{name}")
    os.chdir(scratch)
    # pivot_root(".", ".") stacks the old root on the new one, from where it is detached.
    _check(_libc.syscall(SYS_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def _make_devices(target: str) -> None:
    """The devices that every image has, terminals and shared memory of its own."""
    for name in ("pts", "shm"):
        os.makedirs(f"{target}/{name}")
    for name in DEVICES:
        if os.path.exists(f"/dev/{name}"):
            _bind(f"/dev/{name}", f"{target}/{name}")
    _mount("devpts", f"{target}/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    _mount("shm", f"{target}/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    os.symlink("pts/ptmx", f"{target}/ptmx")
    os.symlink("/proc/self/fd", f"{target}/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{target}/{name}")


def _populate(host: str | None, target: str, node: dict[str, Any]) -> None:
    """Fill the directory `target` with what the host has at `host`, replaced by what `node` says."""
    children = node.get("children", {})
    try:
        entries = os.listdir(host) if host else []
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        entries = []  # the directory exists in the container only, or isn't ours to read
    for name in entries:
        if name in children or (host == "/" and name not in SYSTEM_DIRECTORIES):
            continue
        here, there = os.path.join(host or "/", name), os.path.join(target, name)
        if os.path.islink(here):
            os.symlink(os.readlink(here), there)
        else:
            _bind_host(here, there)
    for name, child in children.items():
        there = os.path.join(target, name)
        if "source" in child:
            _bind_tree(there, child)
        else:
            os.makedirs(there, exist_ok=True)
            hidden = host is None or (host == "/" and name not in SYSTEM_DIRECTORIES)
            _populate(None if hidden else os.path.realpath(os.path.join(host or "/", name)), there, child)


def _bind_tree(target: str, node: dict[str, Any]) -> None:
    """Bind a source and, into it, what lies below; the mount points for that are made in the source."""
    _bind(node["source"], target)
    for name, child in node.get("children", {}).items():
        _descend(os.path.join(target, name), child)
    if node["read_only"]:
        _make_read_only(target)


def _descend(target: str, node: dict[str, Any]) -> None:
    if "source" in node:
        _bind_tree(target, node)
        return
    os.makedirs(target, exist_ok=True)
    for name, child in node.get("children", {}).items():
        _descend(os.path.join(target, name), child)


def _bind_host(source: str, target: str) -> None:
    """Show something of the machine that no container may change, with all that is mounted there."""
    if not _bind(source, target):
        return
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        *(SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE),
        *(attributes, ctypes.sizeof(attributes)),
    )
    _check(result, f"mount {target} read-only")


def _bind(source: str, target: str) -> bool:
    """Whether `source` is at `target` now."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.lexists(target):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    try:
        _mount(source, target, None, MS_BIND | MS_REC)
    except OSError as error:
        # Sockets of dead processes, stale network mounts and the like in the host's root: not ours to repair.
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.ESTALE):
            raise
        return False
    return True


def _make_read_only(target: str) -> None:
    # A less privileged namespace must repeat the flags that its parent has locked.
    locked = os.statvfs(target).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)
    _mount("none", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | locked)


# -- both modes


def run_module(spec: Spec) -> NoReturn:
    """Be the container's own process: its session, its directory, its module as `__main__`."""
    settle(spec)
    # Python put this file's directory first; the paths of the mounts didn't exist when it looked at them.
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    run_as_main(spec)


def settle(spec: Spec) -> None:
    """The session, the signals and the directory of the container's own process."""
    os.setsid()
    for signum in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(spec["cwd"])


def run_as_main(spec: Spec) -> NoReturn:
    """Run the module as `python -m` does and end as an interpreter ends."""
    # What an "editable" installation adds; an image wouldn't have it.
    sys.path[:] = [entry for entry in sys.path if entry not in spec["foreign_path"]]
    importlib.invalidate_caches()
    sys.argv = [spec["module"], *spec["argv"]]
    code: Any = 0
    try:
        runpy.run_module(spec["module"], run_name="__main__", alter_sys=True)
    except SystemExit as exit_request:
        code = exit_request.code
    # Through the interpreter's own end, so that exit handlers and output buffers are honoured.
    sys.exit(code)


def reap_until(child: int) -> int:
    """Reap every child that ends until `child` does; its exit status as a shell gives it."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def die_with_parent(signum: int, parent_pid: int) -> None:
    """Get `signum` when the parent dies; end now if it is dead already."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(EXIT_SETUP_FAILED)


def drop_capabilities(kept: frozenset[int]) -> None:
    """Give up what root, or a new user namespace, has; otherwise user code could mount and unmount. For good:
    neither a program with more nor a change of the user brings back what isn't `kept`.
    """
    for capability in frozenset(range(CAPABILITIES)) - kept:
        dropped = _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        if dropped != 0 and ctypes.get_errno() != errno.EINVAL:  # one that this kernel doesn't know
            _check(dropped, "prctl(PR_CAPBSET_DROP)")
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    low = sum(1 << capability for capability in kept)
    data = (ctypes.c_uint32 * 6)(low, low, 0, 0, 0, 0)
    _check(_libc.syscall(SYS_CAPSET[os.uname().machine], header, data), "capset")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode(),
    )
    _check(result, f"mount {source} on {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main(sys.argv[1])
