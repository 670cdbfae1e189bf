// Two units that use the library, compiled for the least x86-64 and for one with AVX2 and FMA, in one program: equal results. Units without contraction of
// products and sums are equal bit for bit.
#include <cmath>
#include <cstdio>
#include <vector>

std::vector<float> plain_unit();
std::vector<float> vector_unit();

int main() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) {  // before any code of theirs runs
    std::puts("SKIPPED: this processor has no AVX2, FMA or BMI2");
    return 0;
  }
  auto const a = plain_unit(), b = vector_unit();
  double most = a.size() == b.size() && a.size() > 10000 ? 0 : 1;
  for (std::size_t i = 0; i < a.size() && most < 1; ++i) {
    double const difference = std::abs(double(a[i]) - double(b[i]));
    most = difference <= most ? most : std::isnan(difference) ? 1 : difference;
  }
  std::printf("%zu outputs differ by at most %g, allowed are %g\n", a.size(), most, double(TOLERANCE));
  return most <= double(TOLERANCE) ? 0 : 1;
}
