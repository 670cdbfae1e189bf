#include "cellar/select/outliers.hpp"

#include <cmath>

#include "catch.hpp"
#include "random.hpp"
#include "sweep.hpp"

using namespace cellar;

TEST_CASE("least_cosine is the smallest cosine between the mean key and a key") {
  for_head_dims([](auto dim) {
    constexpr int d = dim;
    random_numbers r(d);
    for (std::int64_t const tokens : {1, 2, 8, 17}) {
      auto const keys = r.normals(tokens * d, 3);
      std::vector<double> mean(d, 0.0);
      for (std::int64_t i = 0; i < tokens; ++i)
        for (std::size_t c = 0; c < d; ++c) mean[c] += double(keys[std::size_t(i * d) + c]) / double(tokens);
      double least = 1, size = 0;
      for (double const x : mean) size += x * x;
      for (std::int64_t i = 0; i < tokens; ++i) {
        double product = 0, length = 0;
        for (std::size_t c = 0; c < d; ++c) {
          double const x = double(keys[std::size_t(i * d) + c]);
          product += x * mean[c];
          length += x * x;
        }
        least = std::min(least, product / std::sqrt(length * size));
      }
      serial_team t;
      CHECK(double(select::least_cosine{}(t, rows_of<d>(keys))) == Approx(least).margin(2e-6));
    }
  });
}

TEST_CASE("least_cosine of zero keys is 0, of huge ones finite") {
  serial_team t;
  std::vector<float> keys(4 * 16, 0.0f);
  CHECK(select::least_cosine{}(t, rows_of<16>(std::as_const(keys))) == 0);
  keys[3] = 1e30f;
  CHECK(is_finite(select::least_cosine{}(t, rows_of<16>(std::as_const(keys)))));
}
