# SPDX-License-Identifier: MIT
"""heed for Conan 2: headers, and Eigen as the requirement they pass on.

    conan create packaging/conan
"""

import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load
from conan.tools.layout import basic_layout


class Heed(ConanFile):
    name = "heed"
    description = "Attention on CPUs: exact, sparse, linear"
    license = "MIT"
    topics = ("attention", "transformer", "eigen", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    no_copy_source = True
    # With system Eigen nothing is required of Conan: the include path has it.
    options = {"system_eigen": [True, False]}
    default_options = {"system_eigen": False}

    def _root(self):
        return os.path.join(self.recipe_folder, os.pardir, os.pardir)

    def set_version(self):
        config = load(self, os.path.join(self._root(), "include", "heed", "core", "config.hpp"))
        self.version = ".".join(
            re.search(rf"#define HEED_VERSION_{part} (\d+)", config).group(1)
            for part in ("MAJOR", "MINOR", "PATCH"))

    def export_sources(self):
        copy(self, "*.hpp", os.path.join(self._root(), "include"),
             os.path.join(self.export_sources_folder, "include"))
        copy(self, "LICENSE", self._root(), self.export_sources_folder)

    def layout(self):
        basic_layout(self)

    def requirements(self):
        if not self.options.system_eigen:
            self.requires("eigen/[>=3.4 <6]", transitive_headers=True)

    def validate(self):
        check_min_cppstd(self, 20)

    def package_id(self):
        self.info.clear()

    def package(self):
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        copy(self, "*.hpp", os.path.join(self.source_folder, "include"),
             os.path.join(self.package_folder, "include"))

    def package_info(self):
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.set_property("cmake_file_name", "heed")
        self.cpp_info.set_property("cmake_target_name", "heed::heed")
        self.cpp_info.set_property("pkg_config_name", "heed")
        if not self.options.system_eigen:
            self.cpp_info.requires = ["eigen::eigen"]
        if self.settings.os in ("Linux", "FreeBSD"):
            self.cpp_info.system_libs = ["pthread"]
