// The second unit: a definition that is not inline would clash with main.cpp's.
#include <cellar/cellar.hpp>

int major_version_of_other_unit() { return CELLAR_VERSION_MAJOR; }
