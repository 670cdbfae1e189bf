// Built with -fno-exceptions: the whole library compiles and links, and an error reaches the handler that this program defines.
#include "cellar/cellar.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef __cpp_exceptions
#error this file is to be compiled without exceptions
#endif

[[noreturn]] void cellar::on_error(char const* message) {
  std::printf("on_error: %s\n", message);
  std::exit(std::strstr(message, "planted mistake") ? 0 : 2);
}

int main() {
  cellar::expects(true, "holds");
  cellar::expects(false, "planted mistake");
  return 1;  // the handler must have been called
}
