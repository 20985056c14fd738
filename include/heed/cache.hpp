// SPDX-License-Identifier: MIT
// KV caches.
#pragma once

#include "heed/cache/contiguous.hpp"
#include "heed/kernel/kv_source.hpp"
