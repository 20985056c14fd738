// SPDX-License-Identifier: MIT
// One of two translation units that include all of heed: together they must link and agree.
#include "odr.hpp"

namespace odr {

identities first() { return here(); }

}  // namespace odr
