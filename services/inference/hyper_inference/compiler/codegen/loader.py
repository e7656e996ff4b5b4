"""Object files of x86-64 into this process, without LLVM, whose library alone takes 40 MB.

What our code generator makes is simple (LLVM's large code model): code and read-only data of which
the absolute addresses are filled in. System V ABI, AMD64 supplement, chapter 4; ELF-64 format.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")
_RELOCATABLE, _X86_64 = 1, 62
_PROGBITS, _SYMTAB, _RELA_TYPE = 1, 2, 4
_WRITE, _ALLOC, _EXECUTE = 1, 2, 4
_ABSOLUTE_64, _RELATIVE_32, _PLT_32, _RELATIVE_64 = 1, 2, 4, 24


class ObjectFileError(RuntimeError):
    """No object file of this machine, or one with parts that this loader does not know."""


def can_load() -> bool:
    """Whether this machine is one whose object files are known here."""
    return platform.system() == "Linux" and platform.machine() == "x86_64"


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


class LoadedObject:
    """Machine code in memory of its own, which goes when this object does."""

    def __init__(self, data: bytes) -> None:
        """Place the sections, fill in addresses, make code executable and nothing writable.

        Raises:
            ObjectFileError: see there.
        """
        try:
            self._load(data)
        except (struct.error, LookupError, ValueError) as error:
            raise ObjectFileError(f"this is no object file of x86-64: {error}") from error

    def address(self, name: str) -> int:
        """Where the function `name` begins.

        Raises:
            ObjectFileError: there is none.
        """
        if name not in self._names:
            raise ObjectFileError(f"the object file has no function {name!r}")
        return self._names[name]

    def _load(self, data: bytes) -> None:
        sections = list(_sections(data))
        kept = {
            n: s for n, s in enumerate(sections)
            if s.flags & _ALLOC and s.kind == _PROGBITS and s.size and s.name != ".eh_frame"
        }  # fmt: skip
        if any(section.flags & _WRITE for section in kept.values()):
            raise ObjectFileError("the object file has data that changes")
        order = sorted(kept, key=lambda n: not kept[n].flags & _EXECUTE)  # code first
        places: dict[int, int] = {}
        end = code_end = 0
        for n in order:
            if not kept[n].flags & _EXECUTE and not code_end:
                code_end = end = _round_up(end, mmap.PAGESIZE)
            start = _round_up(end, max(kept[n].align, 1))
            places[n], end = start, start + kept[n].size
        code_end = code_end or _round_up(end, mmap.PAGESIZE)
        self._memory = mmap.mmap(-1, max(_round_up(end, mmap.PAGESIZE), mmap.PAGESIZE))
        self._view = (ctypes.c_char * len(self._memory)).from_buffer(self._memory)
        base = ctypes.addressof(self._view)
        for n, place in places.items():
            section = kept[n]
            self._memory[place : place + section.size] = _part(data, section)
        self._names: dict[str, int] = {}
        tables = {
            n: self._symbols(data, sections, n, places, base)
            for n, section in enumerate(sections) if section.kind == _SYMTAB
        }  # fmt: skip
        for section in sections:
            if section.kind == _RELA_TYPE and section.info in places:
                symbols = tables[section.link]
                self._relocate(_part(data, section), symbols, places[section.info], base)
        _protect(base, code_end, mmap.PROT_READ | mmap.PROT_EXEC)
        _protect(base + code_end, len(self._memory) - code_end, mmap.PROT_READ)

    def _symbols(
        self, data: bytes, sections: list[_Section], table: int, places: dict[int, int], base: int
    ) -> list[int | None]:
        """Addresses by number; None where a section was left out. Notes names of functions."""
        names = _part(data, sections[sections[table].link])
        found: list[int | None] = []
        for name_at, _, _, section, value, _ in _SYMBOL.iter_unpack(_part(data, sections[table])):
            name = _text(names, name_at)
            if section == 0:
                found.append(_elsewhere(name) if name else 0)
            elif section in places:
                found.append(base + places[section] + value)
                self._names[name] = base + places[section] + value
            else:
                found.append(None)
        return found

    def _relocate(self, entries: bytes, symbols: list[int | None], section: int, base: int) -> None:
        for offset, info, addend in _RELA.iter_unpack(entries):
            kind, target = info & 0xFFFFFFFF, symbols[info >> 32]
            if target is None:
                raise ObjectFileError("the object file points to a section that was left out")
            at = section + offset
            value = target + addend
            if kind != _ABSOLUTE_64:
                value -= base + at
            if kind in (_ABSOLUTE_64, _RELATIVE_64):
                self._memory[at : at + 8] = struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)
            elif kind in (_RELATIVE_32, _PLT_32):
                self._memory[at : at + 4] = struct.pack("<i", value)
            else:
                raise ObjectFileError(f"the object file has a relocation of type {kind}")


def _sections(data: bytes) -> Iterator[_Section]:
    ident, kind, machine, _, _, _, table, *_, size, count, names_at = _HEADER.unpack_from(data)
    if ident[:6] != b"\x7fELF\x02\x01" or (kind, machine) != (_RELOCATABLE, _X86_64):
        raise ObjectFileError("this is no object file of x86-64")
    headers = [_SECTION.unpack_from(data, table + n * size) for n in range(count)]
    sections = [
        _Section("", kind, flags, offset, length, link, info, align)
        for _, kind, flags, _, offset, length, link, info, align, _ in headers
    ]
    names = _part(data, sections[names_at])
    for header, s in zip(headers, sections, strict=True):
        name = _text(names, header[0])
        yield _Section(name, s.kind, s.flags, s.offset, s.size, s.link, s.info, s.align)


def _part(data: bytes, section: _Section) -> bytes:
    part = data[section.offset : section.offset + section.size]
    if len(part) != section.size:
        raise ObjectFileError("the object file is cut off")
    return part


def _text(names: bytes, at: int) -> str:
    return names[at : names.index(b"\0", at)].decode()


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def _elsewhere(name: str) -> int:
    """Address of a function of the C library."""
    function: Any = getattr(ctypes.CDLL(None), name, None)
    address = ctypes.cast(function, ctypes.c_void_p).value if function is not None else None
    if address is None:
        raise ObjectFileError(f"the object file calls {name!r}, which is not in this process")
    return address


def _protect(address: int, size: int, protection: int) -> None:
    if size == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection) != 0:
        raise OSError(ctypes.get_errno(), "the system refuses memory for machine code")
