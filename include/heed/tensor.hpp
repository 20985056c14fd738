// SPDX-License-Identifier: MIT
// Front header of the tensor floor: views, owning tensors, and an adaptor for each foreign type.
#pragma once

#include "heed/tensor/eigen.hpp"
#include "heed/tensor/eigen_tensor.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/mapped_file.hpp"
#include "heed/tensor/mdspan.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"
#include "heed/tensor/tensor_like.hpp"
#include "heed/tensor/traits.hpp"
#include "heed/tensor/view.hpp"
