// SPDX-License-Identifier: MIT
// KV caches.
#pragma once

#include "heed/cache/accept_path.hpp"
#include "heed/cache/contiguous.hpp"
#include "heed/cache/file/save.hpp"
#include "heed/cache/file/save_hybrid.hpp"
#include "heed/cache/hadamard.hpp"
#include "heed/cache/hybrid.hpp"
#include "heed/cache/latent.hpp"
#include "heed/cache/paged/paged.hpp"
#include "heed/cache/paged/prefix_tree.hpp"
#include "heed/cache/quantised/kivi.hpp"
#include "heed/cache/quantised/quantised.hpp"
#include "heed/cache/rolling.hpp"
#include "heed/cache/slots.hpp"
#include "heed/kernel/kv_source.hpp"
