// expect: the scheme stores other rows than keys and values: give them as token_rows
#include "cellar/cellar.hpp"

using scheme = cellar::scheme::latent<cellar::scheme::dense<576>, 512>;
void append(cellar::cache<scheme>& cache, cellar::heads_view<float const> x) { cache.append({}, 0, x, x); }
