"""`alexnet-server` as on Windows, as far as another system can play it: what only POSIX has is not there.

Its event loop cannot handle signals, and where the standard library would read a file in the system's own
encoding, which is not UTF-8 there, our code ends with an error.
"""

import asyncio
import mmap
import os
import signal
import socket
import subprocess  # noqa: F401 - looks for fcntl itself, and does without where there is none
import sys
import warnings

MODULES = ("fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty", "uvloop")
NAMES = {
    os: "fork getuid getgid geteuid getegid getpgid setpgid setsid sched_getaffinity sysconf statvfs pread "
    "pwrite mkfifo wait4 register_at_fork getloadavg",
    socket: "SO_REUSEPORT recv_fds send_fds",
    mmap: "MAP_PRIVATE MAP_SHARED MAP_ANONYMOUS MAP_ANON",
    signal: "SIGHUP SIGUSR1 SIGUSR2 SIGCHLD SIGPIPE pthread_sigmask sigwait setitimer",
}
"""Not `os.uname` and `socket.AF_UNIX`: numpy and asyncio ask `sys.platform`, and want what Linux has."""


class Loop(asyncio.SelectorEventLoop):
    """Windows' selector loop."""

    def add_signal_handler(self, *_arguments):
        raise NotImplementedError

    def remove_signal_handler(self, *_arguments):
        raise NotImplementedError


def hide():
    """From now on this process does without."""
    sys.modules |= dict.fromkeys(MODULES)
    for module, names in NAMES.items():
        for name in names.split():
            delattr(module, name)
    asyncio.SelectorEventLoop = Loop
    warnings.filterwarnings("error", category=EncodingWarning, module=r"alexnet_(server|client)\b")


if __name__ == "__main__":
    hide()
    from alexnet_server.main import main

    sys.exit(main())
