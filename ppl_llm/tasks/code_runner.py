"""The process in which programs meet their tests; started by ``ppl_llm.tasks.isolation``, imports nothing of this package.

Reads one JSON request from standard input and writes one JSON reply to standard output. It is the first process of its own namespaces
(user, network, processes, mounts) where it was started so, and gives up the right to change them before a program runs. Each test runs in
a child of its own: the program, then the test; what the child leaves running is ended with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Any

_PRIVATE = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that are empty inside, and the only ones that can be written to."""

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_RECURSIVE, _READ_ONLY, _MS_PRIVATE, _OPEN_TREE_CLONE, _MOVE_EMPTY_PATH = -100, 0x8000, 1, 1 << 18, 1, 4
_PR_SET_CHILD_SUBREAPER, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 36, 24, 38
_CAPABILITY_VERSION = 0x20080522
_WATCH = 0.02
"""Seconds between two looks at how many processes there are."""

# -I keeps the folder of this file from the paths, and it must not stay there: programs find the standard library and installed packages.
sys.path.append(os.path.dirname(os.path.abspath(__file__)))
from code_child import child, quoted  # type: ignore[import-not-found] # noqa: E402

sys.path.pop()

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def enclose(megabytes: int) -> None:
    """Make all files read-only but those of empty private folders."""
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, _MS_PRIVATE, 0)
    made = libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes))
    checked(made, "files cannot be made read-only (mount_setattr, Linux 5.12)")
    private = [folder for folder in dict.fromkeys(os.path.realpath(each) for each in _PRIVATE) if os.path.isdir(folder)]
    kept = {path: tree(path) for path in python_folders() if any(path.startswith(folder + "/") for folder in private)}
    for folder in private:
        options = f"size={megabytes}m,mode=1777".encode()
        checked(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 6, options), f"an empty {folder} cannot be mounted")  # nosuid, nodev
    for path, descriptor in kept.items():  # read-only, as it was when it was taken
        os.makedirs(path, exist_ok=True)
        moved = libc.syscall(_SYS_MOVE_MOUNT, descriptor, b"", _AT_FDCWD, path.encode(), _MOVE_EMPTY_PATH)
        checked(moved, f"{path}, where Python is, cannot be seen in an empty folder")
        os.close(descriptor)
    os.chdir(os.path.realpath("/tmp"))


def python_folders() -> list[str]:
    """Where this Python and its packages are, outer folders first: an environment may lie in a folder that is empty inside."""
    return sorted({os.path.realpath(each) for each in (sys.prefix, sys.base_prefix, sys.exec_prefix)})


def tree(path: str) -> int:
    """A descriptor of a folder with all that is mounted in it, to be put back where another mount hides it."""
    found = libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, path.encode(), _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC)
    checked(min(found, 0), f"{path}, where Python is, cannot be kept (open_tree, Linux 5.2)")
    return int(found)


def give_up_rights() -> None:
    """No capability, now or after an exec."""
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "privileges cannot be given up")
    header, nothing = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    checked(libc.capset(ctypes.byref(header), ctypes.byref(nothing)), "capabilities cannot be given up")


def limit(request: dict[str, Any]) -> None:
    memory, seconds = request["memory"] << 20, int(request["seconds"]) + 1
    bounds = {"AS": memory, "CPU": seconds, "FSIZE": request["disk"] << 20, "CORE": 0, "NOFILE": 256}
    # The kernel does not hold root to it, and counts all that the user runs where there is no namespace: the first process watches, too.
    bounds["NPROC"] = request["processes"] + (1 if request["enclosed"] else request["others"])
    for name, value in bounds.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as children:
                found += map(int, children.read().split())
    except OSError:
        return found
    return found + [each for own in list(found) for each in descendants(own)]


def send(signal_number: int, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal_number)


def end_all(enclosed: bool, group: int = 0) -> None:
    """End every process but this one.

    :param int group: of the child, most of whose processes are in it: a signal to a group reaches all at once, also those that fork.
    """
    while True:
        if enclosed:
            with suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # all of the namespace, but its first process
        else:
            if group:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            seen: set[int] = set()
            while fresh := [pid for pid in descendants(os.getpid()) if pid not in seen]:
                send(signal.SIGSTOP, fresh)  # what is stopped starts nothing more
                seen.update(fresh)
            send(signal.SIGKILL, list(seen))
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def tasks_of(user: int) -> int:
    """How many threads a user runs."""
    number = 0
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                number += len(os.listdir(f"/proc/{name}/task"))
    return number


def running(enclosed: bool) -> int:
    return sum(name.isdigit() for name in os.listdir("/proc")) - 1 if enclosed else len(descendants(os.getpid()))


class Endless(Exception):
    """A program that had to be ended."""


def run(program: str, test: Any, request: dict[str, Any]) -> str | None:
    """What is wrong, ``None`` for a test that passes.

    :raises Endless: for a program that goes beyond its bounds.
    """
    given = test["input"].encode() if isinstance(test, dict) else b""
    (inside, feed), (output, written), (result, told) = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        os.dup2(inside, 0), os.dup2(written, 1), os.dup2(written if not isinstance(test, dict) else os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(told, 3)
        os.closerange(4, 1024)
        try:
            limit(request)
            if request["enclosed"]:
                give_up_rights()
        except BaseException as error:
            os.write(3, json.dumps({"refused": str(error)}).encode())
            os._exit(1)
        child(program, test, 3)
    for each in (inside, written, told):
        os.close(each)
    os.set_blocking(feed, False)
    texts: dict[int, bytes] = {output: b"", result: b""}
    deadline, status, open_ends = time.monotonic() + request["seconds"], None, {output, result}
    why: str | None = None
    while open_ends and why is None:
        ready, room, _ = select.select(open_ends, [feed] if feed >= 0 else [], [], _WATCH if request["enclosed"] else _WATCH / 10)
        for each in ready:
            part = os.read(each, 65536)
            texts[each] += part
            if not part:
                open_ends.discard(each)
        if room:
            try:
                given = given[os.write(feed, given[:65536]) :]
            except OSError:
                given = b""
            if not given:
                os.close(feed)
                feed = -1
        if len(texts[output]) > request["output"] << 10:
            why = f"it writes more than {request['output']} KiB"
        elif running(request["enclosed"]) > request["processes"]:
            why = f"it starts more than {request['processes']} processes"
        elif time.monotonic() > deadline:
            why = f"it does not end within {request['seconds']:g} second{'' if request['seconds'] == 1 else 's'}"
        elif status is None and (done := os.waitpid(pid, os.WNOHANG))[0]:
            status = done[1]
        elif status is not None and not ready:
            break  # what the program has left running holds the other ends
    if feed >= 0:
        os.close(feed)
    if why is None and status is None:
        status = os.waitpid(pid, 0)[1]
    end_all(request["enclosed"], pid)
    for each in (output, result):
        os.close(each)
    if why is not None:
        raise Endless(why)
    if not texts[result]:
        killed = os.WIFSIGNALED(status or 0)
        name = signal.Signals(os.WTERMSIG(status or 0)).name if killed else f"exit {os.WEXITSTATUS(status or 0)}"
        return f"the process ends by itself ({name}) before the test does"
    said = json.loads(texts[result])
    if "refused" in said:
        raise OSError(said["refused"])
    if "error" in said:
        return str(said["error"])
    if isinstance(test, dict):
        printed = texts[output].decode(errors="replace")
        if [line.rstrip() for line in printed.strip().splitlines()] != [line.rstrip() for line in test["output"].strip().splitlines()]:
            return f"it prints {quoted(printed.strip())!r}, not {quoted(test['output'].strip())!r}"
    return None


def main() -> None:
    request = json.load(sys.stdin)
    if (policy := os.sched_getscheduler(0)) == os.SCHED_FIFO:  # before the processes it starts, which are as others
        os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_getparam(0))

    def leave(*_: Any) -> None:
        end_all(request["enclosed"])
        os._exit(1)

    signal.signal(signal.SIGTERM, leave)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    try:
        if request["enclosed"]:
            enclose(request["disk"])
        else:
            request["others"] = tasks_of(os.getuid())
            checked(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "orphans cannot be kept")
        found: list[str | None] = []
        for test in request["tests"]:
            try:
                found.append(run(request["program"], test, request))
            except Endless as endless:
                found.append(str(endless))
                break  # the other tests would cost as much
        json.dump({"found": found}, replies)
    except OSError as error:
        json.dump({"refused": str(error)}, replies)
    replies.flush()


if __name__ == "__main__":
    main()
