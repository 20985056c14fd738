// SPDX-License-Identifier: MIT
// Front header of the methods composed of several families: native sparse attention.
#pragma once

#include "heed/composed/native_sparse_arguments.hpp"
#include "heed/composed/native_sparse_attention.hpp"
