// Built with -fno-exceptions: the whole library compiles and links, and an error reaches the handler that this program defines.
#include "cellar/cellar.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef __cpp_exceptions
#error this file is to be compiled without exceptions
#endif

template class cellar::cache<cellar::scheme::yakv_centred<64>>;
template class cellar::cache<cellar::scheme::quest<64>>;
template class cellar::cache<cellar::scheme::dense<64>>;

[[noreturn]] void cellar::on_error(char const* message) {
  std::printf("on_error: %s\n", message);
  std::exit(std::strstr(message, "plan: the batch is empty") ? 0 : 2);
}

int main() {
  cellar::host::thread_pool pool(2);
  cellar::host::executor const on(pool);
  cellar::cache<cellar::scheme::dense<64>> cache(on, {.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 64}, {.sequences = 1, .tokens = 64});
  cache.plan(on, {});
  return 1;  // the handler must have been called
}
