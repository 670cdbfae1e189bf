#include "cellar/codec/int8.hpp"

#include "codec/laws.hpp"

using namespace cellar;

namespace {

template <class Scale>
void check_int8() {
  codec::int8<Scale> const coder;
  check_codec_laws(
      coder,
      [](std::int64_t channels) {
        return row_bytes{channels, std::int64_t(sizeof(Scale))};
      },
      [](auto, coded_row const& row) {
        double most = 0;
        for (float const x : row.x) most = std::max(most, std::abs(double(x)));
        auto const s = double(to_float(detail::load<Scale>(row.scales.data())));
        double const unit = std::is_same_v<Scale, float> ? 0x1p-24 : std::is_same_v<Scale, bf16> ? 0x1p-7 : 0x1p-10;
        double const least = std::is_same_v<Scale, float> ? 0x1p-149 : std::is_same_v<Scale, bf16> ? 0x1p-133 : 0x1p-24;
        REQUIRE(s >= most / 127 * (1 - 0x1p-23) - 0x1p-149);
        REQUIRE(s <= most / 127 * (1 + unit) + least);
        for (std::size_t c = 0; c < row.x.size(); ++c) {
          double const x = double(row.x[c]), y = double(row.y[c]);
          int const code = int(std::int8_t(row.codes[c]));
          REQUIRE(std::abs(code) <= 127);
          REQUIRE(y == Approx(code * s).epsilon(1e-7).margin(0x1p-149));
          REQUIRE(std::abs(y - x) <= s / 2 * (1 + 1e-4) + 0x1p-142);  // the law; f32 quotients of up to 127 are off by 4e-6 of a step
        }
      });
  check_scores(coder);
}

}  // namespace

TEST_CASE("int8: no channel is off by more than half a step, from the smallest rows to the largest") {
  check_int8<bf16>();
  check_int8<float>();
  check_int8<f16>();
}

TEST_CASE("int8 rounds ties to even and keeps the signs") {
  std::vector<float> const x{127, -127, 0.5f, 1.5f, -0.5f, -2.5f, 3, -64};
  std::vector<std::byte> bytes(8 + 4);
  serial_team t;
  codec::int8<float>{}.encode(t, rows_of<8>(x), row_parts<std::byte>{bytes.data(), bytes.data() + 8, 8, 4});
  CHECK(detail::load<float>(bytes.data() + 8) == 1.0f);
  std::vector<int> codes;
  for (std::size_t i = 0; i < 8; ++i) codes.push_back(std::int8_t(bytes[i]));
  CHECK(codes == std::vector<int>{127, -127, 0, 2, 0, -2, 3, -64});
}

TEST_CASE("nearest_integer is the nearest, ties to even") {
  random_numbers r(1);
  for (int i = 0; i < 100000; ++i) {
    float const x = r.normal() * std::ldexp(1.0f, int(r.below(20)));
    REQUIRE(double(nearest_integer(x)) == std::nearbyint(double(x)));
    float const tie = std::floor(x) + 0.5f;
    REQUIRE(double(nearest_integer(tie)) == std::nearbyint(double(tie)));
  }
}
