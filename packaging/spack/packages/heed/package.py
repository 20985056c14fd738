# SPDX-License-Identifier: MIT
from spack.package import *


class Heed(CMakePackage):
    """Attention on CPUs: exact, sparse, linear; header-only C++20 on Eigen."""

    license("MIT")
    # spack dev-build heed@main, or the address you have heed from.
    git = "HEED_REPOSITORY"

    version("main", branch="main")
    version("0.1.0", tag="v0.1.0")

    depends_on("cxx", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("eigen@3.4:")

    conflicts("%gcc@:10", msg="heed needs C++20: gcc 11 or newer")
    conflicts("%clang@:13", msg="heed needs C++20: clang 14 or newer")

    def cmake_args(self):
        off = ["HEED_TESTS", "HEED_BENCH", "HEED_EXAMPLES", "HEED_DEMO"]
        return [self.define(name, False) for name in off] + [self.define("HEED_INSTALL", True)]
