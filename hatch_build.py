"""Adds the program ``pidone`` to a wheel: the static one of pidone/pid1/pidone.c, for the machine that builds.

``make doze`` has built it without a compiler, or the system's compiler builds it now. Without either, ``pidone`` is a
Python script. Then ``pidone -- COMMAND`` does not work, and Python reads its environment variables.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SCRIPT = "#!/usr/bin/env python3\nimport sys\n\nfrom pidone.__main__ import main\n\nsys.exit(main())\n"


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        del version
        program = static_program(Path(self.root))
        if program is not None:
            machine = platform.machine()
            build_data["tag"] = f"py3-none-manylinux_2_17_{machine}.musllinux_1_1_{machine}"
        else:
            program = Path(self.root, "build/script/pidone")
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(SCRIPT)
            program.chmod(0o755)
        build_data["shared_scripts"][str(program)] = "pidone"


def static_program(root: Path) -> Path | None:
    """Return the static program, and build it if it is missing or old; None if there is no compiler."""
    source = root / "pidone/pid1/pidone.c"
    changed = max(source.stat().st_mtime, source.with_name("doze.c").stat().st_mtime)  # which it includes
    built = root / "build" / f"pidone-{platform.machine()}"
    beside = source.with_name(built.name)  # in a source distribution, and after make doze
    for program in (built, beside, root / "build/pidone"):
        if program.exists() and program.stat().st_mtime >= changed:
            return program
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        return None
    program = root / "build/pidone"
    program.parent.mkdir(exist_ok=True)
    command = [compiler, "-Os", "-static", "-s", "-o", str(program), str(source)]
    return program if subprocess.run(command, check=False).returncode == 0 else None
