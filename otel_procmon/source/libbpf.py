"""The parts of the system's libbpf that the loaders need, by ctypes: objects, maps, programs, links, perf buffers.

libbpf 1.0 or newer (``libbpf.so.1``: Debian 12, Ubuntu 24.04, Fedora 38 and later). Since 1.0 a function that returns a
pointer answers NULL and sets ``errno``, and one that returns an int answers the negative errno; here both become
`BpfError`. What libbpf prints (verifier logs included) is kept, not shown: `Library.messages`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import deque
from ctypes import CFUNCTYPE, POINTER, byref, c_bool, c_char, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from mmap import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SONAME = "libbpf.so.1"
_MESSAGES_MAX = 2000
"""libbpf's messages kept, one each; a verifier log comes as one message."""

_PRINT = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
PERF_EVENT = CFUNCTYPE(c_int, c_void_p, c_int, c_void_p)
"""``perf_buffer_event_fn``: takes a context, a CPU and a perf record."""
_MESSAGE_BYTES = 1 << 20
_LOG_BYTES = 1 << 23
_RAW_TRACEPOINT = 17
"""``BPF_PROG_TYPE_RAW_TRACEPOINT``."""
_libc = ctypes.CDLL(None, use_errno=True)


class LibbpfMissingError(Exception):
    """The shared library could not be loaded; the text says why."""


class BpfError(OSError):
    """A call of libbpf failed. ``errno`` is the kernel's or libbpf's; ``what`` names the operation."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(number, f"{what}: {os.strerror(number)}")
        self.what = what


class _LoadOptions(ctypes.Structure):
    """``struct bpf_prog_load_opts`` of libbpf 1.0, up to what is used."""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_int),
        ("numbers", c_uint32 * 7),
        ("fd_array", c_void_p),
        ("func_info", c_void_p),
        ("func_info_sizes", c_uint32 * 2),
        ("line_info", c_void_p),
        ("line_info_sizes", c_uint32 * 2),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_void_p),
    )


class _RunOptions(ctypes.Structure):
    """``struct bpf_test_run_opts`` of libbpf 1.0."""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class Library:
    """libbpf, loaded once."""

    def __init__(self) -> None:
        try:
            lib = ctypes.CDLL(SONAME, use_errno=True)
        except OSError as error:
            raise LibbpfMissingError(str(error)) from error
        self._lib = lib
        self.messages: deque[str] = deque(maxlen=_MESSAGES_MAX)
        # One for all of the 1,500 messages of a load. Mapped, so that it takes no memory but where it is written to.
        self._message = (c_char * _MESSAGE_BYTES).from_buffer(mmap(-1, _MESSAGE_BYTES))
        # libbpf hands a va_list over, which only vsnprintf can read. On x86-64 and arm64 it arrives as a pointer.
        self._print = _PRINT(self._keep_message)
        pointers: dict[str, list[type]] = {
            "bpf_object__open_mem": [c_char_p, c_size_t, c_void_p],
            "bpf_object__find_map_by_name": [c_void_p, c_char_p],
            "bpf_object__find_program_by_name": [c_void_p, c_char_p],
            "bpf_map__initial_value": [c_void_p, POINTER(c_size_t)],
            "bpf_program__attach": [c_void_p],
            "bpf_program__attach_iter": [c_void_p, c_void_p],
            "perf_buffer__new_raw": [c_int, c_size_t, c_void_p, PERF_EVENT, c_void_p, c_void_p],
        }
        integers: dict[str, list[type]] = {
            "bpf_object__load": [c_void_p],
            "bpf_map__set_max_entries": [c_void_p, c_uint32],
            "bpf_map__fd": [c_void_p],
            "bpf_map__reuse_fd": [c_void_p, c_int],
            "bpf_map_lookup_elem": [c_int, c_void_p, c_void_p],
            "bpf_program__fd": [c_void_p],
            "bpf_obj_get_info_by_fd": [c_int, c_void_p, POINTER(c_uint32)],
            "bpf_link__fd": [c_void_p],
            "bpf_link__destroy": [c_void_p],
            "bpf_iter_create": [c_int],
            "bpf_link__pin": [c_void_p, c_char_p],
            "bpf_obj_pin": [c_int, c_char_p],
            "bpf_obj_get": [c_char_p],
            "bpf_program__set_autoload": [c_void_p, c_bool],
            "libbpf_num_possible_cpus": [],
            "bpf_map_create": [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p],
            "bpf_prog_load": [c_int, c_char_p, c_char_p, c_char_p, c_size_t, POINTER(_LoadOptions)],
            "bpf_raw_tracepoint_open": [c_char_p, c_int],
            "bpf_prog_test_run_opts": [c_int, POINTER(_RunOptions)],
            "perf_buffer__epoll_fd": [c_void_p],
            "perf_buffer__consume": [c_void_p],
            "perf_buffer__buffer_cnt": [c_void_p],
            "perf_buffer__buffer": [c_void_p, c_int, POINTER(c_void_p), POINTER(c_size_t)],
        }
        nothing: dict[str, list[type]] = {
            "bpf_object__close": [c_void_p],
            "perf_buffer__free": [c_void_p],
        }
        for restype, functions in ((c_void_p, pointers), (c_int, integers), (None, nothing)):
            for name, argtypes in functions.items():
                function = getattr(lib, name)
                function.argtypes = argtypes
                function.restype = restype
        lib.libbpf_set_print.argtypes = [_PRINT]
        lib.libbpf_set_print.restype = c_void_p
        lib.libbpf_set_print(self._print)

    def _keep_message(self, level: int, text: bytes, arguments: int) -> int:
        del level
        _libc.vsnprintf(self._message, c_size_t(_MESSAGE_BYTES), c_char_p(text), c_void_p(arguments))
        self.messages.append(self._message.value.decode(errors="replace").rstrip("\n"))
        return 0

    def pointer(self, name: str, *arguments: object) -> int:
        """Call a function that returns a pointer; NULL raises."""
        result: int | None = getattr(self._lib, name)(*arguments)
        if not result:
            raise BpfError(ctypes.get_errno() or errno.ENOENT, name)
        return result

    def integer(self, name: str, *arguments: object) -> int:
        """Call a function that returns an int; a negative one raises."""
        result: int = getattr(self._lib, name)(*arguments)
        if result < 0:
            raise BpfError(-result, name)
        return result

    def call(self, name: str, *arguments: object) -> None:
        """Call a function that returns nothing."""
        getattr(self._lib, name)(*arguments)

    def possible_cpus(self) -> int:
        """How many CPUs per-CPU maps have a value for."""
        return self.integer("libbpf_num_possible_cpus")

    def pin(self, fd: int, path: Path) -> None:
        """Keep a map or program in the kernel for as long as the file `path` exists, in bpffs."""
        self.integer("bpf_obj_pin", fd, bytes(path))

    def pinned(self, path: Path) -> int:
        """A file descriptor of what is pinned at `path`."""
        return self.integer("bpf_obj_get", bytes(path))

    def per_cpu(self, map_fd: int, value_size: int) -> list[bytes]:
        """The values of key 0 of a per-CPU array, one for each possible CPU. `value_size` is a multiple of 8."""
        cpus = self.possible_cpus()
        values = ctypes.create_string_buffer(value_size * cpus)
        key = c_uint32(0)
        self.integer("bpf_map_lookup_elem", map_fd, byref(key), values)
        return [values.raw[cpu * value_size : (cpu + 1) * value_size] for cpu in range(cpus)]

    def create_map(self, kind: int, name: str, key_bytes: int, value_bytes: int, entries: int) -> int:
        """A file descriptor of a new map of this ``enum bpf_map_type``."""
        return self.integer("bpf_map_create", kind, name.encode(), key_bytes, value_bytes, entries, None)

    def value(self, map_fd: int, size: int) -> bytes:
        """The value of key 0 of an array, of `size` bytes."""
        value = ctypes.create_string_buffer(size)
        key = c_uint32(0)
        self.integer("bpf_map_lookup_elem", map_fd, byref(key), value)
        return value.raw

    def load_raw_tracepoint(self, name: str, licence: str, instructions: bytes) -> int:
        """A file descriptor of a program of this type. What the verifier says to one that it refuses is kept."""
        arguments = (_RAW_TRACEPOINT, name.encode(), licence.encode(), instructions, len(instructions) // 8)
        options = _LoadOptions(sz=ctypes.sizeof(_LoadOptions))
        try:
            return self.integer("bpf_prog_load", *arguments, byref(options))
        except BpfError:
            log = ctypes.create_string_buffer(_LOG_BYTES)
            options.log_level, options.log_size, options.log_buf = 1, _LOG_BYTES, ctypes.addressof(log)
            try:
                return self.integer("bpf_prog_load", *arguments, byref(options))
            finally:
                self.messages.append(f"{name}: {log.value.decode(errors='replace')}")

    def attach_raw_tracepoint(self, program_fd: int, name: str) -> int:
        """A file descriptor that keeps the program attached."""
        return self.integer("bpf_raw_tracepoint_open", name.encode(), program_fd)

    def run(self, program_fd: int, argument: int) -> int:
        """Run a raw tracepoint's program here and now, with one argument. Returns what it returned."""
        context = c_uint64(argument)
        options = _RunOptions(
            sz=ctypes.sizeof(_RunOptions), ctx_in=ctypes.addressof(context), ctx_size_in=ctypes.sizeof(context)
        )
        self.integer("bpf_prog_test_run_opts", program_fd, byref(options))
        return int(options.retval)

    def recursion_misses(self, program_fd: int) -> int:
        """How often the kernel left a program out because it was already running on that CPU; 0 if it cannot tell."""
        # struct bpf_prog_info of include/uapi/linux/bpf.h: recursion_misses (Linux 5.12) is at byte 208.
        info = ctypes.create_string_buffer(256)
        size = c_uint32(len(info))
        self.integer("bpf_obj_get_info_by_fd", program_fd, info, byref(size))
        offset = 208
        if size.value < offset + 8:
            return 0
        return c_uint64.from_buffer(info, offset).value


class BpfObject:
    """One compiled object: opened, then configured, loaded and attached by its owner, then closed."""

    def __init__(self, library: Library, elf: bytes) -> None:
        self._lib = library
        self._links: list[int] = []
        self._object: int | None = library.pointer("bpf_object__open_mem", elf, len(elf), None)

    def map(self, name: str) -> int:
        """The map's handle."""
        return self._lib.pointer("bpf_object__find_map_by_name", self._object, name.encode())

    def map_fd(self, name: str) -> int:
        """The loaded map's file descriptor."""
        return self._lib.integer("bpf_map__fd", self.map(name))

    def set_max_entries(self, name: str, entries: int) -> None:
        """Size a map, before load."""
        self._lib.integer("bpf_map__set_max_entries", self.map(name), entries)

    def share_map(self, name: str, fd: int) -> None:
        """Use a map of another object, before load."""
        self._lib.integer("bpf_map__reuse_fd", self.map(name), fd)

    def set_rodata(self, value: bytes) -> None:
        """Overwrite the beginning of the program's read-only data, before load."""
        size = c_size_t()
        address = self._lib.pointer("bpf_map__initial_value", self.map(".rodata"), byref(size))
        if len(value) > size.value:
            raise ValueError(f"{len(value)} bytes of configuration for {size.value} bytes of .rodata")
        ctypes.memmove(address, value, len(value))

    def load(self) -> None:
        """Verify and load maps and programs."""
        self._lib.integer("bpf_object__load", self._object)

    def program(self, name: str) -> int:
        """The program's handle."""
        return self._lib.pointer("bpf_object__find_program_by_name", self._object, name.encode())

    def program_fd(self, name: str) -> int:
        """The loaded program's file descriptor."""
        return self._lib.integer("bpf_program__fd", self.program(name))

    def leave_out(self, name: str) -> None:
        """Do not load this program, before load."""
        self._lib.integer("bpf_program__set_autoload", self.program(name), False)

    def attach(self, name: str, pin: Path | None = None) -> None:
        """Attach a program to what its section names. With `pin`, it stays attached until that file is removed."""
        link = self._lib.pointer("bpf_program__attach", self.program(name))
        self._links.append(link)
        if pin is not None:
            self._lib.integer("bpf_link__pin", link, bytes(pin))

    def detach(self) -> None:
        """Undo every attach."""
        while self._links:
            self._lib.integer("bpf_link__destroy", self._links.pop())

    def iterate(self, name: str) -> bytes:
        """Run an iterator program once over everything and return what it wrote."""
        link = self._lib.pointer("bpf_program__attach_iter", self.program(name), None)
        try:
            fd = self._lib.integer("bpf_iter_create", self._lib.integer("bpf_link__fd", link))
            try:
                return _read_all(fd)
            finally:
                os.close(fd)
        finally:
            self._lib.integer("bpf_link__destroy", link)

    def close(self) -> None:
        """Detach and unload."""
        self.detach()
        if self._object is not None:
            self._lib.call("bpf_object__close", self._object)
            self._object = None


def _read_all(fd: int) -> bytes:
    """All that an iterator writes. One that found no buffer wants to be asked again: the kernel answers EAGAIN."""
    parts: list[bytes] = []
    attempts = 0
    while True:
        try:
            part = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            attempts += 1
            if attempts > _ATTEMPTS_MAX:
                raise BpfError(errno.EAGAIN, "reading an iterator") from None
            continue
        if not part:
            return b"".join(parts)
        parts.append(part)


_READ_BYTES = 1 << 20
_ATTEMPTS_MAX = 10_000
