// Includes everything, in two units, and runs: as little as a user's program can do.
#include <cellar/cellar.hpp>

#include <cstdio>
#include <string>

int major_version_of_other_unit();

int main(int count, char** arguments) {
  std::string version = std::to_string(CELLAR_VERSION_MAJOR) + "." + std::to_string(CELLAR_VERSION_MINOR) + "." + std::to_string(CELLAR_VERSION_PATCH);
  std::printf("cellar %s\n", version.c_str());
  return count == 2 && version == arguments[1] && major_version_of_other_unit() == CELLAR_VERSION_MAJOR ? 0 : 1;
}
