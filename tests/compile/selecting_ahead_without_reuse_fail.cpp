// expect: the scheme selects anew in every layer and step, so nothing can be selected ahead: give it reuse_ids<1, 2>
#include "cellar/cellar.hpp"

void ahead(cellar::cache<cellar::scheme::quest<64>>& cache, cellar::heads_view<float const> q) { cache.select({}, 0, q); }
