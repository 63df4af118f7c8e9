"""What the truth test runs: the torture program, a C project built by make, and a configure-like shell script."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"}
"""Of every workload: nothing that the tester's shell has set decides which programs run."""

SOURCES = 60


def compile_torture(source: Path, program: Path) -> None:
    """Compile torture.c."""
    subprocess.run(["gcc", "-O1", "-g", "-pthread", "-o", program, source], check=True)


def compile_tiny(source: Path, program: Path) -> None:
    """Compile the short program of torture.c, static and without libc."""
    flags = ("-O2", "-DTINY", "-static", "-nostdlib", "-fno-stack-protector", "-fno-pie", "-no-pie")
    subprocess.run(["gcc", *flags, "-o", program, source], check=True)


def write_c_project(directory: Path, sources: int = SOURCES) -> None:
    """A C project of `sources` files with a Makefile: generated headers, a static library, a program, a check.

    The recipes need a shell here and there, so that make starts programs by both of its ways.
    """
    names = [f"part{number:02}" for number in range(sources)]
    for number, name in enumerate(names):
        (directory / f"{name}.c").write_text(
            f'#include "generated.h"\n\nint {name}(int value)\n{{\n\treturn value * FACTOR + {number};\n}}\n'
        )
    declarations = "".join(f"int {name}(int value);\n" for name in names)
    (directory / "main.c").write_text(
        f"{declarations}\nint main(void)\n{{\n\tint sum = 0;\n\n"
        + "".join(f"\tsum += {name}(0);\n" for name in names)
        + f"\treturn sum != {sum(range(sources))};\n}}\n"
    )
    objects = " ".join(f"{name}.o" for name in names)
    (directory / "Makefile").write_text(
        f"""\
CC = gcc
CFLAGS = -O1 -Wall
OBJECTS = {objects}

all: program check

generated.h: Makefile
\t@echo "making $@" && (echo '/* generated */'; echo "#define FACTOR $$(expr 1 + 2)") > $@.new && mv $@.new $@

%.o: %.c generated.h
\t$(CC) $(CFLAGS) -c -o $@ $<

libparts.a: $(OBJECTS)
\tar rcs $@ $^

program: main.o libparts.a
\t$(CC) $(CFLAGS) -o $@ $^

check: program
\t./program
\t-test -e missing
\t@for object in $(OBJECTS); do test -s $$object || exit 1; done; size program | tail -n 1 | cut -f 1 > size.txt

.PHONY: all check
"""
    )


def write_configure(path: Path, checks: int = 60) -> None:
    """A shell script like those that autoconf makes: short commands by the hundred, pipes, subshells, substitutions."""
    path.write_text(
        f"""\
#! /bin/sh
# Checks things that are always there, and things that never are.
here=`dirname "$0"`
rm -rf "$here/conf"
mkdir "$here/conf" || exit 1
cd "$here/conf" || exit 1

host=`(uname -m || echo unknown) 2>/dev/null | tr -d '\\n' | sed 's/[^a-z0-9_]/_/g'`
echo "host is $host" > config.log

check=0
while test "$check" -lt {checks}; do
  cat > conftest.c <<EOF
/* check $check on $host */
int main (void) {{ return $check; }}
EOF
  if grep "check $check " conftest.c > /dev/null && (sed -n 1p conftest.c | grep nothing) > /dev/null 2>&1; then
    echo "no $check" >> config.log
  else
    value=`expr "$check" \\* 2; (exit 3)`
    status=$?
    (echo "yes $check is $value, $status"; date +%s > /dev/null; (cat conftest.c | wc -l)) >> config.log
  fi
  case `echo "$check" | sed 's/.*\\(.\\)$/\\1/'` in
  0) env CONF=yes sh -c 'test "$CONF" = yes && exec expr 1 + 1' > /dev/null ;;
  5) /nonexistent/compiler conftest.c 2> /dev/null || (kill -TERM "$(sh -c 'echo $PPID')") ;;
  7) sleep 0 & wait $! ;;
  esac
  check=`expr $check + 1`
done

sed -e "s/@host@/$host/" -e 's/@count@/{checks}/' > config.h <<EOF
#define HOST "@host@"
#define CHECKS @count@
EOF
test "`grep -c '^yes' config.log`" -eq {checks} && trap 'rm -f conftest.c' EXIT && (exit 0)
"""
    )
    path.chmod(0o755)
