"""Becomes another program in a mount namespace of its own.

Usage: `python -I -S sandbox.py SPEC PROGRAM...`

SPEC is JSON:

    root      an empty folder to build the new root in
    binds     [source, target, writable], targets absolute
    hidden    folders of which only what is bound is seen
    proc      whether /proc shall show the program's own processes only (needs root)
    identity  user id that it gives up root for, or null
    cwd       where the program starts

The new root shows all that the old one shows, except `hidden`, plus `binds`; nothing is written to
the old one. Without root a user namespace gives the right to mount. It imports nothing of this
package: it must start fast, and must not leave anything of the agent in the program's memory.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Bind = tuple[str, str, bool]

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
MS_RELATIME, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1 << 21, 2, 4, 8
MNT_DETACH = 2
PR_SET_NO_NEW_PRIVS = 38
KEPT = MS_NOSUID | MS_NODEV | MS_NOEXEC  # statvfs has the same bits
ST_RELATIME = 4096

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise what errno says."""
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    arguments = [text.encode() if text else None for text in (source, target, kind)]
    check(
        libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() if data else None),
        f"mount {target}",
    )


def become_alone() -> None:
    """A mount namespace whose changes nobody else sees."""
    if os.geteuid() == 0:
        check(libc.unshare(CLONE_NEWNS), "unshare")
    else:
        user, group = os.geteuid(), os.getegid()
        check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount("", "/", "", MS_REC | MS_PRIVATE)


class Node:
    """A folder on the way to what is bound."""

    def __init__(self) -> None:
        self.children: dict[str, Node] = {}
        self.hidden = False


def plan(binds: list[Bind], hidden: list[str]) -> Node:
    """The folders that must be made anew, and the binds that lie in none of the others."""
    top = Node()
    targets = [target for _, target, _ in binds]
    for path in [*hidden, *targets]:
        if any(path.startswith(f"{other}/") for other in targets):
            continue  # it exists in what is bound there
        node = top
        for part in path.strip("/").split("/"):
            node = node.children.setdefault(part, Node())
        node.hidden = True
    return top


def expose(old: str, new: str, node: Node) -> None:
    """Fill the folder `new` with what `old` shows, but for what `node` says."""
    names = [] if node.hidden or not os.path.isdir(old) else os.listdir(old)
    for name in names:
        if name in node.children:
            continue
        source, target = os.path.join(old, name), os.path.join(new, name)
        mode = os.lstat(source).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(source), target)
            continue
        if stat.S_ISDIR(mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        mount(source, target, "", MS_BIND | MS_REC)
    for name, child in node.children.items():
        target = os.path.join(new, name)
        os.mkdir(target)
        expose(os.path.join(old, name), target, child)


def bind(source: str, target: str, writable: bool) -> None:
    """Show `source` at `target`."""
    os.makedirs(target, exist_ok=True)
    mount(source, target, "", MS_BIND | MS_REC)
    if not writable:
        flags = os.statvfs(target).f_flag
        kept = flags & KEPT | (MS_RELATIME if flags & ST_RELATIME else 0)
        mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | kept)


def enter(spec: dict[str, Any]) -> None:
    """Build the new root and go there."""
    root = spec["root"]
    become_alone()
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=4m")
    expose("/", root, plan(spec["binds"], spec["hidden"]))
    for source, target, writable in sorted(spec["binds"], key=lambda each: each[1].count("/")):
        bind(source, root + target, writable)
    if spec["proc"]:
        mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=2")
    old = os.path.join(root, ".old")
    os.mkdir(old)
    check(libc.pivot_root(root.encode(), old.encode()), "pivot_root")
    os.chdir("/")
    check(libc.umount2(b"/.old", MNT_DETACH), "umount")
    os.rmdir("/.old")
    mount("", "/", "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def main() -> None:
    """Prepare, then exec."""
    spec = json.loads(sys.argv[1])
    try:
        enter(spec)
        identity = spec["identity"]
        if identity is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.setgroups([])
            os.setresgid(identity, identity, identity)
            os.setresuid(identity, identity, identity)
        check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        os.chdir(spec["cwd"])
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        print(f"[hyper: the task cannot be isolated: {error}]", file=sys.stderr, flush=True)
        os._exit(125)


if __name__ == "__main__":
    main()
