// SPDX-License-Identifier: MIT
// The families of a soak run: each draws one call, makes it and compares it; throws where it is
// wrong.
#pragma once

namespace soak {

class trial;

// exact.cpp
void exact(trial&);
void naive(trial&);
// exact_forms.cpp
void packed(trial&);
void decode(trial&);
void merge(trial&);
void forgetting(trial&);
void linformer(trial&);
// caches.cpp
void paged_cache(trial&);
void slot_cache(trial&);
void quantised_cache(trial&);
void rolling_cache(trial&);
void latent(trial&);
// gradients.cpp
void gradients(trial&);
// sparse.cpp
void selected(trial&);
void selected_decode(trial&);
void lsh(trial&);
void routing(trial&);
void native_sparse(trial&);
void pattern(trial&);
// selections.cpp
void top_k(trial&);
void mixture(trial&);
void indexer(trial&);
void pages(trial&);
// recurrence.cpp
void recurrence(trial&);
// kernelised.cpp
void kernelised(trial&);
void cosformer(trial&);
void performer(trial&);
// scan.cpp
void hgrn(trial&);
void rwkv4(trial&);
void selective_scan(trial&);
void convolution(trial&);
void rotary(trial&);

}  // namespace soak
