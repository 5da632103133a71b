"""Builds the C++ kernels into the wheel, if asked to by DGGRAPH_BUILD_KERNELS=1.

    DGGRAPH_BUILD_KERNELS=1 pip install --no-build-isolation .

They need torch, ninja and a C++ compiler in the environment, which an isolated build does not have.
Whatever is missing, the package is installed without them, with a warning (`pip -v` shows it);
`dggraph doctor` says which kernels are used. Such a wheel is for this platform, and its kernels are
used only with the same versions of torch and Python and the same instruction set.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "DGGRAPH_BUILD_KERNELS"


class KernelsHook(BuildHookInterface):
    """Adds the compiled library to a wheel."""

    PLUGIN_NAME = "custom"
    scratch: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels before the wheel is packed; hatchling calls this."""
        if os.environ.get(VARIABLE, "0") in ("", "0"):
            return
        if version == "editable":
            self._skip("an editable installation has no place for it")
            return
        sys.path.insert(0, self.root)
        try:
            from dggraph.ops import kernels

            self.scratch = Path(tempfile.mkdtemp(prefix="dggraph-kernels-"))
            name = kernels.build_name()
            kernels.build_into(self.scratch / name)
        except Exception as error:  # without the kernels everything works, but slower
            self._skip(f"{type(error).__name__}: {error}")
            return
        finally:
            sys.path.remove(self.root)
        place = kernels.INSTALLED.relative_to(self.root)
        build_data["force_include"][str(self.scratch / name)] = str(place / name)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the compiled files, which the wheel has now."""
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _skip(self, reason: str) -> None:
        self.app.display_warning(
            f"{VARIABLE} is set, but the C++ kernels are left out: {reason}. Install with"
            " --no-build-isolation in an environment with torch, ninja and a C++ compiler, or run"
            " `dggraph doctor --build-kernels` afterwards."
        )
