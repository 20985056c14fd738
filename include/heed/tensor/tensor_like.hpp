// SPDX-License-Identifier: MIT
// What counts as a tensor, together with every adaptor that heed supplies.
//
// A concept must have one answer everywhere: were a matrix a tensor only after some further
// include, it would depend on the order of includes whether it is one.
#pragma once

#include "heed/tensor/eigen.hpp"
#include "heed/tensor/eigen_tensor.hpp"
#include "heed/tensor/mdspan.hpp"
#include "heed/tensor/traits.hpp"
#include "heed/tensor/view.hpp"
